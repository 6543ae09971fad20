"""The requests of a roll back and of a reconciliation that Airflow runs: stages of their own, in no plan."""

from __future__ import annotations

from typing import Any

from refit import plan
from refit.cluster import Profile
from refit.config import Settings
from refit.pipeline import Pipeline, Resources
from refit.toolkits.base import OUR_EXIT_CODES, Output, command
from refit.toolkits.chain import access, served_by

WORDS = {"rollback": "roll back", "reconcile": "compare"}
WATCH_GRACE_MINUTES = 10  # a watch may begin late, and its end takes the lock


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
    told = {"to": to, "by": by, "reason": reason, "public_key": _public_key(pipeline)}
    return _request(pipeline, profile, settings, f"rollback-{run_id}", "rollback", told)


def reconcile_request(
    pipeline: Pipeline, profile: Profile, settings: Settings, run_id: str, *, mend: bool, by: str
) -> dict[str, Any]:
    """As `rollback_request`: compare the pipeline's model with the ledger, and mend what differs where it is wanted."""
    watch = pipeline.release.watch if pipeline.release else None
    minutes = watch.minutes + WATCH_GRACE_MINUTES if watch else 0
    told = {"mend": mend, "by": by, "watch_minutes": minutes, "public_key": _public_key(pipeline)}
    return _request(pipeline, profile, settings, f"reconcile-{run_id}", "reconcile", told)


def _public_key(pipeline: Pipeline) -> str | None:
    signing = pipeline.release.signing if pipeline.release else None
    return signing.public_key if signing else None


def _request(
    pipeline: Pipeline, profile: Profile, settings: Settings, run: str, what: str, told: dict[str, Any]
) -> dict[str, Any]:
    release = pipeline.release
    if release is None:
        raise ValueError(f"pipeline {pipeline.name} says release: false; there is nothing to {WORDS[what]}")
    target, secret = served_by(release, profile)
    name = str(pipeline.name)
    spec = {
        "model": release.model or name,
        "url": target.url,
        "repository": target.repository,
        "ledger": str(settings.workspace / name / "releases"),
        "timeout_seconds": release.timeout_seconds,
        "tolerance": release.tolerance.model_dump(),
        **told,
    }
    request = plan.lone_request(
        pipeline=name,
        run=run,
        name=what,
        action="release",  # what a pod may see and reach
        environment="tools",
        argv=command("refit.triton", what, f"{what}.yaml"),
        workspace=settings.workspace,
        resources=Resources(gpus=0, cpus=1, memory_gib=1, timeout_hours=1),
        **access(target, secret),
        specs={f"{what}.yaml": plan.literal(spec)},
        outputs=(Output("release", "release.json", "json"),),
        exit_codes=OUR_EXIT_CODES,
    )
    return {**request, "model": spec["model"], "toolkit": "refit", "summary": "summary.json"}
