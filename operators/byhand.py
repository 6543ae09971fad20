"""What a person starts for one pipeline outside its runs: a DAG of one task, whichever runtime the pipeline has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

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

    def execute(self, context: Context) -> Any:
        from refit import cluster
        from refit.plan import connection_of
        from refit.specs import SpecError

        where = inputs.settings()
        pipeline = inputs.read(str(context["params"]["pipeline"]), {}, where)
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
