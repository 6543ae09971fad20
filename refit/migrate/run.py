"""From old files to a pipeline file, its spec files, and a list of what a person must know."""

from __future__ import annotations

import argparse
import io
import os
import posixpath
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from urllib.parse import urljoin

from refit import cluster, toolkits
from refit import pipeline as pipelines
from refit.config import ConfigError, Settings
from refit.doctor import lacking
from refit.files import sync_folder
from refit.migrate import compose, fetch, kubeflow, mounts, recognise
from refit.migrate.cli import ROLES, Role
from refit.migrate.compose import Made, Old
from refit.migrate.fetch import GIB, Fetcher, ImportFault
from refit.migrate.kubeflow import Kubeflow
from refit.migrate.mounts import Mounts
from refit.migrate.recognise import Other, Spec
from refit.migrate.secrets import Vault, shown
from refit.specs import SpecError, did_you_mean, parse_yaml
from refit.tao import networks
from refit.toolkits.tao import TaoChain

GOOD, BAD_INPUT = 0, 2


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Write the files and say what was found; 2: nothing was written."""
    vault = Vault()
    try:
        return _run(args, settings, vault)
    except SpecError as exc:
        for problem in exc.problems:
            _say(f"error: {problem}", vault, sys.stderr)
    except RecursionError:
        _say("error: a file is nested too deeply to be a spec; nothing was written", vault, sys.stderr)
    except (ImportFault, ConfigError) as exc:
        _say(f"error: {exc}", vault, sys.stderr)
    except OSError as exc:
        _say(
            f"error: {exc.filename or ''}: {exc.strerror or type(exc).__name__}; nothing was written", vault, sys.stderr
        )
    return BAD_INPUT


def _run(args: argparse.Namespace, settings: Settings, vault: Vault) -> int:
    fetcher = Fetcher(vault, allow_http=args.allow_http)
    found = _Found(fetcher, vault, args.network or "")
    for source in args.sources:
        found.take(source)
    found.follow()
    old = found.old(args)
    _check_free(args.into, old.name, force=args.force)
    old.data = _data(args, old, fetcher)
    made = compose.compose(old)
    _write(args.into, old.name, made, force=args.force)
    _report(args.into / f"{old.name}.yaml", old, made, [*found.notes, *made.notes], settings)
    return GOOD


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What the given files are."""

    fetcher: Fetcher
    vault: Vault
    network: str
    specs: dict[Role, Spec] = field(default_factory=dict)
    kubeflow: Kubeflow | None = None
    mounts: Mounts = field(default_factory=Mounts)
    notes: list[str] = field(default_factory=list)
    _raw: list[tuple[str, str, Role | None, bool]] = field(default_factory=list)

    def take(self, source: str) -> None:
        """Read a file, folder, zip or URL from the command line, with its secrets taken out."""
        word, sign, rest = source.partition("=")
        role: Role | None = None
        if sign and "/" not in word and not os.path.lexists(source):
            if word not in ROLES:
                hint = did_you_mean(word, list(ROLES)) or f"; there is {', '.join(ROLES)}"
                raise ImportFault(f"{source}: {word!r} is no role of a spec{hint}")
            role, source = word, rest
        one_of_many = not fetch.is_url(source) and os.path.isdir(source)
        for name, text in self._texts(source, ""):
            self._raw.append((name, text, role, one_of_many or name.startswith(f"{fetch.place(source)}:")))

    def follow(self) -> None:
        """Recognise all, then what the Kubeflow input leads to."""
        if self.network:
            _known(self.network)
        for name, text, role, one_of_many in self._raw:
            clean = self.vault.hide(text)  # a key of one file may stand in another's comments
            try:
                thing = recognise.recognise(clean, name, self.network, role)
            except (ImportFault, SpecError) as exc:
                if not one_of_many:
                    raise
                self.notes.append(f"left aside: {exc}")
                continue
            if isinstance(thing, Spec):
                self._add(thing)
            elif thing.kind == "mounts":
                self._mounts(thing)
            elif self.kubeflow is not None:
                raise ImportFault(f"{name}: a second input of the Kubeflow pipeline; import one at a time")
            else:
                self.kubeflow = kubeflow.read(thing.text, name)
                self.notes += self.kubeflow.notes
        if self.kubeflow is not None:
            self._follow(self.kubeflow)

    def _follow(self, given: Kubeflow) -> None:
        zipped: list[tuple[str, str]] = []
        if given.spec_url is not None:
            zipped = list(self._texts(given.spec_url.value, given.file))
        for role, said in given.specs:
            if role in self.specs:
                continue
            base = posixpath.basename(said.value)
            near = [(n, t) for n, t in zipped if posixpath.basename(n.rpartition(":")[2]) == base]
            try:
                texts = near or list(self._texts(_beside(said.value, given.file), given.file))
            except (ImportFault, OSError) as exc:
                reason = exc if isinstance(exc, ImportFault) else f"{said.value} is not there"
                raise ImportFault(
                    f"{said.where}: {said.path}: {reason}; name the file: refit import {given.file} "
                    f"{role}=FILE, or give the zip or folder that holds it"
                ) from None
            for name, text in texts[:1]:
                self._add(self._spec(name, text, given.network.value, role))
        named = {posixpath.basename(said.value) for _, said in given.specs}
        for name, text in zipped:
            if posixpath.basename(name) not in named:
                try:
                    spec = self._spec(name, text, given.network.value, None)
                except (ImportFault, SpecError) as exc:
                    self.notes.append(f"left aside: {exc}")
                    continue
                if spec.role not in self.specs:
                    self._add(spec)
                else:
                    self.notes.append(f"{name}: left aside: there is a {spec.role} spec already")

    def _spec(self, name: str, text: str, network: str, role: Role | None) -> Spec:
        thing = recognise.recognise(self.vault.hide(text), name, network, role)
        if isinstance(thing, Other):
            raise ImportFault(f"{name}: is no spec")
        return thing

    def _add(self, spec: Spec) -> None:
        other = self.specs.get(spec.role)
        if other is not None:
            raise ImportFault(f"{spec.file} and {other.file} are both of the role {spec.role}; {_choice(spec, other)}")
        self.specs[spec.role] = spec

    def _mounts(self, thing: Other) -> None:
        if self.mounts.file:
            raise ImportFault(f"{thing.file}: a second mounts file; give one")
        self.mounts = mounts.read(thing.text, thing.file)

    def _texts(self, source: str, named_by: str) -> Iterator[tuple[str, str]]:
        """(name, text) of each file behind a source."""
        if fetch.is_url(source):
            raw = self.fetcher.read(source, fetch.ARCHIVE_BYTES, _origin(named_by))
            yield from self._of_bytes(raw, fetch.place(source), wanted_zip=fetch.place(source).lower().endswith(".zip"))
            return
        path = Path(source)
        if path.is_dir():
            for below in sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")):
                text = fetch.as_text(_limited(below))
                if text is not None:
                    yield str(below), self._clean(text, str(below))
            return
        if not path.is_file():
            near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            raise ImportFault(f"{source}: no such file{did_you_mean(path.name, near)}")
        yield from self._of_bytes(_limited(path), source, wanted_zip=path.suffix.lower() == ".zip")

    def _of_bytes(self, raw: bytes, name: str, *, wanted_zip: bool) -> Iterator[tuple[str, str]]:
        if raw.startswith(b"PK"):
            for inner, found in fetch.texts_of_zip(io.BytesIO(raw), name).items():
                yield f"{name}:{inner}", self._clean(found, f"{name}:{inner}")
            return
        bad = fetch.no_zip(raw[:64])
        if wanted_zip or "web page" in bad:
            raise ImportFault(f"{name}: {bad}")
        text = fetch.as_text(raw)
        if text is None or len(raw) > fetch.SPEC_BYTES:
            raise ImportFault(f"{name}: no text that import reads, and no zip")
        yield name, self._clean(text, name)

    def _clean(self, text: str, name: str) -> str:
        return self.vault.take(text, name, plain_key=recognise.form_of(text) == "yaml")

    # -- together --

    def old(self, args: argparse.Namespace) -> Old:
        named = {s.network for s in self.specs.values() if s.network}
        if self.kubeflow:
            named.add(self.kubeflow.network.value)
        if self.network:
            named.add(self.network)
        if len(named) > 1:
            raise ImportFault(f"these files are of several networks ({', '.join(sorted(named))}); import one at a time")
        if not named:
            given = "a mounts file alone" if self.mounts.file else "these files alone"
            raise ImportFault(f"{given} make no pipeline; give the training's spec too, or --network NAME")
        network = named.pop()
        _known(network)
        name = args.name or _name(self, network)
        if not pipelines.NAME.match(name):
            raise ImportFault(f"--name {name}: use a-z, 0-9, - and _, a letter first")
        classes = tuple(c.strip() for c in (args.classes or "").split(",") if c.strip())
        ordered = {role: self.specs[role] for role in ROLES if role in self.specs}
        return Old(name, network, ordered, self.kubeflow, self.mounts, self.vault, classes)


