"""Operators that run stages as pods (`runtime: kubernetes`), on KubernetesPodOperator.

A stage's task makes its pod and defers; `StageTrigger` follows the pod from the triggerer; when it has ended the task
comes back, and `refit.runtime.podstatus` says what the end means: the runner's answer, a pod to be made again, or a
failure with advice. Nothing passes through Jinja, and nothing that a pod holds is secret.

What is KubernetesPodOperator's: the connection, finding a pod again by its labels or the task state store after a
worker died, creating and deleting it, on_kill. What is ours: the pod's body (`refit.runtime.pod`), the wait, the end.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodPhase
from airflow.sdk.exceptions import AirflowSkipException
from airflow.settings import pod_mutation_hook
from kubernetes import client as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from operators import approval, inputs, lineage, names, notify, orphans, pools
from operators.failures import StageFailure, raise_failure
from operators.links import DataReport, RunReport
from operators.pod_trigger import StageTrigger
from operators.stage import compact, finish_bind
from refit import cluster
from refit.outcome import Outcome, Result
from refit.runtime import pod as pods
from refit.runtime.podstatus import BUSY, Do, Pod, Verdict, count, has_ended, judge, refused, result_of
from refit.specs import SpecError
from refit.triton.proven import unproven

if TYPE_CHECKING:
    from airflow.sdk import Context

    from operators.lone import LoneOperator

MADE = "refit_remade"  # in the task state store: pods made again in this try, by the classifier's row
SERVERS = "servers"  # a row of MADE: releases done again for a server that was not there at first
SERVERS_MOST = 3
AGAIN_SECONDS = 30  # until the API server is asked for a pod again that it did not take
DOUBT_SECONDS = 20  # a refused right is believed when it is still refused after that: see _refused
DELETE_SECONDS = 120
READ_BACK_SECONDS = 180


class TaoStageOperator(KubernetesPodOperator):
    """Runs one stage of the bound plan in a pod of the cluster that bind has named.

    A retry makes the same pod again: a training goes on from its last checkpoint, a finished stage answers at once.
    A pod that the cluster takes away (preempted, evicted, node lost) is made again in the same try.

    Args:
        stage: the stage's name in the plan; default: the last part of the task id.
        bind: the task that bound the plan.
        kwargs: KubernetesPodOperator's; of these `on_finish_action` decides whether ended pods are kept.

    XCom: {"outcome", "seconds", "attempt", "resumed", "metrics", "summary", "pods"}; `pods` counts the pods that were
    made again, by reason.
    """

    template_fields = ()
    template_fields_renderers: ClassVar[dict[str, str]] = {}
    ui_color = "#e8f4e8"
    operator_extra_links = (RunReport(), DataReport())
    BASE_CONTAINER_NAME = pods.CONTAINER

    def __init__(
        self, *, stage: str | None = None, bind: str = names.BIND, pool: str = pools.PODS, **kwargs: Any
    ) -> None:
        kwargs.setdefault("kubernetes_conn_id", None)
        super().__init__(pool=pool, deferrable=True, durable=True, do_xcom_push=False, **kwargs)
        self.stage = stage or self.task_id.rpartition(".")[2]
        self.bind = bind
        self._profile: cluster.KubernetesProfile | None = None
        self._stage: pods.PodStage | None = None
        self._again = False

    # --- what is to be run ---

    def planned(self, context: Mapping[str, Any]) -> tuple[cluster.KubernetesProfile, pods.PodStage]:
        """The cluster and the stage; asked at each start and each return of the task."""
        summary = context["ti"].xcom_pull(task_ids=self.bind)
        if not isinstance(summary, Mapping) or not isinstance(summary.get("pods"), str):
            raise inputs.BadInput(
                f"task {self.bind} of this run has left no plan for pods; clear {self.bind} together with what follows"
            )
        plan = str(summary["plan"])
        pipeline = PurePosixPath(plan).parts[-4]
        try:
            stage = pods.unpack(
                summary["pods"],
                self.stage,
                pipeline=pipeline,
                run=PurePosixPath(plan).parent.name,
                plan=plan,
                model=str(summary.get("model") or ""),
            )
        except KeyError:
            raise inputs.BadInput(f"{plan} has no stage {self.stage}; it was not in the pipeline file then") from None
        return kubernetes_profile(str(summary["cluster"])), stage

    def _prepare(self, context: Mapping[str, Any]) -> None:
        if self._profile is None:
            self._profile, self._stage = self.planned(context)
            self.kubernetes_conn_id = self._profile.connection or self.kubernetes_conn_id

    @property
    def profile(self) -> cluster.KubernetesProfile:
        assert self._profile is not None, "execute and trigger_reentry prepare it"
        return self._profile

    @property
    def pod_stage(self) -> pods.PodStage:
        assert self._stage is not None, "execute and trigger_reentry prepare it"
        return self._stage

    # --- the pod ---

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> k8s.V1Pod:
        """The pod of `refit.runtime.pod` with the labels by which Airflow finds it again. Raises BadInput."""
        try:
            manifest = pods.stage_pod(self.pod_stage, self.profile)
        except pods.PodError as exc:
            raise inputs.BadInput(str(exc)) from None
        if self.pod_stage.action == pods.RELEASE and not dry_run:
            env = manifest["spec"]["containers"][0]["env"]
            servers = self._servers()
            self.log.info("Triton's servers: %s", ", ".join(servers) or "none is running")
            if servers:
                env.append({"name": "REFIT_TRITON_SERVERS", "value": ",".join(servers)})
            if self._again:
                env.append({"name": "REFIT_AGAIN", "value": "1"})
            if context is not None:
                env += [{"name": name, "value": value} for name, value in approval.answer(context).items()]
        return self._as_pod(manifest, context)

    def _as_pod(self, manifest: dict[str, Any], context: Context | None, *, asks: bool = False) -> k8s.V1Pod:
        """`asks`: it only asks for the stage's result, so the task must not find it again as the stage's own."""
        manifest["metadata"]["name"] += f"-{uuid.uuid4().hex[:8]}"
        pod = PodGenerator.deserialize_model_dict(manifest)
        if not asks:
            pod.metadata.labels.update(self._get_ti_pod_labels(context))
        if context is not None:
            ti, keep = context["ti"], self.on_finish_action.value != "delete_pod" and not asks
            about = orphans.note(ti.dag_id, context["run_id"], ti.task_id, ti.map_index, keep)
            pod.metadata.annotations = {**(pod.metadata.annotations or {}), orphans.TASK: about}
        pod_mutation_hook(pod)
        return pod

    def _servers(self) -> list[str]:
        """The addresses of all Triton servers: a release is loaded and verified on each of them."""
        wanted = self.profile.triton.selector
        if not wanted:
            return []
        found = self.client.list_namespaced_pod(
            self.profile.namespace, label_selector=",".join(f"{k}={v}" for k, v in wanted.items())
        ).items
        port = self.profile.triton.url.rpartition(":")[2]
        alive = [
            p for p in found if p.status.pod_ip and p.status.phase == "Running" and not p.metadata.deletion_timestamp
        ]
        return sorted(f"http://{p.status.pod_ip}:{port if port.isdigit() else 8000}" for p in alive)

    def _unproven(self, result: Result) -> list[str]:
        """Servers that run now and that a good release has not loaded and verified: they came while it was at work."""
        if not result.succeeded or self.pod_stage.action != pods.RELEASE:
            return []
        return unproven(self._servers(), result.summary.get("servers"))

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        """The pod that an earlier start of this task has left, running or ended, else a new one.

        Other than in KubernetesPodOperator an ended pod is good: its answer is still to be read.
        """
        found = self._get_pod_from_task_state_store(context) or self.find_pod(
            pod_request_obj.metadata.namespace, context=context
        )
        if found is not None and found.metadata.deletion_timestamp and found.status.phase in ("Pending", "Running"):
            # Of an earlier try, on a node that does not answer any more, or with a long grace period.
            self.log.info("pod %s is being deleted; waiting until it is gone", found.metadata.name)
            self._delete(found.metadata.name, found.metadata.namespace)
            found = None
        if found is not None:
            self.log.info("going on with pod %s (%s)", found.metadata.name, found.status.phase)
            self._persist_pod_identity_to_task_state_store(context, found)
            return found
        made = self.pod_manager.create_pod(pod=pod_request_obj)
        self._persist_pod_identity_to_task_state_store(context, made)
        self.log.info("made pod %s in namespace %s", made.metadata.name, made.metadata.namespace)
        return made

    # --- the task's life ---

    def execute(self, context: Context) -> None:
        """Make the pod and wait for it without a worker slot."""
        self._prepare(context)
        self._start(context, since=time.time())

    def _start(self, context: Context, *, since: float) -> None:
        self.pod = None
        try:
            self.pod_request_obj = self.build_pod_request_obj(context)
            self.pod = self.get_or_create_pod(self.pod_request_obj, context)
        except (ApiException, HTTPError) as exc:
            self._refused(exc, context, since)
        self.invoke_defer_method(context=context)

    def _refused(self, exc: ApiException | HTTPError, context: Context, since: float) -> None:
        """Wait for a quota or for an API server that does not answer, else fail with what mends it.

        An API server that has just started refuses everybody until it has read the Roles (seen: for about a second).
        """
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        status = exc.status if isinstance(exc, ApiException) else None
        verdict = refused(status, _api_message(exc), self.profile.namespace)
        waits = self.profile.schedule_timeout_seconds if verdict.do is Do.WAIT else 0
        if verdict.row == "forbidden":
            waits = DOUBT_SECONDS
        if time.time() - since < waits:
            self.log.warning("%s %s Asking again in %d s.", verdict.reason, verdict.advice, AGAIN_SECONDS)
            moment = datetime.now(UTC) + timedelta(seconds=AGAIN_SECONDS)
            kwargs = {"since": since}
            self.defer(trigger=DateTimeTrigger(moment), method_name="start_again", kwargs=kwargs)
        raise_failure(self.stage, verdict.failed(self.stage))

    def start_again(self, context: Context, since: float, event: Any = None) -> None:
        """Return from a wait for the API server to take the pod."""
        self._prepare(context)
        self._start(context, since=since)

    def invoke_defer_method(self, last_log_time: Any = None, context: Context | None = None) -> None:
        assert self.pod is not None
        self._follow(self.pod.metadata.name, self.pod.metadata.namespace)

    def _follow(self, name: str, namespace: str) -> None:
        """Wait in the triggerer for a pod's end."""
        self.defer(
            trigger=StageTrigger(
                pod_name=name,
                pod_namespace=namespace,
                kubernetes_conn_id=self.kubernetes_conn_id,
                schedule_timeout=self.profile.schedule_timeout_seconds,
                startup_timeout=self.profile.start_timeout_seconds,
                poll_interval=self.profile.poll_seconds,
                logging_interval=self.profile.log_seconds,
            ),
            method_name="trigger_reentry",
        )

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """The pod has ended, is gone or cannot start: find out what that means, tidy up, go on."""
        self._prepare(context)
        name, namespace = str(event["name"]), str(event["namespace"])
        try:
            self._conclude(context, event, name, namespace)
        except (ApiException, HTTPError) as exc:
            if not _may_pass(exc):
                raise
            # The trigger asks until there is an answer, however long that takes; then the task comes back once more.
            self.log.warning("the cluster's API does not answer (%s); following pod %s again", _api_message(exc), name)
            self._follow(name, namespace)

    def _conclude(self, context: Context, event: Mapping[str, Any], name: str, namespace: str) -> None:
        raw = None if event["status"] == "gone" else self._read(name, namespace)
        store = context.get("task_state_store")
        made = dict(store.get(MADE, default=None) or {}) if store is not None else {}
        verdict = count(self._verdict(event, raw, context), made, self.profile.remakes)
        if verdict.do is Do.REMAKE:
            self._delete(name, namespace)
            made[verdict.row] = made.get(verdict.row, 0) + 1
            if store is not None:
                store.set(MADE, made)
            self.log.warning("pod %s: %s. Making it again (%d so far).", name, verdict.reason, sum(made.values()))
            self._again = verdict.row == SERVERS
            self._start(context, since=time.time())
            return
        result = verdict.result or verdict.failed(self.stage, self._tail(raw, name, namespace))
        self._finish_pod(raw, name, namespace, good=result.succeeded)
        if store is not None:
            store.set(MADE, {})  # a retry counts anew
        self.finish(context, result, made)

    def _verdict(self, event: Mapping[str, Any], raw: Pod | None, context: Context) -> Verdict:
        """What the pod's end means, a lost answer looked for and a release compared with the servers that run now."""
        name, namespace = str(event["name"]), str(event["namespace"])
        if event["status"] == "stuck" and raw is not None and not has_ended(raw):
            said = event["verdict"]
            self._tell_events(name, namespace)
            return Verdict(Do.FAIL, said["row"], said["reason"], Outcome(said["outcome"]), said["advice"])
        verdict = judge(raw, self.stage)
        if verdict.do is Do.READ_BACK:
            verdict = self._read_back(verdict, context)
        missed = self._unproven(verdict.result) if verdict.result is not None else []
        if missed:
            reason = f"{', '.join(missed)} came while the release was at work and is not proven to serve it"
            return Verdict(Do.REMAKE, SERVERS, reason, Outcome.TOOLKIT_ERROR, most=SERVERS_MOST)
        return verdict

    def finish(self, context: Context, result: Result, made: Mapping[str, int]) -> None:
        """Hand on what the stage answered. Raises for any outcome but success."""
        if not result.succeeded:
            raise_failure(self.stage, result)
        context["ti"].xcom_push(key="return_value", value={**compact(result), "pods": dict(made)})

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Asked by Airflow's OpenLineage provider, where it is installed and has a backend."""
        return lineage.of(task_instance, self.stage, self.bind)

    # --- questions to the cluster ---

    def _read(self, name: str, namespace: str) -> Pod | None:
        try:
            pod = self.client.read_namespaced_pod(name, namespace)
        except ApiException as exc:
            if exc.status == 404:
                return None
            raise
        self.pod = pod
        return dict(self.client.api_client.sanitize_for_serialization(pod))

    def _read_back(self, lost: Verdict, context: Context) -> Verdict:
        """Ask a small pod for the result in the stage's folder; `lost` as a failure where there is none."""
        from refit.plan import stage_folder

        stage = self.pod_stage
        failure = Verdict(Do.FAIL, lost.row, lost.reason, lost.outcome)
        if stage.plan is not None:
            index = pods.place(context["ti"].xcom_pull(task_ids=self.bind)["pods"], stage.name)
            folder = str(PurePosixPath(stage.plan).parent / stage_folder(index, stage.name))
        elif stage.request is not None:
            folder = str(stage.request["paths"]["stage"])
        else:
            return failure
        self.log.warning("%s; looking into %s", lost.reason, folder)
        pod = self._as_pod(pods.read_back_pod(stage, folder, self.profile), context, asks=True)
        name, namespace = pod.metadata.name, pod.metadata.namespace
        try:
            self.pod_manager.create_pod(pod=pod)
            until = time.monotonic() + READ_BACK_SECONDS
            while time.monotonic() < until:
                raw = self._read(name, namespace)
                if raw is None:
                    break
                if has_ended(raw):
                    result = result_of(raw, self.stage)
                    return Verdict(Do.ANSWER, "read_back", result=result) if result is not None else failure
                time.sleep(1)
        except ApiException as exc:
            if _may_pass(exc):
                raise
            self.log.warning("the result cannot be read back: %s", _api_message(exc))
        finally:
            self._delete(name, namespace, wait=False)
        return failure

    def _tail(self, raw: Pod | None, name: str, namespace: str) -> list[str]:
        """The last lines of a pod that gave no answer."""
        if raw is None:
            return []
        try:
            text = self.client.read_namespaced_pod_log(
                name, namespace, container=pods.CONTAINER, tail_lines=20, _preload_content=False
            ).data.decode("utf-8", "replace")
        except (ApiException, HTTPError):
            return []
        return list(text.splitlines())

    def _tell_events(self, name: str, namespace: str) -> None:
        try:
            found = self.client.list_namespaced_event(namespace, field_selector=f"involvedObject.name={name}").items
        except (ApiException, HTTPError) as exc:
            self.log.info("the pod's events cannot be read: %s", _api_message(exc))
            return
        for event in found[-10:]:
            self.log.warning("event %s: %s", event.reason, event.message)

    def _finish_pod(self, raw: Pod | None, name: str, namespace: str, *, good: bool) -> None:
        """Delete the pod, or mark it as read where on_finish_action keeps it."""
        if raw is None or self.pod is None:
            return
        keep = self.on_finish_action.value == "keep_pod" or (
            self.on_finish_action.value == "delete_succeeded_pod" and not good
        )
        if keep and (raw.get("status") or {}).get("phase") in (PodPhase.SUCCEEDED, PodPhase.FAILED):
            self.patch_already_checked(self.pod, reraise=False)
            self.log.info("keeping pod %s (on_finish_action)", name)
            return
        self._delete(name, namespace, wait=False)

    def _delete(self, name: str, namespace: str, *, wait: bool = True) -> None:
        """Delete a pod; with `wait` return when it is gone, so that the next one never meets it."""
        until = time.monotonic() + DELETE_SECONDS
        while True:
            try:
                self.client.delete_namespaced_pod(name, namespace)
                if not wait:
                    return
                self.client.read_namespaced_pod(name, namespace)
            except (ApiException, HTTPError) as exc:
                if isinstance(exc, ApiException) and exc.status == 404:
                    return
                if time.monotonic() > until:
                    raise
                self.log.warning("pod %s cannot be deleted yet: %s", name, _api_message(exc))
            if time.monotonic() > until:
                self.log.warning("pod %s is still not gone after %d s", name, DELETE_SECONDS)
                return
            time.sleep(1)


