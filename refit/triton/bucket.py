"""A Triton model repository in a bucket (`s3://`, `gs://`), changed so that the server never meets half a version.

It has the same siblings as one in a folder, as prefixes: ``models/``, ``models.staging/``, ``models.retired/``,
``models.locks/``. What a file system's rename does there is done otherwise here:

- A version's files are put first, the configuration that names them last, and only then Triton is asked to load:
  nothing lists the bucket on its own (explicit mode), so a half-written version is never met.
- The lock is one object, made by a put that fails where it exists (``If-None-Match: *``). Its holder renews it every
  few seconds by puts that fail where somebody else wrote it meanwhile (``If-Match``), and those who wait take it over
  in the same way when it has not changed for the lease's time.
- config.pbtxt is put with ``If-Match`` on what this holder saw of it last, and a last line of its own that no other
  holder writes: a holder that was only paused cannot write it any more, even when the pause came after its check.
- Triton looks at the object's time, which has whole seconds: a configuration that is put twice within one is put again
  until its time is another, else the second load would change nothing.

Conditional puts are S3's since 2024 and GCS's for long; a store that ignores them is refused (`BucketLock`). Tested
against moto's S3 with the real server; GCS goes through the same library and was not run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from refit.config import Settings
from refit.data import source as sources
from refit.data.remote.connection import Connection
from refit.data.remote.errors import Broken, Refused
from refit.data.remote.stores import Store
from refit.triton.errors import LockLost, ModelLocked, RepositoryError
from refit.triton.lock import BEATS, LEASE_SECONDS, Holder, describe, identity, stamp
from refit.triton.repository import CONFIG, JOURNAL, ModelRepository, Repository

CONNECTION = "REFIT_CONNECTION"
"""The variable with the login of the bucket, as Airflow writes down a connection."""

_POLL_SECONDS = 0.5
_STAMP = re.compile(rb"\n# written by [0-9a-f]{32}-\d+\n\Z")


def open_repository(where: str | Path) -> Repository:
    """The repository at a place: a folder, or s3://bucket/prefix, gs://bucket/prefix.

    Raises:
        RepositoryError: it cannot be used.
    """
    text = str(where)
    if "://" not in text:
        return ModelRepository(Path(text))
    try:
        source = sources.parse(text)
        if source.kind not in (sources.Kind.S3, sources.Kind.GCS) or not source.prefix:
            raise ValueError(f"{text}: write s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
        login = os.environ.get(CONNECTION)
        connection = Connection.read("of the model repository", login) if login else None
        above, _, name = source.prefix.rpartition("/")
        store = Store(replace(source, prefix=above), connection, Settings.from_env()).opened
    except (ValueError, Refused, Broken) as exc:
        raise RepositoryError(f"release.triton.repository: {exc}") from None
    return BucketRepository(_Objects(store, text.rstrip("/"), name))


@dataclass
class Desk:
    """What a holder of the lock writes a configuration with: its token, and the object as it saw or wrote it last."""

    token: str
    writes: int = 0


class BucketRepository(Repository):
    """A repository in a bucket."""

    def __init__(self, objects: _Objects) -> None:
        self.place = objects.place
        self._objects = objects
        self._scratch = tempfile.TemporaryDirectory(prefix="refit-models-")
        self._seen: dict[str, Mapping[str, Any] | None] = {}

    @contextmanager
    def lock(self, model: str, *, run: str, wait_seconds: float, say: Callable[[str], None]) -> Iterator[BucketLock]:
        lock = BucketLock(self._objects, model, run=run, wait_seconds=wait_seconds, say=say)
        with lock:
            self._seen[model] = self._objects.head(f"/{model}/{CONFIG}")
            config = self.read_config(model)
            if lock.taken_over and config is not None:  # from here on its last holder cannot write it any more
                self.write_config(model, config, lock.desk)
            yield lock

    def begin(self, model: str) -> None:
        self.clean(model)

    def keep(self, model: str, name: str, data: bytes) -> None:
        self._objects.put(f".staging/{model}/{name}", data)

    def kept(self, model: str, name: str) -> bytes | None:
        return self._objects.get(f".staging/{model}/{name}")

    def tree(self, model: str) -> Path:
        return Path(self._scratch.name) / model / "tree"

    def clean(self, model: str) -> None:
        self._objects.delete([f".staging/{model}/{JOURNAL}"])
        self._objects.delete(self._objects.below(f".staging/{model}/"))

    def versions(self, model: str) -> list[int]:
        return sorted(int(n) for n in self._folders(f"/{model}/") if re.fullmatch(r"[1-9][0-9]*", n))

    def files(self, model: str, version: int) -> set[str]:
        return {name.rpartition("/")[2] for name in self._objects.below(f"/{model}/{version}/")}

    @contextmanager
    def local(self, model: str, version: int) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="refit-version-") as scratch:
            for name in self._objects.below(f"/{model}/{version}/"):
                data = self._objects.get(name)
                (Path(scratch) / name.rpartition("/")[2]).write_bytes(data or b"")
            yield Path(scratch)

    def names(self, model: str) -> set[str]:
        found = {p.name for p in (self.tree(model) / model).glob("*")}
        for area in ("", ".retired"):
            root = f"{area}/{model}/"
            found |= {name.removeprefix(root).partition("/")[0] for name in self._objects.below(root)}
        return found

    def install(self, model: str, version: int) -> None:
        if self.files(model, version):
            raise RepositoryError(
                f"{self.place}/{model}/{version} exists already: version numbers are not used twice; remove what put "
                "it there"
            )
        for file in sorted((self.tree(model) / model / str(version)).iterdir()):
            self._objects.put(f"/{model}/{version}/{file.name}", file)

    def read_config(self, model: str) -> bytes | None:
        data = self._objects.get(f"/{model}/{CONFIG}")
        return None if data is None else _STAMP.sub(b"\n", data)

    def write_config(self, model: str, data: bytes, desk: Desk) -> None:
        path, before = f"/{model}/{CONFIG}", self._seen.get(model)
        since = before and before["last_modified"]
        while True:
            desk.writes += 1
            stamped = data.rstrip(b"\n") + f"\n# written by {desk.token}-{desk.writes}\n".encode()
            tag = self._objects.swap(path, stamped, self._seen.get(model))
            found = self._objects.head(path)
            if tag is None and self._objects.get(path) == stamped:  # it was put, and the answer was lost
                tag = found
            if tag is None:
                raise FileNotFoundError(f"{self.place}{path} was written by somebody else")
            self._seen[model] = {**tag, "last_modified": found and found["last_modified"]}
            if found is None or since is None or found["last_modified"] != since:
                return
            time.sleep(0.1)

    def remove_config(self, model: str) -> None:
        self._objects.delete([f"/{model}/{CONFIG}"])
        self._seen[model] = None

    def _note(self, model: str, version: int, note: bytes) -> None:
        self._objects.put(f".retired/{model}/{version}.json", note)

    def _retire(self, model: str, version: int) -> None:
        for name in self._objects.below(f"/{model}/{version}/"):
            self._objects.move(name, f".retired{name}")

    def _retired(self, model: str) -> list[int]:
        return sorted(int(name) for name in self._folders(f".retired/{model}/"))

    def _delete(self, model: str, version: int, *, retired: bool) -> None:
        self._objects.delete(self._objects.below(f"{'.retired' if retired else ''}/{model}/{version}/"))

    def _folders(self, root: str) -> set[str]:
        return {
            n.removeprefix(root).partition("/")[0] for n in self._objects.below(root) if "/" in n.removeprefix(root)
        }


class BucketLock:
    """The lock of one model in a bucket; a context manager. As `refit.triton.lock.ModelLock`.

    Attributes:
        taken_over: from a holder that gave no sign of life.

    Raises (on entering):
        ModelLocked: another one still holds it after ``wait_seconds``.
        RepositoryError: the bucket cannot be written, or puts are not conditional there.
    """

    def __init__(
        self,
        objects: _Objects,
        model: str,
        *,
        run: str,
        wait_seconds: float,
        say: Callable[[str], None] = lambda _: None,
        lease_seconds: float | None = None,
    ) -> None:
        self._objects, self._path, self._model = objects, f".locks/{model}.json", model
        self._run, self._wait_seconds, self._say = run, wait_seconds, say
        self._lease_seconds = LEASE_SECONDS if lease_seconds is None else lease_seconds
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._last: Mapping[str, Any] | None = None
        self._guard = threading.Lock()
        self._given_back = threading.Event()
        self.desk = Desk(self._token)
        self.taken_over = False

    def __enter__(self) -> BucketLock:
        self._acquire()
        if self._objects.swap(self._path, b"", None) is not None:
            raise RepositoryError(
                f"{self._objects.place}: this store overwrites what a put with If-None-Match must leave alone, so that "
                "two releases at once would not see each other; use one with conditional puts, or a folder"
            )
        threading.Thread(target=self._live, name=f"lock of {self._model}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._given_back.set()
        with self._guard, contextlib.suppress(RepositoryError):  # else it is given back by its lease
            self._objects.swap(self._path, json.dumps({"token": "", "by": self._token}).encode(), self._last)

    def check(self) -> None:
        """This process holds the lock, and its lease begins anew; asked before each dangerous step.

        Raises:
            LockLost: another one took it over.
        """
        if not self._renew():
            raise LockLost(
                f"the lock of {self._model} was lost, because this process gave no sign of life for "
                f"{self._lease_seconds:g} s (it was paused, or the bucket was away); what was begun here is finished "
                "or undone by the next change of the model, so release again"
            )

    def _renew(self) -> bool:
        with self._guard:
            self._beat += 1
            tag = self._objects.swap(self._path, self._text(), self._last)
            if tag is None:  # a put whose answer was lost has changed it too
                holder, found = self._look()
                tag = found if holder.token == self._token else None
            self._last = tag or self._last
            return tag is not None

    def _live(self) -> None:
        while not self._given_back.wait(self._lease_seconds / BEATS):
            with contextlib.suppress(RepositoryError):  # the store is away: so it is for those who wait
                if not self._renew():
                    return

    def _acquire(self) -> None:
        until = time.monotonic() + self._wait_seconds
        told, since = False, 0.0
        seen: Mapping[str, Any] | None = {}
        while True:
            looked = time.monotonic()
            holder, found = self._look()
            if found != seen:
                seen, since = found, time.monotonic()
            silent = looked - since >= self._lease_seconds
            if holder.token in ("", self._token) or silent or holder.is_dead():
                self._last = self._objects.swap(self._path, self._text(), found)
                if self._last is not None:
                    self.taken_over = holder.token not in ("", self._token)
                    if self.taken_over:
                        self._say(f"Took over the lock of {self._model}: {describe(holder.owner)} gave no sign of life")
                    return
                time.sleep(0.02)  # somebody else was faster
                continue
            if looked >= until:
                raise ModelLocked(
                    f"{describe(holder.owner)} holds the lock of {self._model}, and did not give it back within "
                    f"{self._wait_seconds:g} s; wait for it, or when you know that it is gone, remove "
                    f"{self._objects.place}{self._path}"
                )
            if not told:
                self._say(f"Waiting for {describe(holder.owner)}, which holds the lock of {self._model}")
                told = True
            time.sleep(min(_POLL_SECONDS, self._lease_seconds / BEATS))

    def _look(self) -> tuple[Holder, Mapping[str, Any] | None]:
        """Who holds it (no token: nobody), and the object's tag."""
        read = self._objects.read(self._path)
        if read is None:
            return Holder("", {}, 0), None
        with contextlib.suppress(ValueError):
            owner = json.loads(read[0])
            return Holder(str(owner["token"]), owner, 0), read[1]
        return Holder("unreadable", {}, 0), read[1]

    def _text(self) -> bytes:
        owner = {**identity(), "run": self._run, "token": self._token, "since": stamp(), "beat": self._beat}
        return json.dumps(owner).encode()