def _choice(spec: Spec, other: Spec) -> str:
    """What to do about two specs of one role."""
    one = "give the files of one model by their names, not the whole folder"
    if spec.role != "train" or (spec.network and "prune" not in networks.load(spec.network).stages):
        return one
    say = f"train={other.file} retrain={spec.file}"
    return f"a retraining's names the pruned model, and both or none do: say {say}, or {one}"


def _known(network: str) -> None:
    known = list(networks.known())
    if network not in known:
        raise ImportFault(f"--network {network}: there is {', '.join(known)}{did_you_mean(network, known)}")


def _name(found: _Found, network: str) -> str:
    said = found.kubeflow.name.value if found.kubeflow and found.kubeflow.name else network
    made = re.sub(r"[^a-z0-9_-]+", "-", said.lower()).strip("-_")[:63]
    return made if pipelines.NAME.match(made) else network


def _beside(name: str, file: str) -> str:
    """A name in a file, as it is meant: beside that file."""
    if fetch.is_url(name):
        return name
    if fetch.is_url(file):
        return urljoin(file, name)
    path = Path(file).parent / name
    below = Path(file).parent / "specs" / name
    return str(below if not path.exists() and below.exists() else path)


def _limited(path: Path) -> bytes:
    with open(path, "rb") as f:
        raw = f.read(fetch.ARCHIVE_BYTES + 1)
    if len(raw) > fetch.ARCHIVE_BYTES:
        raise ImportFault(f"{path}: more than {fetch.ARCHIVE_BYTES >> 20} MiB; is this the right file?")
    return raw


