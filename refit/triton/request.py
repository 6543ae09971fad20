"""The request of a roll back that Airflow runs: a stage of its own, in no plan."""

from __future__ import annotations

from typing import Any

from refit import plan
from refit.cluster import Profile
from refit.config import Settings
from refit.pipeline import Pipeline, Resources
from refit.toolkits.base import OUR_EXIT_CODES, Output, command
from refit.toolkits.chain import access, served_by


def rollback_request(
    pipeline: Pipeline, profile: Profile, settings: Settings, run_id: str, *, to: int | None, by: str, reason: str
) -> dict[str, Any]:
    """What the runner is told (docs/contracts.md), for the local runtime and for a pod.

    Args:
        settings: the workspace as the stage sees it.
        run_id: of the Airflow run; a retry answers from what the try before has done.
        to: the version; None: the one that served before.

    Raises:
        ValueError: the pipeline releases nothing.
    """
    release = pipeline.release
    if release is None:
        raise ValueError(f"pipeline {pipeline.name} says release: false; there is nothing to roll back")
    target, secret = served_by(release, profile)
    name = str(pipeline.name)
    spec = {
        "model": release.model or name,
        "url": target.url,
        "repository": target.repository,
        "ledger": str(settings.workspace / name / "releases"),
        "timeout_seconds": release.timeout_seconds,
        "tolerance": release.tolerance.model_dump(),
        "to": to,
        "by": by,
        "reason": reason,
    }
    request = plan.lone_request(
        pipeline=name,
        run=f"rollback-{run_id}",
        name="rollback",
        action="release",  # what a pod may see and reach
        environment="tools",
        argv=command("refit.triton", "rollback", "rollback.yaml"),
        workspace=settings.workspace,
        resources=Resources(gpus=0, cpus=1, memory_gib=1, timeout_hours=1),
        **access(target, secret),
        specs={"rollback.yaml": plan.literal(spec)},
        outputs=(Output("release", "release.json", "json"),),
        exit_codes=OUR_EXIT_CODES,
    )
    return {**request, "model": spec["model"], "toolkit": "refit", "summary": "summary.json"}
