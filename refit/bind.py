"""The first stage of every run: check the params, take the data in, write the plan, name what is reused.

Runs in the tools environment, which sees the workspace: `python -m refit.bind bind -e bind.yaml -r out` (the request
is made by `refit.plan.bind_request`). Nothing of the run exists in the workspace before the params are good.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from refit import cluster, collect, files, runner, toolkits
from refit import pipeline as pipelines
from refit import plan as plans
from refit.command import Action, BadData, BadSpec, StageError, main
from refit.config import ConfigError, Settings
from refit.data import arrival, provenance
from refit.data import remote as remotes
from refit.data.faults import Fault
from refit.data.remote.connection import Connection
from refit.data.settings import Dataset
from refit.data.source import Kind, Source
from refit.edge.specs import COMPILER
from refit.publish import place
from refit.runtime import pod, report
from refit.runtime.local import absent
from refit.specs import Document, Spec, SpecError, parse_yaml
from refit.start import spec as starts
from refit.status import StatusWriter
from refit.toolkits import edge
from refit.toolkits.approval import APPROVE
from refit.toolkits.base import Stage
from refit.toolkits.chain import WATCH, served_by
from refit.version import version

if TYPE_CHECKING:
    from refit.start.take import Taken

FREE_BYTES = 500 * 2**20  # below it a run cannot even begin
REPORT, ISSUES, SHARE = "report.html", "issues.jsonl", "share"
NOT_ITS_OWN = frozenset({"source_changed", "base_missing"})  # faults for which an inbox's data is not put aside
WARNINGS_SHOWN = 5  # in the log; issues.jsonl has all


class BindSpec(Spec):
    """What `refit.plan.bind_request` hands over."""

    file: str = Field(description="the pipeline file, for messages")
    text: str = Field(description="its content when the run began")
    name: str
    run_id: str
    conf: dict[str, Any] = Field(default_factory=dict, description="params of a manual run")
    data: str | None = Field(None, description="a folder in place of dataset.source")
    snapshot: str | None = Field(None, description="a snapshot that is taken as it is, in place of the source")
    attached: dict[str, str] = Field(default_factory=dict, description="files that it names -> their content then")
    profile: dict[str, Any] | None = Field(None, description="the cluster profile, where its file is not at hand")
    share: int | None = Field(None, ge=0, description="of `look`: which of dataset.shards")
    workspace: str = Field(description="the pipeline's folder in the workspace")
    run: str = Field(description="the run's folder")


@dataclass(frozen=True)
class Data:
    """The data set of this run. `faults`, `evaluation` and `changes` are what this run found out: a snapshot that was
    there before tells of the run that made it."""

    snapshot: Path
    faults: Sequence[Fault]
    evaluation: Mapping[str, Any]
    changes: Mapping[str, int] = field(default_factory=dict)


def bind(spec: BindSpec, out: Path, status: StatusWriter) -> None:
    """Write `<run>/plan.json` (never over another plan) and out/bind.json, out/summary.json."""
    settings = Settings.from_env()
    doc = parse_yaml(spec.text, _short(spec.file, settings))
    pipeline, changed, switches = _pipeline(spec, doc)
    profile = _profile(spec, pipeline, settings)
    workspace = Path(spec.workspace)
    _check_space(workspace)

    def fits(snapshot: Path) -> None:
        """Hold the stages' specs against a data set (preflight). Raises SpecError."""
        about = json.loads((snapshot / "dataset.json").read_text(encoding="utf-8"))
        faults = toolkits.get(pipeline.toolkit).preflight(pipeline, profile, about)
        problems = [pipelines.of_param(doc.told(fault), changed) for fault in faults]
        if problems:
            raise SpecError(problems)

    with collect.binding(workspace):  # no `refit gc` takes away what the plan is going to name
        dry = switches.get(plans.DRY_RUN, False)
        begun = _begun(pipeline, settings, workspace, status)
        data = _take_data(pipeline, spec, settings, workspace, out, status, fits, dry)
        dataset = json.loads((data.snapshot / "dataset.json").read_text(encoding="utf-8"))
        measured = dataset["evaluation"] = dict(data.evaluation)
        served = _evaluation_served(workspace, pipeline)
        if served not in (None, measured.get("version")):
            measured["served"] = served
        bound = plans.Bound(
            run=Path(spec.run).name,
            workspace=workspace,
            snapshot=data.snapshot,
            fingerprint=dataset["fingerprint"],
            code=lambda package: code_version(settings.repository, package),
            environments=_environments(pipeline, profile, settings),
            find=_finder(workspace, pipeline, profile, reuse=switches.get("reuse", True)),
            dataset=dataset,
            champion=_champion(pipeline, profile, workspace),
            off=frozenset(() if switches.get("release", True) else ("release", WATCH)),
        )
        plan = _planned(pipeline, profile, bound, begun)
        plan |= {
            "run_id": spec.run_id,
            "conf": spec.conf,
            "pipeline_file": {"name": doc.file, "text": spec.text, "attached": spec.attached},
            "evaluation": measured,
            "made_by": made_by(settings, bound.environments),
        }
        if dry:
            plan[plans.DRY_RUN] = True
        if profile.prices is not None:
            plan["prices"] = profile.prices.model_dump()
        path = _write_plan(Path(spec.run), plan)
        todo = [s["name"] for s in plans.tasks(plan)]
        if not dry:
            _lay_sessions(plan, begun, todo)
    if not dry:
        with contextlib.suppress(OSError):  # only people look at it
            place.announce(workspace, plan)
    files.write_json(out / "bind.json", {"plan": str(path), "run": todo, "reused": plan["reused"]})
    told: dict[str, Any] = {"images": sum(dataset["splits"].values())}
    if data.changes:
        told["changes"] = dict(data.changes)
    told["report"] = f"{out.parent.name}/{out.name}/{REPORT}"
    in_pods = isinstance(profile, cluster.KubernetesProfile)
    files.write_json(out / "summary.json", summary(plan, path, told, pipeline.profile if in_pods else None))
    print(f"report on the data: {out / REPORT}")
    message = f"{len(todo)} stages to run, {len(plan['reused'])} reused"
    if dry:
        message = f"dry run, no stage is started: {message}"
    print(message + (f": {', '.join(todo)}" if todo else ""))
    warnings = _warnings(data.faults)
    print("".join(f"warning: {line}\n" for line in warnings[:WARNINGS_SHOWN]), end="")
    if warnings:
        print(f"warnings about the data: {len(warnings)}, all in {out / ISSUES}")
        message += f"; warnings about the data: {len(warnings)}"
    status.success(message, kpi={"stages": len(todo), "reused": len(plan["reused"]), "images": told["images"]})