def _data(args: argparse.Namespace, old: Old, fetcher: Fetcher) -> str:
    """Download the data where that is wanted; else look what its URL leads to."""
    url = old.kubeflow.url if old.kubeflow else None
    if args.data is None:
        if url is not None and fetch.is_url(url.value):
            _look(fetcher, url.value, url.file, url.where)
        return ""
    if url is None:
        raise ImportFault("--data: no file names a URL of the data set")
    count = fetch.data_set(fetcher, url.value, args.data.absolute(), _origin(url.file), int(args.max_gib * GIB))
    print(f"{args.data}: {count} files from {fetch.place(url.value)}")
    convert = old.specs.get("dataset_convert")
    image_dir = convert.tree.value("kitti_config.image_dir_name") if convert else None
    return str(compose.find_root(args.data.absolute(), image_dir)) if image_dir else str(args.data.absolute())


def _origin(file: str) -> str:
    """Who names a URL: a downloaded file is somebody else's word, a file of the user's own is the user's."""
    return file if fetch.is_url(file) else ""


def _look(fetcher: Fetcher, url: str, file: str, where: str) -> None:
    """Say now that a data URL is no archive; that it cannot be reached from here hinders nobody."""
    try:
        bad = fetch.no_zip(fetcher.first(url, _origin(file)))
    except ImportFault as exc:
        print(f"warning: {where}: {exc}", file=sys.stderr)
        return
    if bad:
        print(f"warning: {where}: {fetch.place(url)}: {bad}", file=sys.stderr)


# --- writing ----------------------------------------------------------------------------------------------------------


def _check_free(into: Path, name: str, *, force: bool) -> None:
    if force:
        return
    for path in (into / f"{name}.yaml", into / name):
        if os.path.lexists(path):
            raise ImportFault(f"{path}: is there already; --force writes over it, --name takes another name")


