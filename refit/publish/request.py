"""The request of the task that publishes a run: a stage of its own, in no plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refit import plan
from refit.config import Settings
from refit.data.source import secret_name
from refit.pipeline import Resources
from refit.toolkits.base import OUR_EXIT_CODES, command
from refit.track import Tracking

PUBLISH = "publish"


def publish_request(
    pipeline: str,
    settings: Settings,
    run_id: str | None,
    *,
    failed: Mapping[str, str] | None = None,
    tracking: Tracking | None = None,
    nonce: str,
) -> dict[str, Any]:
    """What the runner is told, for the local runtime and for a pod.

    Args:
        settings: the workspace as the stage sees it.
        run_id: of the run; None: only the index is made anew, as after a roll back.
        failed: tasks that failed by what Airflow knows, each with its reason where that is known here.
        tracking: where else the run is written down.
        nonce: differs at each start: what was published before must not be taken for this.
    """
    workspace = settings.workspace / pipeline
    spec = {
        "workspace": str(workspace),
        "run": plan.run_folder(run_id) if run_id is not None else None,
        "run_id": run_id or "",
        "failed": dict(failed or {}),
        "nonce": nonce,
        "tracking": tracking.model_dump() if tracking is not None else {},
    }
    connection = tracking.mlflow.connection if tracking is not None and tracking.mlflow is not None else None
    secret = secret_name(connection) if connection is not None else None
    made = plan.lone_request(
        pipeline=pipeline,
        run=run_id or "publish",
        name=PUBLISH,
        action=PUBLISH,  # what a pod may see
        environment="tools",
        argv=command("refit.publish", PUBLISH, "publish.yaml"),
        workspace=settings.workspace,
        resources=Resources(gpus=0, cpus=1, memory_gib=2, timeout_hours=1),
        specs={"publish.yaml": plan.literal(spec)},
        env={plan.CONNECTION: f"{{secret:{secret}}}"} if secret else {},
        secrets=(secret,) if secret else (),
        exit_codes=OUR_EXIT_CODES,
    )
    return {**made, "toolkit": "refit", "summary": "summary.json", "connection": connection}