def summary(plan: Mapping[str, Any], path: Path, told: Mapping[str, Any], in_cluster: str | None) -> dict[str, Any]:
    """What Airflow knows of a run: the plan, which stages to skip, what is `told` of the data, and where the stages run
    in a cluster, their pods. Raises BadSpec where a pod's answer has no room for it."""
    dry = bool(plan.get(plans.DRY_RUN))
    todo = () if dry else [s["name"] for s in plans.tasks(plan)]
    made = {
        "plan": str(path),
        "skip": [s["name"] for s in plan["stages"] if s["name"] not in todo],
        "fingerprint": plan["fingerprint"],
        **told,
        **({plans.DRY_RUN: True} if dry else {}),
    }
    if in_cluster is not None:
        made |= {"pods": pod.pack(plan["stages"]), "cluster": in_cluster, "model": plan["stages"][0]["model"]}
    size = len(runner.encode(made))
    if size > runner.SUMMARY_BYTES:
        raise BadSpec(
            f"what Airflow must know of this run's {len(plan['stages'])} stages has {size:,} bytes, and a pod's answer "
            f"holds {runner.SUMMARY_BYTES:,}; name fewer stages in resources.stages, or give them the same"
        )
    return made


def _warnings(found: Iterable[Fault]) -> list[str]:
    """What the data set lost, or had changed: too little to stop the run, and nothing that may go unseen."""
    return [f"{fault}; {fault.advice}" for fault in found if fault.severity == "warning"]


