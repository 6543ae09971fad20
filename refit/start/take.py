"""bind's part: what `start_from` names is found, fetched, looked at and kept by its content.

    <workspace>/<pipeline>/starts/<sha256>/<name>   what trainings begin with; EfficientDet's loader asks for a result's
                                                    own name (`decode_eff` in nvidia_tao_tf2/cv/efficientdet)
                                 .<sha256>/         what is on the way; of a bucket or URL it is gone on with

A training that is gone on with is copied into the stage's own folder once the plan is written; the old one stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refit import files, runner
from refit.command import BadData, BadSpec
from refit.config import ConfigError, Settings
from refit.data import remote
from refit.data.manifest import Named
from refit.data.remote.connection import Connection
from refit.data.remote.fetch import Fetch
from refit.data.snapshot import no_space
from refit.data.source import Kind, Source, parse, same_server
from refit.plan import run_folder
from refit.runtime import report
from refit.specs import SpecError, parse_yaml
from refit.start import foreign
from refit.start import spec as starts
from refit.status import StatusWriter
from refit.triton.ledger import Ledger

_CHECKPOINTS = (".pth", ".hdf5", ".tlt", ".ckzip")
_LOOKED_AT = 200  # of the latest runs, for those whose training could be meant


@dataclass(frozen=True)
class Taken:
    """What a `start_from` was found to be.

    Attributes:
        given: as the pipeline has it.
        value: what takes its place there (`refit.start.spec`); None: there is nothing to begin with yet.
        told: for people, where it came from.
        run: the run whose weights or training it is; None for a file.
        session: the folder with the files of the training that is gone on with.
        before: `value` of the champion's own training, where that began with the champion of then.
    """

    given: str
    value: str | None
    told: str
    run: str | None = None
    session: Path | None = None
    before: tuple[str | None, Path] | None = None


class Starts:
    """Finds what the trainings of one run begin with. Raises BadSpec and BadData, whose text names the key."""

    def __init__(
        self, pipeline: Any, settings: Settings, workspace: Path, login: Connection | None, status: StatusWriter
    ) -> None:
        self._pipeline, self._settings, self._workspace = pipeline, settings, workspace
        self._login, self._status = login, status
        self._mark = uuid.uuid4().hex

    def take(self) -> dict[str, Taken]:
        """Block of the pipeline -> what its training begins with."""
        found = {}
        for block, value in starts.given(self._pipeline.stages):
            key = f"stages.{block}.start_from"
            try:
                found[block] = self._take(block, value, key)
            except BadData as exc:
                raise BadData(f"{key}: {exc}") from None
            except (BadSpec, ConfigError) as exc:
                raise BadSpec(str(exc) if str(exc).startswith(key) else f"{key}: {exc}") from None
            print(f"{block} begins with {found[block].told}")
        return found

    def _take(self, block: str, value: str, key: str) -> Taken:
        start = starts.parse(value)
        if start.kind == "file":
            return Taken(value, self._file(start, key), start.what)
        if start.kind == "champion":
            return self._champion(block, value)
        stage = start.stage or block
        run = self._run(start.what, stage)
        if start.kind == "resume":
            return self._session(run, block, value)
        return Taken(value, self._trained(run, stage), f"the weights of run {run.name}, stage {stage}", run.name)

    # --- other runs ---------------------------------------------------------------------------------------------------

    def _run(self, name: str, stage: str) -> Path:
        """The folder of a run, by its name or by Airflow's id of it."""
        runs = self._workspace / "runs"
        for folder in (runs / run_folder(name), runs / name):
            if (folder / "plan.json").is_file():
                return folder
        latest = reversed(report.runs(self._workspace)[-_LOOKED_AT:])
        known = [p.name for p in itertools.islice((p for p in latest if _has_trained(p, stage)), 5)]
        what = f"the last ones with a {stage} are {', '.join(known)}" if known else f"none has a {stage} yet"
        raise BadSpec(f"there is no run {name!r} of this pipeline; {what}")

    def _stage(self, run: Path, stage: str) -> tuple[dict[str, Any], Path]:
        """The plan of a run, and the folder of one of its trainings, which another run may have made."""
        plan = report.current_plan(run) or {}
        row = next((s for s in plan.get("stages", ()) if s["name"] == stage), None)
        if row is None:
            raise BadSpec(f"run {run.name} has no stage {stage}")
        self._same_network(plan, run)
        return plan, _folder(plan, row)

    def _same_network(self, plan: Mapping[str, Any], run: Path) -> None:
        with contextlib.suppress(SpecError, KeyError, AttributeError):
            before = parse_yaml(plan["pipeline_file"]["text"], run.name).data
            was = before["toolkit"], (before.get("network") or {}).get("name")
            now = self._pipeline.toolkit, self._pipeline.network.name
            if was[0] != now[0] or was[1] not in (None, now[1]):
                raise BadSpec(f"run {run.name} trained {was[1] or was[0]}, and this pipeline trains {now[1]}")

    def _trained(self, run: Path, stage: str) -> str:
        _, folder = self._stage(run, stage)
        result = report.read_json(folder / "result.json") or {}
        if result.get("outcome") != "succeeded":
            how = result.get("outcome") or "not finished"
            raise BadSpec(f"the {stage} of run {run.name} ended as {how}; `resume:{run.name}` goes on with it")
        model = result["outputs"]["model"]
        if wrong := runner.is_whole(str(folder / "out"), {"model": model}):
            raise BadSpec(f"the {stage} of run {run.name} cannot be begun with: {wrong}; name another run")
        path = folder / "out" / model["path"]
        return self._keep(model["sha256"], path.name, lambda aside: files.link_or_copy(path, aside))

    def _champion(self, block: str, value: str) -> Taken:
        model = self._pipeline.release.model or str(self._pipeline.name)
        record = Ledger(self._workspace / "releases").serving(model)
        if record is None:
            return Taken(value, None, "random weights: nothing serves yet that could be begun with")
        run = self._workspace / "runs" / record.run
        if not (run / "plan.json").is_file():
            raise BadSpec(
                f"version {record.version} serves, and its run {record.run} is gone with its checkpoint; name another "
                "run or a file once, then champion again"
            )
        told = f"the champion, version {record.version} of run {run.name}, as it was before pruning"
        plan, folder = self._stage(run, block)
        own = plan.get("start_from", {}).get(block, {})
        before = (own["value"], folder) if own.get("given") == value else None
        return Taken(value, self._trained(run, block), told, run.name, before=before)

    def _session(self, run: Path, block: str, value: str) -> Taken:
        _, folder = self._stage(run, block)
        if _at_work(folder):
            raise BadSpec(f"run {run.name} is at work on {block}; stop it first: mark its task as failed")
        out = folder / "out"
        names = _left(out)
        if not any(name.endswith(_CHECKPOINTS) for name in names):
            how = "it was stopped in its first epoch, or `refit gc` has taken it away"
            raise BadSpec(f"the {block} of run {run.name} has left no checkpoint: {how}; name another run")
        told = f"the {block} of run {run.name}, gone on with"
        digest = hashlib.sha256("".join(f"{files.sha256(out / n)}  {n}\n" for n in names).encode()).hexdigest()
        return Taken(value, starts.session(digest), told, run.name, session=out)

    # --- files --------------------------------------------------------------------------------------------------------

    def _file(self, start: starts.Start, key: str) -> str:
        """Keep a file by its content."""
        source = self._settings.source(start.what, key, single=True)
        if source.kind is Kind.DVC:
            raise BadSpec(f"{start.what}: a .dvc file names data; name the file itself")
        name = f"model{start.ending}"
        if start.sha256 and (self._folder / start.sha256 / name).is_file():
            return self._keep(start.sha256, name, lambda aside: None)
        with no_space(self._workspace):
            own = self._copied(start, source.text) if source.kind is Kind.FOLDER else self._fetched(start, source)
            try:
                digest = files.sha256(own)
                if start.sha256 not in (None, digest):
                    raise BadData(
                        f"{start.what}: has the sha256 {digest}, and not {start.sha256}, which is named for it"
                    )
                foreign.examine(own, start.what)
                return self._keep(digest, name, lambda aside: os.rename(own, aside))
            finally:
                shutil.rmtree(self._aside(start), ignore_errors=True)

    def _copied(self, start: starts.Start, path: str) -> Path:
        """What is looked at is what is kept, whoever writes to the original meanwhile."""
        if not os.path.isfile(path):
            kind = "is a folder; name the file in it" if os.path.isdir(path) else "there is no such file"
            raise BadSpec(f"{start.what}: {kind}")
        self._aside(start).mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(path, self._aside(start) / "file"))

    def _fetched(self, start: starts.Start, source: Source) -> Path:
        far = remote.connect(source, self._login_of(source), self._settings)
        tree, _ = far.files()
        if len(tree.files) != 1:
            raise BadSpec(f"{start.what}: there is no such file")
        (file,) = tree.files.values()
        folder = self._aside(start)
        folder.mkdir(parents=True, exist_ok=True)
        fetch = Fetch(start.what, far, folder / "files", folder / "parts", self._status)
        fetch.run(tree, {file.path: Named(hash=start.sha256)})
        return folder / "files" / file.path

    def _login_of(self, source: Source) -> Connection | None:
        """The data's login, where the data come from there too: no other host gets to see it."""
        return self._login if same_server(source, parse(self._pipeline.dataset.source)) else None

    def _aside(self, start: starts.Start) -> Path:
        return self._folder / f".{start.sha256 or self._mark}"

    @property
    def _folder(self) -> Path:
        return self._workspace / starts.FOLDER

    def _keep(self, digest: str, name: str, put: Callable[[Path], object]) -> str:
        """Keep a file, which `put` brings to a place, unless it is there; returns what stands for it."""
        folder = self._folder / digest
        target = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # `refit gc` spares what was touched lately
        if not target.is_file():
            aside = folder / f".{name}.tmp-{uuid.uuid4().hex}"
            try:
                put(aside)
                os.replace(aside, target)
            finally:
                aside.unlink(missing_ok=True)
            files.sync_folder(folder)
        return starts.taken(f"{digest}/{name}")