class BindPodOperator(TaoStageOperator):
    """The first stage of a run, in a pod that sees the workspace and the inbox (`refit.bind`).

    XCom: the summary of bind's result, see `operators.stage.BindOperator`; the stages that it names are skipped. The
    arrival that was looked at is noted in an Airflow Variable, because no worker or triggerer mounts the workspace.
    """

    ui_color = "#e3ecf7"

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(stage=names.BIND, **kwargs)
        self.pipeline = pipeline

    def planned(self, context: Mapping[str, Any]) -> tuple[cluster.KubernetesProfile, pods.PodStage]:
        return _first(self.pipeline, context)

    def finish(self, context: Context, result: Result, made: Mapping[str, int]) -> None:
        from operators.arrival import note_taken

        dry = bool(inputs.conf_of(context).get("dry_run"))  # then the same data still starts the run that it would
        if not dry and (result.succeeded or result.outcome is Outcome.BAD_DATA):
            note_taken(context, self.pipeline, result)
        if not result.succeeded:
            raise_failure(self.stage, result)
        finish_bind(context, result)


class PublishPodOperator(TaoStageOperator):
    """Publishes a run in a pod that sees the pipeline's workspace; see `operators.publish.PublishOperator`.

    A run never fails because it could not be published, also where the cluster refuses the pod, and who wants to know
    of a run's end is told of it either way.
    """

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(stage=names.PUBLISH, **kwargs)
        self.pipeline = pipeline

    def planned(self, context: Mapping[str, Any]) -> tuple[cluster.KubernetesProfile, pods.PodStage]:
        from operators.publish import request

        bound = context["ti"].xcom_pull(task_ids=self.bind)
        named = bound.get("cluster") if isinstance(bound, Mapping) else None
        if named is None:  # bind has not come so far
            named = inputs.profile(inputs.pipeline_file(self.pipeline, inputs.settings()))
        profile = kubernetes_profile(str(named))
        nonce = f"{context['ti'].id}"  # the same for each return of this try
        asked = request(context, self.pipeline, cluster.settings_in_pod(profile), nonce=nonce)
        return profile, pods.PodStage.of(asked)

    def execute(self, context: Context) -> None:
        with self._skipped(context):
            super().execute(context)

    def start_again(self, context: Context, since: float, event: Any = None) -> None:
        with self._skipped(context):
            super().start_again(context, since, event)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        with self._skipped(context):
            super().trigger_reentry(context, event)

    @contextlib.contextmanager
    def _skipped(self, context: Context) -> Iterator[None]:
        try:
            yield
        except (StageFailure, inputs.BadInput, ApiException, HTTPError) as exc:
            notify.ended(self.pipeline, context, None)
            raise AirflowSkipException(f"no report was published: {exc}") from None

    def finish(self, context: Context, result: Result, made: Mapping[str, int]) -> None:
        if not result.succeeded:
            raise_failure(self.stage, result)
        context["ti"].xcom_push(key="return_value", value=dict(result.summary))
        notify.remember(self.pipeline, result.summary)
        notify.ended(self.pipeline, context, result.summary.get("told"))