def _begun(pipeline: Any, settings: Settings, workspace: Path, status: StatusWriter) -> Mapping[str, Taken]:
    """What the trainings begin with, where the pipeline says so (`start_from`); a teacher is looked at."""
    if distill := getattr(pipeline.stages, "distill", None):
        _look_at_teacher(workspace / distill.teacher)
    if not any(starts.given(pipeline.stages)):
        return {}
    from refit.start import take

    name = pipeline.dataset.connection
    login = Connection.read(name, os.environ.get(plans.CONNECTION, "")) if name is not None else None
    return take.Starts(pipeline, settings, workspace, login, status).take()


def _look_at_teacher(path: Path) -> None:
    """Raises BadData for a checkpoint that holds code: TAO's loader would run it. One that is not there, TAO names."""
    if path.is_file():
        from refit.start import foreign

        foreign.examine_pretrained(path, f"stages.distill.teacher: {path}")


def _planned(pipeline: Any, profile: cluster.Profile, bound: plans.Bound, begun: Mapping[str, Taken]) -> dict[str, Any]:
    """The plan with what the trainings begin with. Where the champion itself began with the champion of then, and
    neither data nor settings have changed since, its training is reused: nothing is learned twice for having been
    released."""
    if not begun:
        return plans.make_plan(pipeline, profile, bound)
    from refit.start import take

    def plan(found: Mapping[str, Taken]) -> dict[str, Any]:
        made = plans.make_plan(take.applied(pipeline, found), profile, bound)
        return {**made, "start_from": take.named(found)}

    for block, start in begun.items():
        if start.before is not None:
            value, folder = start.before
            same = plan({**begun, block: replace(start, value=value)})
            if same["reused"].get(block) == str(folder):
                return same
    return plan(begun)


def _lay_sessions(plan: Mapping[str, Any], begun: Mapping[str, Taken], todo: Sequence[str]) -> None:
    """The files of trainings that are gone on with, for the stages that do."""
    for request in plan["stages"]:
        start = begun.get(request["name"])
        if start is not None and start.session is not None and request["name"] in todo:
            from refit.start import take

            take.lay(start.session, request)


def _profile(spec: BindSpec, pipeline: Any, settings: Settings) -> cluster.Profile:
    if spec.profile is None:
        return cluster.of_pipeline(pipeline, settings)
    return cluster.from_data(spec.profile, Document(f"cluster profile {pipeline.profile}", "", spec.profile, {}))


def _environments(pipeline: Any, profile: cluster.Profile, settings: Settings) -> dict[str, str]:
    """What identifies each environment: the digest of a pinned image, else its lock. A compiler for Coral that came to
    this machine later makes that stage run again."""
    block = getattr(pipeline, "edge", None)
    optional = edge.environments(block)
    # They are no part of an ordinary installation: what is missing is known before the training, not after it.
    if isinstance(profile, cluster.LocalProfile) and (told := absent(optional)):
        raise BadSpec(f"edge: {told}")
    if isinstance(profile, cluster.KubernetesProfile):
        missing = [f"images.{name}" for name in optional if name not in profile.images]
        if missing:
            raise BadSpec(f"edge: cluster profile {pipeline.profile} has no image for it; add {', '.join(missing)}")
    found = {name: environment_digest(settings, name) for name in ("tools", "cpu", "triton", *optional)}
    if isinstance(profile, cluster.LocalProfile) and block and block.coral and (compiler := shutil.which(COMPILER)):
        found["coral"] = hashlib.sha256(f"{found['tensorflow']} {files.sha256(Path(compiler))}".encode()).hexdigest()
    if isinstance(profile, cluster.KubernetesProfile):
        found |= {name: image.digest for name, image in profile.images.items() if image.digest}
    return found