class _Objects:
    """The objects of a repository and its siblings; a path is what follows the repository's name: ``/m/1/model.onnx``,
    ``.staging/m/journal.json``. Every failure of the store is a RepositoryError."""

    def __init__(self, store: Any, place: str, name: str) -> None:
        self._store, self.place, self._name = store, place, name

    def get(self, path: str) -> bytes | None:
        read = self.read(path)
        return None if read is None else read[0]

    def read(self, path: str) -> tuple[bytes, Mapping[str, Any]] | None:
        """An object and its tag, None where there is none."""
        with self._told("read", path):
            try:
                got = self._store.get(self._name + path)
                return bytes(got.bytes()), _tag(got.meta)
            except FileNotFoundError:
                return None

    def head(self, path: str) -> Mapping[str, Any] | None:
        with self._told("read", path):
            try:
                meta = self._store.head(self._name + path)
                return {**_tag(meta), "last_modified": meta["last_modified"]}
            except FileNotFoundError:
                return None

    def put(self, path: str, data: bytes | Path) -> None:
        with self._told("written", path):
            self._store.put(self._name + path, data)

    def swap(self, path: str, data: bytes, seen: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Write an object where it is what was seen (None: where there is none); its new tag, None where it is not."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if seen is None else _tag(seen)
        with self._told("written", path):
            try:
                return _tag(self._store.put(self._name + path, data, mode=mode, use_multipart=False))
            except (AlreadyExistsError, PreconditionError):
                return None
            except FileNotFoundError:
                if seen is None:  # not the object is missing, but the bucket
                    raise
                return None

    def below(self, root: str) -> list[str]:
        """The objects whose path begins so; `root` ends with a slash."""
        with self._told("listed", root):
            found = [meta["path"] for batch in self._store.list(self._name + root) for meta in batch]
        return sorted(path.removeprefix(self._name) for path in found)

    def move(self, path: str, to: str) -> None:
        with self._told("moved", path):
            self._store.copy(self._name + path, self._name + to)
        self.delete([path])

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            with self._told("deleted", path), contextlib.suppress(FileNotFoundError):
                self._store.delete(self._name + path)

    @contextmanager
    def _told(self, what: str, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as exc:
            status = re.search(r"status code: (\d{3})", str(exc))
            why = f"HTTP {status[1]}" if status else type(exc).__name__  # the text may hold a signed URL
            raise RepositoryError(
                f"{self.place}{path}: cannot be {what} ({why}); the login of a release needs to list, read, write and "
                "delete below the repository and its siblings"
            ) from None


def _tag(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """What tells this writing of an object from others: S3's ETag, GCS's generation."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
