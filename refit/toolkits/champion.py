"""The champion gate of a toolkit whose evaluations give figures only: the version that serves and the challenger, asked
by one Triton of the target's own image about every picture of the evaluation set.

Both are fed and read as their clients do, by their own model.json, and scored by Refit: so there are detections of each
picture, and with them intervals, classes and slices, whatever the network, its file and its input's size are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from refit.toolkits import proof
from refit.toolkits.base import CHAMPION, Output, Stage, command
from refit.toolkits.chain import Chain
from refit.toolkits.proof import Proven


def stages(chain: Chain, proven: Proven, limits: Mapping[str, Any]) -> Iterator[Stage]:
    """The last of them is gate_champion. `limits`: keys of `refit.gates.answered.AnsweredSpec`."""
    asked = {"champion": CHAMPION, "images": None, "doubted": 0}
    yield proof.questions(chain, proven, "prepare_champion", asked, ())
    gpu_type = next(iter(proven.gpus.values()), None)
    yield proof.prove(chain, "prove_champion", "prepare_champion", gpu=bool(proven.gpus), gpu_type=gpu_type)
    scored = {"asked": "{input:prepare_champion}", "answers": "{input:prove_champion}", **limits}
    yield Stage(
        name="evaluate_champion",
        action="evaluate",
        title="Evaluate the version that serves, and the challenger",
        environment="tools",
        argv=command("refit.gates", "answered", "answered.yaml"),
        files={"answered.yaml": scored},
        inputs=("prepare_champion", "prove_champion"),
        outputs=(
            Output("results", "results.json", "json"),
            Output("challenger", "challenger/results.json", "json"),
        ),
        code=("refit/gates", "refit/prove", "refit/postprocess", "refit/triton/config.py", "refit/specs.py"),
        resources=chain.light("evaluate_champion"),
    )
    gate = chain.gate_champion(proven.name)
    spec = gate.files["quality.yaml"]
    assert not isinstance(spec, str)
    judged = {**spec, "metric": "mAP50", "candidate": "{input:evaluate_champion.challenger}"}
    yield replace(gate, files={"quality.yaml": judged}, inputs=("evaluate_champion",))
