"""A person's say before a release: the stage that gathers what the gates said and whether somebody must be asked.

The stage asks nobody itself. Who runs it does (Airflow's task, `refit run`), and hands the answer to the release, which
refuses to begin without it (`refit.gates.approval`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from refit.pipeline import Approval, Pipeline, Resources
from refit.toolkits.base import Output, Stage, command

APPROVE = "approve"


def with_approval(pipeline: Pipeline, stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages with `approve` before the release, where the pipeline asks for it; it reads every gate before it."""
    asks = pipeline.asks
    gates: list[str] = []
    for stage in stages:
        if stage.action == "gate":
            gates.append(stage.name)
        if stage.name == "release" and asks is not None:  # the watch after it is of that action too
            yield _approve(asks, gates, stage)
            ((file, spec),) = stage.files.items()
            assert not isinstance(spec, str)
            told = {**spec, "approval": f"{{input:{APPROVE}.question}}"}
            yield replace(stage, files={file: told}, inputs=(*stage.inputs, APPROVE))
        else:
            yield stage


def _approve(asks: Approval, gates: list[str], release: Stage) -> Stage:
    return Stage(
        name=APPROVE,
        action=APPROVE,
        title="May it be released?",
        environment="tools",
        argv=command("refit.gates", APPROVE, "approve.yaml"),
        files={"approve.yaml": {"run": "{run}", **asks.model_dump()}},
        inputs=tuple(gates),
        after=release.after,
        outputs=(Output("question", "question.json", "json"),),
        summary="summary.json",
        code=("refit/gates", "refit/specs.py"),
        resources=Resources(gpus=0, cpus=1, memory_gib=1, timeout_hours=1),
    )