def _folder(plan: Mapping[str, Any], row: Mapping[str, Any]) -> Path:
    """Where a stage of a plan has worked, in this run or in the one whose result it took over."""
    return Path(plan["reused"].get(row["name"]) or row["paths"]["stage"])


def _has_trained(run: Path, stage: str) -> bool:
    """Whether a training of this run could be begun or gone on with."""
    plan = report.current_plan(run) or {}
    rows = (s for s in plan.get("stages", ()) if s["name"] == stage)
    return any(name.endswith(_CHECKPOINTS) for row in rows for name in _left(_folder(plan, row) / "out"))


def _at_work(stage: Path) -> bool:
    """Whether a runner holds a stage's folder (docs/contracts.md, "Workspace")."""
    try:
        descriptor = os.open(stage.with_name(f".{stage.name}.lock"), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return (stage / "runner.pid").exists() and not (stage / "result.json").exists()
    finally:
        os.close(descriptor)
    return False


def lay(session: Path, request: Mapping[str, Any]) -> None:
    """Put the files of an old training into a stage's folder, as an unfinished attempt of its key: the runner goes on
    with it. What lies there of the same key has gone on already."""
    folder = Path(request["paths"]["stage"])
    if folder.exists():
        known = report.read_json(folder / "result.json") or report.read_json(folder / "request.json") or {}
        if known.get("key") == request["key"]:
            return
        number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.{n}").exists())
        folder.rename(folder.with_name(f"{folder.name}.{number}"))
    aside = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex}")
    try:
        with no_space(folder.parent):
            # Without their modes: TAO's root writes here next, by the group that all pods share.
            for name in _left(session):
                (aside / "out" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(session / name, aside / "out" / name)
            files.write_json(aside / "request.json", dict(request))
        aside.rename(folder)
        files.sync_folder(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _left(out: Path) -> list[str]:
    """The files that a training has left. A link counts as the file that it leads to, as `*_latest.pth` does, from
    which TAO's PyTorch networks go on; one that leads nowhere, or out of the training's folder, does not."""
    root = out.resolve()
    names = runner.folder_files(str(out)) if out.is_dir() else []
    return [n for n in names if (file := (out / n).resolve()).is_file() and file.is_relative_to(root)]


def named(taken: Mapping[str, Taken]) -> dict[str, dict[str, str | None]]:
    """What plan.json says of it."""
    return {block: {"given": t.given, "value": t.value, "from": t.told, "run": t.run} for block, t in taken.items()}


def applied(pipeline: Any, taken: Mapping[str, Taken]) -> Any:
    """The pipeline with what was found in the place of what it says."""
    from refit.toolkits.smoke import changed

    return changed(pipeline, {f"stages.{block}.start_from": t.value for block, t in taken.items()})
