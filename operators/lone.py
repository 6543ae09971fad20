"""Tasks outside a pipeline's runs: one request of the runner for one pipeline, in no plan, where its stages run.

Base of `operators.release`, `operators.reconcile` and `operators.predict`. Whoever mends something at night must not
wait behind a training: the first takes no slot of Refit's pools, the second has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from operators import inputs
from operators.stage import ProcessOperator, compact, load, login_of

if TYPE_CHECKING:
    from airflow.sdk import Context

    from refit.cluster import Profile
    from refit.config import Settings
    from refit.pipeline import Pipeline

Make = Callable[[Mapping[str, Any], "Pipeline", "Profile", "Settings", str], dict[str, Any]]


def asked(
    make: Make, context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings
) -> dict[str, Any]:
    """The runner's request for this run; `where` is as the stage sees it. Raises BadInput."""
    by = context["dag_run"].triggering_user_name or "airflow"
    try:
        return make(context, pipeline, profile, where, f"{by} (Airflow)")
    except ValueError as exc:
        raise inputs.BadInput(str(exc)) from None


class LoneOperator(ProcessOperator):
    """Runs `request(context, pipeline, profile, settings, by)` for a pipeline: as a subprocess, or in a pod
    (`operators.pod.LonePodOperator`).

    XCom: as other stages, see `operators.stage.LocalStageOperator`.
    """

    _real: BaseOperator | None = None
    action = ""

    @staticmethod
    def request(
        context: Mapping[str, Any], pipeline: Pipeline, profile: Profile, where: Settings, by: str
    ) -> dict[str, Any]:
        """The runner's request. Raises ValueError or BadInput for what cannot be done."""
        raise NotImplementedError

    def pipeline(self, context: Mapping[str, Any]) -> str:
        """The pipeline's name; here that of the form."""
        return str(context["params"]["pipeline"])

    def execute(self, context: Context) -> Any:
        from refit import cluster
        from refit.plan import connection_of
        from refit.specs import SpecError

        where = inputs.settings()
        pipeline = inputs.read(self.pipeline(context), {}, where)
        if pipeline.runtime == "kubernetes":
            return self.real().execute(context)
        try:
            profile = cluster.of_pipeline(pipeline, where)
        except SpecError as exc:
            raise inputs.BadInput(str(exc)) from None
        told = asked(type(self).request, context, pipeline, profile, where)
        login = login_of(connection_of(told))
        return compact(self._run(self.action, told["environment"], where, login, request=told))

    def real(self) -> BaseOperator:
        if self._real is None:
            self._real = load("operators.pod:LonePodOperator")(task_id=self.task_id, lone=self)
        return self._real

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        return self.real().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        super().on_kill()
        if self._real is not None:
            self._real.on_kill()