class ApprovePodOperator(TaoStageOperator):
    """The stage `approve` in a pod, then the wait for a person; see `operators.approval.ApproveOperator`."""

    ui_color = "#fdf3d8"

    def finish(self, context: Context, result: Result, made: Mapping[str, int]) -> None:
        super().finish(context, result, made)
        approval.ask(self.task_id, context, result.summary)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """The answer has come, or the time is over; to the release, as this operator's results are not handed on."""
        context["ti"].xcom_push(key="return_value", value=approval.answered(self, event))


class LookPodOperator(TaoStageOperator):
    """Looks at one share of the data before bind, in a pod; the mapped task's index says at which (`refit.bind.look`).

    Which shares there are is the DAG's: this operator stands for any of them, and is itself not mapped.
    """

    ui_color = "#e3ecf7"

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(stage=names.LOOK, **kwargs)
        self.pipeline = pipeline

    def planned(self, context: Mapping[str, Any]) -> tuple[cluster.KubernetesProfile, pods.PodStage]:
        profile, stage = _first(self.pipeline, context, share=max(0, context["ti"].map_index))
        self.stage = stage.name
        return profile, stage


def _first(
    name: str, context: Mapping[str, Any], *, share: int | None = None
) -> tuple[cluster.KubernetesProfile, pods.PodStage]:
    """The cluster and the pod of a run's first stage: bind, or before it the look at a share of the data."""
    from refit.plan import bind_request

    where = inputs.settings()
    pipeline = inputs.read(name, inputs.conf_of(context), where)
    profile = kubernetes_profile(pipeline.profile)
    file = inputs.pipeline_file(name, where)
    request = bind_request(
        file,
        file.read_text(encoding="utf-8"),
        context["run_id"],
        inputs.conf_of(context),
        cluster.settings_in_pod(profile),
        nonce=f"{context['ti'].id}",  # the same for each return of this try, another for the next
        profile=profile.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        share=share,
    )
    return profile, pods.PodStage.of(request)