def made_by(settings: Settings, environments: Mapping[str, str]) -> dict[str, Any]:
    """Which Refit makes a run's results: version, commit where it is a work tree, its sources, the environments."""
    from refit.data import provenance

    revision = provenance.of(settings.repository).get("git_commit")
    code = code_version(settings.repository, "refit")
    return {"refit": version(), "revision": revision, "code": code, "environments": dict(environments)}


def _pipeline(spec: BindSpec, doc: Document) -> tuple[Any, dict[str, Any], dict[str, bool]]:
    """The pipeline with the run's conf applied, what that changed by dotted path, and the run's switches."""
    unchanged = pipelines.from_document(doc, spec.name, attached=spec.attached)
    try:
        changed, switches = plans.overrides(unchanged, spec.conf)
    except plans.ConfError as exc:
        raise BadSpec(f"conf of this run: {exc}") from None
    if spec.data is not None:
        changed["dataset.source"] = spec.data
        manifest = unchanged.dataset.arrival.manifest
        if manifest is not None and not (Path(spec.data) / manifest).exists():
            changed["dataset.arrival.manifest"] = None  # of the inbox: whoever names a folder by hand knows it whole
    return pipelines.from_document(doc, spec.name, changed, spec.attached), changed, switches


def _take_data(
    pipeline: Any,
    spec: BindSpec,
    settings: Settings,
    workspace: Path,
    out: Path,
    status: StatusWriter,
    fits: Callable[[Path], None],
    dry: bool,
) -> Data:
    """Ingest what lies in the source, and report on it; with an empty source, the snapshot that was taken last.

    `fits` raises SpecError for a snapshot that the stages cannot work with: it is kept, but nothing was evaluated. In a
    dry run nothing counts as taken or evaluated afterwards: the same data still starts the run that it would start.
    """
    from refit.data import faults, ingest  # numpy and OpenCV only now: a bad param is refused without them
    from refit.data import snapshot as snapshots
    from refit.data.remote import take

    dataset: Dataset = pipeline.dataset
    rule = dataset.arrival
    if spec.snapshot is not None:
        pinned = _pinned(pipeline, spec, Path(spec.snapshot), out)
        fits(pinned.snapshot)
        return pinned
    came = _came(dataset, settings, workspace)
    source, listing, before = came.source, came.listing, came.before
    if not listing.files:
        if before is None:
            raise BadData(f"{source}: there is no data; put a complete data set there, or name another dataset.source")
        fits(before)
        print(f"{source} is empty: using the data set taken last, {before.name[:12]}")
        return _again(pipeline, spec, before, workspace, out)
    if listing.lacks:
        raise BadData(
            f"{source}: {listing.lacks}; copy what is missing, or correct {rule.manifest} (dataset.arrival.manifest)"
        )
    if came.known and before is not None:
        print(f"{source}: nothing has changed since run {came.last}; it is not fetched again")
        fits(before)
        data = _again(pipeline, spec, before, workspace, out)
        if not dry:
            arrival.record_taken(workspace, listing, fingerprint=before.name, run=spec.run_id, outcome="taken")
        return data
    status.running(f"Reading {listing.files} files from {source}")
    origin = {"source": source.text, "arrival": listing.signature, "how": came.how, **provenance.of_source(source)}

    def accept(made: snapshots.Snapshot) -> None:
        _report(pipeline, spec, made.path, made.faults, before, out, source.text)
        try:
            fits(made.path)
        except SpecError:  # the data is good, and not new when it is looked at again
            name = made.fingerprint
            if not dry:
                arrival.record_taken(workspace, listing, fingerprint=name, run=spec.run_id, outcome="taken")
            raise

    try:
        with take.at_hand(source, came.remote, listing, dataset, workspace, status) as hand:
            taken = ingest.ingest(
                hand.folder,
                dataset.settings(),
                workspace,
                origin=origin,
                leave=_no_data(dataset),
                parts=_parts(pipeline, spec),
                tags=hand.tags,
                accept=accept,
                hold=not dry,
            )
            hand.snapshot = Path(taken.path)
    except faults.BadData as exc:
        reason = str(exc)
        if dry:
            raise BadData(reason) from None
        arrival.record_taken(workspace, listing, fingerprint=None, run=spec.run_id, outcome="bad_data", reason=reason)
        if rule.quarantine and spec.data is None and NOT_ITS_OWN.isdisjoint(f.code for f in exc.faults):
            reason += f". It was moved to {_put_aside(Path(source.text), listing, reason)}"
        raise BadData(reason) from None
    if not dry:
        arrival.record_taken(workspace, listing, fingerprint=taken.fingerprint, run=spec.run_id, outcome="taken")
    if taken.changes:
        print("images since the last data set: " + ", ".join(f"{n} {what}" for what, n in taken.changes.items()))
    return Data(taken.path, taken.faults, taken.evaluation, taken.changes)


