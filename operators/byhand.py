"""What a person starts for one pipeline outside its runs: a DAG of one task, whichever runtime the pipeline has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import DAG, BaseOperator, get_parsing_context

from operators import inputs
from operators.stage import ProcessOperator, compact, load, login_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.cluster import Profile
    from refit.config import Settings
    from refit.pipeline import Pipeline


class ByHandOperator(ProcessOperator):
    """Runs one request for pipeline `params.pipeline`: as a subprocess, or in a pod.

    A subclass says `stage` (the request's name), `pod` (the operator class that runs it in a pod) and `request`.

    XCom: as other stages, see `operators.stage.LocalStageOperator`.
    """

    stage: ClassVar[str]
    pod: ClassVar[str]

    _real: BaseOperator | None = None

    @staticmethod
    def request(context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings) -> dict[str, Any]:
        """The runner's request for this run's params; `where` is as the stage sees it. Raises BadInput."""
        raise NotImplementedError

    @staticmethod
    def of(context: Mapping[str, Any]) -> str:
        """The pipeline's name: what the form says."""
        return str(context["params"]["pipeline"])

    def execute(self, context: Context) -> Any:
        from refit import cluster
        from refit.plan import connection_of
        from refit.specs import SpecError

        where = inputs.settings()
        pipeline = inputs.read(self.of(context), {}, where)
        if pipeline.runtime == "kubernetes":
            return self.real().execute(context)
        try:
            profile = cluster.of_pipeline(pipeline, where)
        except SpecError as exc:
            raise inputs.BadInput(str(exc)) from None
        asked = self.request(context, pipeline, profile, where)
        login = login_of(connection_of(asked))
        return compact(self._run(self.stage, asked["environment"], where, login, request=asked))

    def real(self) -> BaseOperator:
        if self._real is None:
            self._real = load(self.pod)(task_id=self.task_id)
        return self._real

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        return self.real().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        super().on_kill()
        if self._real is not None:
            self._real.on_kill()


def dags(dag_id: str, make: Callable[[list[str]], DAG]) -> dict[str, DAG]:
    """The DAG of all pipelines by its id, for a DAG file's globals(); none where there is no pipeline file, or where
    the process is about another DAG."""
    if (get_parsing_context().dag_id or dag_id) != dag_id:
        return {}
    from operators.factory import pipeline_names

    found = pipeline_names()
    return {dag_id: make(found)} if found else {}