class LonePodOperator(TaoStageOperator):
    """In a pod what `operators.lone.LoneOperator` runs."""

    def __init__(self, *, lone: LoneOperator, **kwargs: Any) -> None:
        super().__init__(stage=lone.action, **kwargs)
        self._lone = lone

    def planned(self, context: Mapping[str, Any]) -> tuple[cluster.KubernetesProfile, pods.PodStage]:
        from operators.lone import asked

        pipeline = inputs.read(self._lone.pipeline(context), {}, inputs.settings())
        profile = kubernetes_profile(pipeline.profile)
        where = cluster.settings_in_pod(profile)
        return profile, pods.PodStage.of(asked(type(self._lone).request, context, pipeline, profile, where))


def kubernetes_profile(name: str) -> cluster.KubernetesProfile:
    """The named cluster profile. Raises BadInput."""
    try:
        profile = cluster.load(name, inputs.settings())
    except SpecError as exc:
        raise inputs.BadInput(str(exc)) from None
    if not isinstance(profile, cluster.KubernetesProfile):
        raise inputs.BadInput(f"cluster profile {name} is of runtime {profile.runtime}; a pod needs one of kubernetes")
    return profile


def _may_pass(exc: ApiException | HTTPError) -> bool:
    """Whether the API server may answer in a while: it was not reached, or says that it cannot now."""
    return not isinstance(exc, ApiException) or exc.status in BUSY


def _api_message(exc: ApiException | HTTPError) -> str:
    """The API server's own sentence, or why there was none."""
    import json

    if not isinstance(exc, ApiException):
        return str(exc)
    try:
        return str(json.loads(exc.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(exc.reason or exc)