@dataclass(frozen=True)
class _Came:
    """What lies in the source now, against what was taken last: `before` that snapshot, `last` its run. `known`: it was
    made of this very arrival in the same way (`how`), so nothing need be fetched."""

    source: Source
    remote: remotes.Remote | None
    listing: arrival.Listing
    before: Path | None
    last: str
    how: str
    known: bool


def _came(dataset: Dataset, settings: Settings, workspace: Path) -> _Came:
    try:
        source = settings.source(dataset.source)
    except ConfigError as exc:
        raise BadSpec(str(exc)) from None
    remote = _remote(source, dataset, settings)
    rule = dataset.arrival
    listing = arrival.listing(source.text, rule=rule) if remote is None else remotes.listing(remote, rule=rule)
    last = arrival.last_taken(workspace)
    before = _snapshot_of(last, workspace)
    how = _how(dataset)
    fetched = remote is not None and listing.files > 0 and not listing.lacks
    known = fetched and before is not None and _made_of(before, listing.signature, how, dataset, workspace)
    return _Came(source, remote, listing, before, last.run if last else "", how, known)


def _no_data(dataset: Dataset) -> list[str]:
    """The files of a source that say when it is complete."""
    return [name for name in (dataset.arrival.marker, dataset.arrival.manifest) if name]


def look(spec: BindSpec, out: Path, status: StatusWriter) -> None:
    """Look at one share of the data before bind, which puts the shares together. What it cannot look at is told by
    bind, which then looks at the whole: bind notes what is refused."""
    settings = Settings.from_env()
    pipeline, _, _ = _pipeline(spec, parse_yaml(spec.text, _short(spec.file, settings)))
    workspace, dataset = Path(spec.workspace), pipeline.dataset
    _check_space(workspace)
    from refit.data import examine, faults, ingest
    from refit.data.remote import take

    came = _came(dataset, settings, workspace)
    images = None
    if came.listing.files and not came.listing.lacks and not came.known:
        share = examine.Share(spec.share or 0, dataset.shards)
        status.running(f"Reading share {share.index + 1} of {share.count} of {came.source}")
        try:
            with collect.binding(workspace):
                hand = take.beforehand(came.source, came.remote, came.listing, dataset, workspace, status)
                read = hand.folder, dataset.settings(), workspace, share, out / SHARE
                images = ingest.look_share(*read, leave=_no_data(dataset), tags=hand.tags)
        except faults.BadData as exc:
            print(f"{exc}; bind looks at the whole")
    files.write_json(out / "look.json", {"images": images})
    message = "nothing to look at" if images is None else f"{images} images"
    print(message)
    status.success(message)