def _write(into: Path, name: str, made: Made, *, force: bool) -> None:
    """Put all files in place, or none: written aside, then renamed; what was there comes back if that fails."""
    into.mkdir(parents=True, exist_ok=True)
    mark = f"tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    aside, kept = into / f".{name}.{mark}", into / f".{name}.old-{mark}"
    try:
        for path, text in made.files.items():
            target = aside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            os.chmod(target, 0o755 if path in made.scripts else 0o644)
        _check_free(into, name, force=force)
        _swap(into, name, aside, kept)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(kept, ignore_errors=True)


def _swap(into: Path, name: str, aside: Path, kept: Path) -> None:
    """The folder first, the pipeline file, which names what is in it, last."""
    kept.mkdir()
    moved: list[str] = []
    placed: list[str] = []
    try:
        for entry in (f"{name}.yaml", name):
            if os.path.lexists(into / entry):
                os.rename(into / entry, kept / entry)
                moved.append(entry)
        for entry in (name, f"{name}.yaml"):
            if os.path.lexists(aside / entry):
                os.rename(aside / entry, into / entry)
                placed.append(entry)
    except BaseException:
        for entry in placed:
            os.rename(into / entry, aside / entry)
        for entry in moved:
            os.rename(kept / entry, into / entry)
        raise
    sync_folder(into)


# --- the report -------------------------------------------------------------------------------------------------------


def _report(path: Path, old: Old, made: Made, notes: list[str], settings: Settings) -> None:
    """What was written, taken out, left out, what Refit will change, and what is to be mended."""
    for name in sorted(made.files):
        _say(f"wrote {path.parent / name}", old.vault)
    for line in _secrets(old):
        _say(f"warning: {line}", old.vault)
    for line in [*made.warnings]:
        _say(f"warning: {line}", old.vault)
    for line in notes:
        _say(f"note: {line}", old.vault)
    changed, faults = _judge(path, made, settings)
    if changed:
        _say("Refit will change in your specs, at each run:", old.vault)
        for line in changed:
            _say(f"  {line}", old.vault)
    for fault in faults:
        _say(f"to mend: {fault}", old.vault)
    _say(f"{len(faults)} to mend; then: refit validate {path}" if faults else f"next: refit plan {path}", old.vault)


def _secrets(old: Old) -> Iterator[str]:
    """Each key that stood in plain text, never its value."""
    marks: dict[str, list[str]] = {}
    secret = {"encryption": compose.TAO_KEY, "ngc": compose.NGC_KEY}
    for found in dict.fromkeys(old.vault.found):
        entry = secret.get(found.kind)
        advice = f"put a new one into the Secret behind {entry} (secrets of the cluster profile)" if entry else ""
        yield (
            f"{found.file}:{found.line}: {found.name}: a secret in plain text; taken out. Revoke it: whoever saw the "
            f"file has it{'; ' + advice if advice else ''}"
        )
        if found.kind == "encryption":
            marks.setdefault(found.mark, []).append(f"{found.file}:{found.line}")
    if len(marks) > 1:
        places = ", ".join(p[0] for p in marks.values())
        yield f"{places}: {len(marks)} different keys: a model made with one cannot be read with another; use one"


def _judge(path: Path, made: Made, settings: Settings) -> tuple[list[str], list[str]]:
    """(what rendering changes in the user's specs, what validate will say)."""
    doc = parse_yaml(made.files[path.name], str(path))
    try:
        pipeline = pipelines.from_document(
            doc, pipelines.peek_name(path), attached=pipelines.attachments(doc, path.parent)
        )
        profile = cluster.of_pipeline(pipeline, settings)
        seen: dict[str, str] = {}  # a place may get another value from each command: told once, best with a value
        for _, _, rendered in TaoChain(pipeline, profile).specs():
            for line in rendered.changed:
                spot = line.partition(" -> ")[0].partition(": added: ")[0]
                if seen.get(spot, "-> left out").endswith("-> left out"):
                    seen[spot] = line
        faults = toolkits.get(pipeline.toolkit).preflight(pipeline, profile, None)
        problems = [*map(doc.told, faults), *lacking(pipeline, profile, settings)]
        return list(seen.values()), list(map(str, problems))
    except SpecError as exc:
        return [], [str(p) for p in exc.problems]


def _say(text: str, vault: Vault, to: TextIO | None = None) -> None:
    plain = "".join(ch if ch.isprintable() else " " for ch in shown(vault.hide(text)))  # a file may hold escapes
    print(plain, file=to or sys.stdout)
