"""The request of a batch inference that Airflow runs: a stage of its own, in no plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refit import plan
from refit.cluster import KubernetesProfile, Profile
from refit.config import Settings
from refit.data.source import secret_name
from refit.pipeline import Pipeline, Resources, TritonTarget
from refit.predict.specs import FileInferenceSpec, TritonInferenceSpec
from refit.toolkits.base import OUR_EXIT_CODES, Output, command
from refit.toolkits.chain import served_by

NAME = "predict"


def predict_request(
    pipeline: Pipeline, profile: Profile, settings: Settings, run_id: str, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """What the runner is told (docs/contracts.md), for the local runtime and for a pod.

    Args:
        settings: the workspace as the stage sees it.
        run_id: of the Airflow run; a retry goes on with what the try before has answered.
        asked: `through` ("triton" or "file"), `version`, and what `PredictSpec` takes.

    Raises:
        ValueError: the pipeline releases nothing, or a value cannot be used (pydantic's ValidationError is one).
    """
    release, name = pipeline.release, str(pipeline.name)
    if release is None:
        raise ValueError(f"pipeline {name} says release: false; there is no model of it to ask")
    target, _ = served_by(release, profile)
    _known(asked["connection"], pipeline, target, profile)
    asked = dict(asked)
    through, model = asked.pop("through"), release.model or name
    if through == "triton":
        spec: Any = TritonInferenceSpec(**asked, model=model, url=target.url)
        environment, argv = "tools", command("refit.predict", "inference", "inference.yaml")
    else:
        spec = FileInferenceSpec(**asked, releases=str(settings.workspace / name / "releases"), name=model)
        environment, argv = "cpu", command("refit.cpu", "inference", "inference.yaml")
    secret = secret_name(spec.connection) if spec.connection else None
    request = plan.lone_request(
        pipeline=name,
        run=f"{NAME}-{run_id}",
        name=NAME,
        action=NAME,  # what a pod may see and reach
        environment=environment,
        argv=argv,
        workspace=settings.workspace,
        resources=Resources(gpus=0, cpus=2, memory_gib=pipeline.predict.memory_gib),
        env={**plan.reach(settings), **({plan.CONNECTION: f"{{secret:{secret}}}"} if secret else {})},
        specs={"inference.yaml": plan.literal(spec.model_dump(exclude_defaults=True))},
        outputs=(Output("predictions", "predictions.json", "json"), Output("detections", "detections.json", "json")),
        secrets=(secret,) if secret else (),
        exit_codes=OUR_EXIT_CODES,
    )
    about = {"model": model, "toolkit": "refit", "summary": "summary.json", "connection": spec.connection}
    return {**request, **about}


def _known(connection: str | None, pipeline: Pipeline, target: TritonTarget, profile: Profile) -> None:
    """Raises ValueError for a login that neither the pipeline file nor the cluster profile names: who may start runs
    does not choose among all of Airflow's connections."""
    own = [pipeline.dataset.connection, target.connection, *pipeline.predict.connections]
    secrets = profile.secrets if isinstance(profile, KubernetesProfile) else {}
    if connection is not None and connection not in own and secret_name(connection) not in secrets:
        raise ValueError(
            f"connection: {connection!r} is none of this pipeline's ({', '.join(filter(None, own)) or 'it has none'}), "
            "and the cluster profile has no secret for it; name it in predict.connections of the pipeline file, or "
            "take a login of yours to `bin/refit predict --connection`"
        )
