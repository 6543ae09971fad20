"""Batch inference from Airflow: the task that asks a model about a folder or bucket of images, and its DAG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from operators import inputs, lone, pools
from operators.own import of_pipelines, own_dag, pipeline_param

if TYPE_CHECKING:
    from refit.cluster import Profile
    from refit.config import Settings
    from refit.pipeline import Pipeline

DAG_ID = "refit_predict"


class PredictOperator(lone.LoneOperator):
    """Asks the model of pipeline `params.pipeline` about every image of `params.images` (`refit.predict`).

    A retry goes on where the try before ended. The results are in `summary.results` of the XCom, a folder of the
    workspace; a bad image is told there and stops nothing.
    """

    ui_color = "#f3ecd9"
    action = "predict"

    @staticmethod
    def request(
        context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings, by: str
    ) -> dict[str, Any]:
        """The runner's request for this run's params; `where` is as the stage sees it. Raises BadInput."""
        from pydantic import ValidationError

        from refit.predict.request import predict_request

        asked = {key: context["params"][key] for key in PARAMS}
        unknown = sorted(set(inputs.conf_of(context)) - {*PARAMS, "pipeline"})
        if unknown:
            raise inputs.BadInput(f"this run's params: unknown key {unknown[0]!r}; known here: {', '.join(PARAMS)}")
        try:
            return predict_request(pipeline, profile, where, context["run_id"], asked)
        except ValidationError as exc:
            fault = exc.errors(include_url=False)[0]
            key = ".".join(map(str, fault["loc"]))
            raise inputs.BadInput(f"this run's params: {key}: {fault['msg']} (it is {fault['input']!r})") from None
        except ValueError as exc:
            raise inputs.BadInput(str(exc)) from None


def _params() -> dict[str, Param]:
    score = {"minimum": 0, "maximum": 1}
    return {
        "images": Param(
            "inference",
            type="string",
            minLength=1,
            title="Images",
            description="a folder below the data roots, or s3://, gs://, az://, https://...zip",
        ),
        "connection": Param(
            None, type=["null", "string"], title="Connection", description="Airflow's, with a bucket's login"
        ),
        "through": Param(
            "triton",
            type="string",
            enum=["triton", "file"],
            title="Through",
            description="Triton, or the released file itself (on the CPU, folders only)",
        ),
        "version": Param(
            None, type=["null", "integer"], minimum=1, title="Version", description="empty: the one that serves"
        ),
        "score_threshold": Param(
            None, type=["null", "number"], **score, title="Least score", description="0 to 1; empty: the model's own"
        ),
        "thresholds": Param(
            {},
            type="object",
            additionalProperties={"type": "number", **score},
            title="Least score by class",
            description='in place of it, e.g. {"plate": 0.6}',
        ),
        "draw": Param(False, type="boolean", title="Draw", description="also pictures with the boxes drawn"),
        "max_bad_images": Param(
            1.0,
            type="number",
            **score,
            title="Most bad images",
            description="share of unreadable images above which the run fails; its results are written all the same",
        ),
    }


PARAMS = tuple(_params())


def dag(pipelines: list[str]) -> DAG:
    """The DAG, with a form that offers these pipelines."""
    with own_dag(
        DAG_ID,
        description="Asks a model about a folder or bucket of images",
        doc_md="Detects objects in every image with the version that serves (or another), and writes JSON by folder, "
        "COCO results and pictures into the workspace. A retry goes on where the last try ended.",
        retries=2,
        max_active_runs=4,
        params={
            "pipeline": pipeline_param(pipelines),
            **_params(),
        },
    ) as made:
        PredictOperator(task_id="predict", task_display_name="Detect objects", pool=pools.LOCAL)
    return made


def dags() -> dict[str, DAG]:
    return of_pipelines(DAG_ID, dag)