def _parts(pipeline: Any, spec: BindSpec) -> list[Path]:
    """What the shares of this run have left; none where one of them has not."""
    shards = pipeline.dataset.shards
    if shards == 1:
        return []
    if pipeline.runtime == "local":
        print(f"dataset.shards: {shards} is for runtime: kubernetes; here bind uses all cores")
        return []
    found = [Path(spec.run) / plans.stage_folder(0, plans.stage_name(plans.LOOK, i)) for i in range(shards)]
    parts = [folder / "out" / SHARE for folder in found]
    return parts if all(part.exists() for part in parts) else []


def _pinned(pipeline: Any, spec: BindSpec, path: Path, out: Path) -> Data:
    """A snapshot that is named itself, with its split and its evaluation set as they are. Raises BadData."""
    from refit.data import snapshot
    from refit.data.report import contents

    try:
        found = snapshot.open_snapshot(path)
        there = snapshot.fingerprint(snapshot.read_annotations(path), found.classes)
    except (OSError, ValueError, KeyError) as exc:
        raise BadData(f"{path}: cannot be read as a snapshot ({exc}); `refit reproduce` writes one") from None
    if there != found.fingerprint:
        raise BadData(f"{path}: its annotations have the fingerprint {there}, not {found.fingerprint}: it was changed")
    if list(found.classes) != list(pipeline.dataset.classes):
        raise BadData(f"{path}: has the classes {list(found.classes)}, the pipeline {pipeline.dataset.classes}")
    faults = contents.issues(path)
    _report(pipeline, spec, path, faults, None, out)
    about = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    return Data(path, faults, about.get("evaluation") or {})


def _again(pipeline: Any, spec: BindSpec, snapshot: Path, workspace: Path, out: Path) -> Data:
    """The data set taken last, where nothing new is to be taken. Raises BadData."""
    from refit.data import evaluation
    from refit.data.report import contents
    from refit.data.snapshot import open_snapshot

    try:
        open_snapshot(snapshot)
    except (OSError, ValueError) as exc:
        raise BadData(
            f"{pipeline.dataset.source}: the data set taken last cannot be used: {exc}; put the data there again, and "
            "with mode: append take the whole of it once with mode: replace"
        ) from None
    about = json.loads((snapshot / "dataset.json").read_text(encoding="utf-8")).get("evaluation", {})
    if pipeline.dataset.split.evaluation == "frozen":
        about = evaluation.read(workspace / evaluation.FOLDER).told(about, snapshot.name)
    found = contents.issues(snapshot)
    _report(pipeline, spec, snapshot, found, None, out)
    return Data(snapshot, found, about)


def _evaluation_served(workspace: Path, pipeline: Any) -> str | None:
    """The version of the evaluation set with which the model that serves was judged; None where it is not known."""
    from refit.triton.errors import RepositoryError
    from refit.triton.ledger import Ledger

    with contextlib.suppress(RepositoryError):  # the release says what is wrong with it
        model = pipeline.release.model or pipeline.name if pipeline.release else None
        serving = Ledger(workspace / "releases").serving(model) if model else None
        plan = report.current_plan(workspace / "runs" / serving.run) if serving else None
        about = report.read_json(workspace / "datasets" / plan["fingerprint"] / "dataset.json") if plan else None
        version: str | None = (about or {}).get("evaluation", {}).get("version")
        return version
    return None


def _remote(source: Source, dataset: Dataset, settings: Settings) -> remotes.Remote | None:
    """The remote source, with the login that the runner has put into CONNECTION; None for a folder."""
    if source.kind is Kind.FOLDER:
        return None
    login = None
    if dataset.connection is not None:
        login = Connection.read(dataset.connection, os.environ.pop(plans.CONNECTION, ""))
    return remotes.connect(source, login, settings, dataset.dvc_remote)


