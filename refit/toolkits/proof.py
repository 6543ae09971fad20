"""The stages that prove a model on a Triton of the target's own image, before it is released: prepare_proof, prove for
each kind of GPU, gate_parity (`refit.prove`, `refit.gates.parity`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import refit
from refit.pipeline import Resources
from refit.toolkits.base import Output, Stage, command
from refit.toolkits.chain import RELEASE_CODE, Chain
from refit.toolkits.lazy import Lazy

PROGRAM = "prove.py"
_SOURCE = Path(refit.__path__[0]) / "prove" / "server.py"
_CODE = ("refit/prove", *RELEASE_CODE)


@dataclass(frozen=True)
class Proven:
    """What is proven.

    Attributes:
        name: of the model, for messages: quantized, retrained.
        stage: whose `path` (a path in its results) a release would take.
        onnx: stage -> the path of the FP32 model that the server is asked about as well; None where it cannot serve it.
        references: name of a model -> the stage that evaluated it and kept its detections, in the order of the chain.
        figures: the same where the stage gives figures only.
        gpus: kind of GPU ("": the only one) -> its gpu type, None for the cluster's default; empty: on the CPU.
        evaluate: the limits of the evaluations, for the gate.
    """

    name: str
    stage: str
    path: str
    split: str
    onnx: tuple[str, str] | None = None
    references: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    gpus: Mapping[str, str | None] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()


def stages(chain: Chain, proven: Proven) -> Iterator[Stage]:
    """The last of them is gate_parity."""
    gate = chain.pipeline.gates.parity
    assert gate is not None
    onnx = proven.onnx if proven.onnx and proven.onnx[1] != proven.path else None
    asked = {"onnx": onnx[1] if onnx else None, "images": gate.images}
    yield questions(chain, proven, "prepare_proof", asked, onnx[:1] if onnx else ())
    kinds = proven.gpus or {"": None}
    names = {kind: f"prove_{kind}" if kind else "prove" for kind in kinds}
    for kind, gpu_type in kinds.items():
        yield prove(chain, names[kind], "prepare_proof", gpu=bool(proven.gpus), gpu_type=gpu_type)
    judged = {
        "model": proven.name,
        "proof": "{input:prepare_proof}",
        "answers": {kind: f"{{input:{name}}}" for kind, name in names.items()},
        "references": {name: f"{{input:{stage}}}/detections.json" for name, stage in proven.references.items()},
        "figures": {name: f"{{input:{stage}}}/../result.json" for name, stage in proven.figures.items()},
        "agreement": gate.agreement,
        "max_drop": gate.max_drop,
        "policy": gate.policy,
        **proven.evaluate,
    }
    evaluated = (*proven.references.values(), *proven.figures.values())
    yield Stage(
        name="gate_parity",
        action="gate",
        title="Gate: does Triton answer as the model did?",
        environment="tools",
        argv=command("refit.gates", "parity", "parity.yaml"),
        files={"parity.yaml": judged},
        inputs=tuple(dict.fromkeys(("prepare_proof", *names.values(), *evaluated))),
        outputs=(Output("verdict", "verdict.json", "json"),),
        summary="summary.json",
        code=("refit/gates", "refit/prove", "refit/postprocess", "refit/triton/config.py", "refit/specs.py"),
        resources=chain.light("gate_parity"),
    )


def questions(chain: Chain, proven: Proven, name: str, asked: Mapping[str, Any], inputs: tuple[str, ...]) -> Stage:
    """The model as a release would stage it, pictures, and what is asked about them (`refit.prove.prepare`)."""
    release = chain.pipeline.release
    spec = {
        "model": (release.model if release else None) or chain.pipeline.name,
        "model_path": proven.path,
        "snapshot": "{snapshot}",
        "split": proven.split,
        **asked,
    }
    return Stage(
        name=name,
        action="prepare_proof",
        title="Pictures and questions for Triton",
        environment="tools",
        argv=command("refit.prove", "prepare", "prepare.yaml"),
        files={"prepare.yaml": spec},
        inputs=tuple(dict.fromkeys((proven.stage, *inputs))),
        after=proven.after,
        outputs=(Output("request", "request.json", "json"), Output("truth", "truth.json", "json")),
        code=(*_CODE, "refit/data/snapshot.py"),
        resources=chain.light(name),
        reads_snapshot=True,
    )


def prove(chain: Chain, name: str, asked: str, *, gpu: bool, gpu_type: str | None) -> Stage:
    """The server and its client, in Triton's own image: it brings what it needs as a file of the stage. `asked`: the
    stage with the questions."""
    return Stage(
        name=name,
        action="prove",
        title="Ask a Triton of its own",
        environment="triton",
        argv=("{python}", "{specs}/" + PROGRAM, f"{{input:{asked}}}", "{out}"),
        files=Lazy(lambda: {PROGRAM: _SOURCE.read_text(encoding="utf-8")}),
        inputs=(asked,),
        outputs=(Output("answers", "answers.json", "json"), Output("data", "answers.bin", min_bytes=0)),
        code=("refit/prove/server.py",),
        resources=_resources(chain, name, gpu=gpu, gpu_type=gpu_type),
        resumes=False,
        exit_codes={},
    )


def _resources(chain: Chain, name: str, *, gpu: bool, gpu_type: str | None) -> Resources:
    default, named = chain.pipeline.resources.default, chain.pipeline.resources.stages
    wanted = default.model_copy(update={"gpus": 1 if gpu else 0, "gpu_type": gpu_type if gpu else None})
    return named.get(name, wanted)