def _snapshot_of(taken: arrival.Taken | None, workspace: Path) -> Path | None:
    """The snapshot of the last good arrival, where it is (still) there."""
    snapshot = workspace / "datasets" / taken.fingerprint if taken and taken.fingerprint else None
    return snapshot if snapshot is not None and (snapshot / "dataset.json").exists() else None


def _how(dataset: Dataset) -> str:
    """What decides, beside the data, what a snapshot of it is: the pipeline's settings and Refit's own code."""
    from refit.data import code

    read = json.dumps(dataset.settings().model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(f"{read} {code.version()}".encode()).hexdigest()


def _made_of(snapshot: Path, signature: str, how: str, dataset: Dataset, workspace: Path) -> bool:
    """Whether a snapshot was made of this very arrival, in the same way, and with today's evaluation set."""
    from refit.data import evaluation

    about = json.loads((snapshot / "dataset.json").read_text(encoding="utf-8"))
    provenance = about["provenance"]
    if (provenance.get("arrival"), provenance.get("how")) != (signature, how):
        return False
    if dataset.split.evaluation == "fresh":
        return True
    version: str = about.get("evaluation", {}).get("version", "")
    return evaluation.read(workspace / evaluation.FOLDER).version == version


def _put_aside(inbox: Path, listing: arrival.Listing, reason: str) -> Path:
    """Move what lies in an inbox to `../refused/<signature>/`, with reason.txt; the inbox itself stays."""
    aside = inbox.parent / "refused" / listing.signature[:16]
    try:
        aside.mkdir(parents=True, exist_ok=True)
        for entry in list(inbox.iterdir()):
            os.rename(entry, aside / entry.name)
        files.write_text(aside / "reason.txt", reason + "\n")
    except OSError as exc:
        raise StageError(f"{reason}. It could not be moved to {aside} (arrival.quarantine): {exc.strerror}") from None
    return aside


def _report(
    pipeline: Any,
    spec: BindSpec,
    snapshot: Path,
    known: Sequence[Fault],
    before: Path | None,
    out: Path,
    source: str | None = None,
) -> None:
    """Write the report on a snapshot, against the one taken before, and issues.jsonl, which has all that is known.

    `source` is where its data was taken from just now; the snapshot may have been made earlier, from elsewhere. Raises
    BadData where the pipeline makes a change since then, or a misfit of the network, an error.
    """
    from refit.data import faults
    from refit.data.report import contents, page
    from refit.data.snapshot import write_lines

    about = {
        "title": spec.name,
        "network": toolkits.get(pipeline.toolkit).network_input(pipeline),
        "severity": pipeline.dataset.severity,
        "faults": known,
        "source": source,
    }
    write_lines(out / ISSUES, (fault.as_json() for fault in known))
    try:
        found = contents.of_snapshot(snapshot, previous=before, **about)
    except (OSError, ValueError, KeyError) as exc:
        if before is None:
            raise
        print(f"the data set taken last, {before.name[:12]}, cannot be compared with: {exc}")
        found = contents.of_snapshot(snapshot, **about)
    files.write_text(out / REPORT, page.write(found))
    files.write_json(out / "report.json", found.as_json())
    for fault in found.news:
        if fault.severity != "info":
            print(f"{fault.severity}: {fault}; {fault.advice}")
    if not found.good:
        raise faults.BadData(pipeline.dataset.source, found.news, out / REPORT)


def _finder(workspace: Path, pipeline: Any, profile: cluster.Profile, *, reuse: bool) -> Any:
    def find(stage: Stage, key: str) -> Path | None:
        if stage.name == APPROVE:  # each run asks anew
            return None
        folder = good_result(workspace, key) if reuse else None
        if folder is not None and stage.action == "release":
            from refit.triton.ledger import Ledger
            from refit.triton.serving import still_serving

            release = pipeline.release
            target, _ = served_by(release, profile)
            signed_in = Ledger(workspace / "releases") if release.signing else None
            if not still_serving(folder / "out" / "release.json", url=target.url, signed_in=signed_in):
                return None
        return folder

    return find


def _champion(pipeline: Any, profile: cluster.Profile, workspace: Path) -> Path | None:
    """The files of the version that serves, by this pipeline's own ledger; None where they cannot be compared."""
    from refit.triton.ledger import Ledger
    from refit.triton.serving import is_other

    if pipeline.release is None or pipeline.gates.champion is None:
        return None
    ledger = Ledger(workspace / "releases")
    record = ledger.serving(pipeline.release.model or str(pipeline.name))
    if record is None or not ledger.model(record.version).is_dir():
        return None
    if is_other(record, served_by(pipeline.release, profile)[0].url):
        print(
            f"warning: Triton does not serve version {record.version} as it was released, with which the new model is "
            "compared: somebody changed it, or it is going down or coming up; `refit reconcile` says what differs"
        )
    kept = ledger.model(record.version)
    known = [str(name) for name in record.sidecar.get("classes", ())]
    toolkit = toolkits.get(pipeline.toolkit)
    if why := toolkit.comparable(pipeline, {path.name for path in kept.iterdir()}, known):
        print(f"warning: the new model is not compared with version {record.version}, which serves: {why}")
        return None
    return kept


def good_result(workspace: Path, key: str) -> Path | None:
    """The folder of an earlier good result for a key, the sha256 of result.json and of every artefact checked; None
    where there is none."""
    pointer = workspace / "keys" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(pointer.read_text(encoding="utf-8"))
        folder = Path(known["stage_dir"])
        data = (folder / "result.json").read_bytes()
        result = json.loads(data)
        whole = hashlib.sha256(data).hexdigest() == known["result_sha256"]
        if whole and result["outcome"] == "succeeded" and result["key"] == key:
            return folder if not runner.is_whole(str(folder / "out"), result["outputs"]) else None
    return None


def _write_plan(run: Path, plan: Mapping[str, Any]) -> Path:
    """plan.json, or plan.2.json ... where a cleared run already has another one. An equal one is kept."""
    run.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = run / ("plan.json" if number == 1 else f"plan.{number}.json")
        if not path.exists():
            files.write_json(path, plan)
            return path
        if json.loads(path.read_text(encoding="utf-8")) == plan:
            return path
    raise StageError(f"{run}: holds 1,000 plans; start a new run")


def _check_space(workspace: Path) -> None:
    workspace.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workspace).free
    if free < FREE_BYTES:
        raise StageError(
            f"No space left on device: {workspace} has {free // 2**20} MiB free, at least {FREE_BYTES // 2**20} are "
            "needed; remove old runs or move the workspace (REFIT_WORKSPACE)"
        )


def environment_digest(settings: Settings, name: str) -> str:
    """What identifies an environment on its own: its lock."""
    lock = settings.repository / "images" / name / "requirements.txt"
    try:
        return files.sha256(lock)
    except OSError as exc:
        raise StageError(f"{lock}: the lock of environment {name} cannot be read: {exc.strerror}") from None


SOURCES = frozenset({".py", ".js", ".html"})  # what decides results; the last two of the page of refit.edge


@lru_cache(maxsize=64)
def code_version(repository: Path, package: str) -> str:
    """sha256 over the source files of a package (or of one module), names included."""
    root = repository / package
    sources = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in SOURCES)
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.relative_to(repository)} {files.sha256(source)}\n".encode())
    return digest.hexdigest()


def _short(path: str, settings: Settings) -> str:
    """The path as a person would write it: from the repository's root where it lies below it."""
    with contextlib.suppress(ValueError):
        return str(Path(path).relative_to(settings.repository))
    return path


ACTIONS = {
    "bind": Action("refit.bind:BindSpec", "refit.bind:bind", "check params, take the data in, write the plan"),
    "look": Action("refit.bind:BindSpec", "refit.bind:look", "look at one share of the data, for bind"),
}

if __name__ == "__main__":
    sys.exit(main("refit.bind", ACTIONS))
