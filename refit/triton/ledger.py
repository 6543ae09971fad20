"""What was released: one folder per version with a release.json, never overwritten in place, never removed.

``<workspace>/<pipeline>/releases/<version>/release.json`` is the truth about a version: what it is, where it came
from, what replaced it. ``reference.npz`` beside it has the answers that it gave when it was released; a roll back
proves with them that the version answers as it did. ``model/`` has the version's files for as long as the model
repository has them, so that a later run can evaluate the champion without seeing that repository.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refit.files import link_or_copy, sync_folder, write_text
from refit.triton.errors import RepositoryError
from refit.triton.lock import actor
from refit.triton.traffic import Traffic

State = Literal["staged", "serving", "retired", "failed"]


class Event(BaseModel):
    """A change of a version's state."""

    model_config = ConfigDict(frozen=True)

    state: State
    when: str
    reason: str
    by: dict[str, Any]


class Previous(BaseModel):
    """What served before."""

    model_config = ConfigDict(frozen=True)

    version: int
    sha256: str | None = None
    pipeline: str | None = None


class Record(BaseModel):
    """release.json. Unknown keys are kept: a later Refit may have written more.

    `traffic_before` is what requests of the version before cost, on all servers, when this one was staged.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_: Literal[1] = Field(1, alias="schema")
    model: str
    version: int
    state: State
    reason: str = ""
    sha256: str
    bytes: int
    pipeline: str
    run: str
    key: str
    metrics: dict[str, float] = {}
    url: str
    repository: str
    previous: Previous | None = None
    traffic_before: Traffic | None = None
    config: str
    sidecar: dict[str, Any] = {}
    card: str | None = None  # sha256 of card.json
    signed_by: str | None = None  # sha256 of the public key's PEM
    history: list[Event] = []

    def since(self) -> tuple[str, int]:
        """When it was last written down, then its version: of two that both say that they serve, the greater counts."""
        return self.history[-1].when if self.history else "", self.version

    @property
    def began(self) -> Event | None:
        """The change that brought its state; later ones tell how its watch went."""
        last = list(itertools.takewhile(lambda event: event.state == self.state, reversed(self.history)))
        return last[-1] if last else None

    def turn(self, state: State, reason: str) -> Record:
        """The record in another state, with the change in its history; itself where that is in it already."""
        if (state, reason) == (self.state, self.reason) and self.history:
            return self
        event = Event(state=state, when=datetime.now(UTC).isoformat(timespec="seconds"), reason=reason, by=actor())
        return self.model_copy(update={"state": state, "reason": reason, "history": [*self.history, event]})


class Ledger:
    """The releases folder of one pipeline.

    Args:
        folder: ``<workspace>/<pipeline>/releases``; made when the first record is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: Record) -> None:
        """Write a version's record, whole or not at all."""
        folder = self.path(record.version)
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (self.folder.parent, self.folder):
            sync_folder(parent)
        write_text(folder / "release.json", record.model_dump_json(indent=1, by_alias=True) + "\n")

    def path(self, version: int) -> Path:
        """A version's folder."""
        return self.folder / str(version)

    def reference(self, version: int) -> Path:
        """Where a version's answers are kept."""
        return self.path(version) / "reference.npz"

    def model(self, version: int) -> Path:
        """Where a version's files are kept."""
        return self.path(version) / "model"

    def kept(self, version: int) -> bool:
        """Whether a version's files are still there."""
        return self.model(version).is_dir()

    def keep(self, version: int, files: Mapping[str, Path]) -> None:
        """Keep a version's files, by name; hard links where that can be."""
        folder = self.model(version)
        folder.mkdir(parents=True)
        for name, source in files.items():
            link_or_copy(source, folder / name)
        sync_folder(folder)

    def forget(self, version: int) -> None:
        """Let go of a version's files; its record stays."""
        shutil.rmtree(self.model(version), ignore_errors=True)

    def serving(self, model: str) -> Record | None:
        """The record here that says of itself that it serves; of several (`Change.finish`) the last to say so."""
        return max((r for r in self.records(model) if r.state == "serving"), key=Record.since, default=None)

    def read(self, version: int) -> Record | None:
        """A version's record, None where there is none.

        Raises:
            RepositoryError: the file is there and cannot be understood.
        """
        path = self.path(version) / "release.json"
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as exc:
            raise RepositoryError(
                f"{path}: cannot be read as a release record ({exc}); repair or move it away"
            ) from exc

    def records(self, model: str | None = None) -> list[Record]:
        """Every record, of one model or of all, by version."""
        found = [self.read(version) for version in sorted(self.used_versions())]
        return [r for r in found if r is not None and model in (None, r.model)]

    def used_versions(self) -> set[int]:
        """Version numbers with a folder here, whatever the model: a number has one folder."""
        try:
            return {int(name) for name in os.listdir(self.folder) if name.isdecimal()}
        except FileNotFoundError:
            return set()

    def siblings(self) -> Iterator[Ledger]:
        """The ledgers of this workspace's pipelines, this one first: one model may be released by several."""
        yield self
        for folder in sorted(self.folder.parent.parent.glob("*/releases")):
            if folder != self.folder:
                yield Ledger(folder)

    def find(self, model: str, version: int) -> tuple[Ledger, Record] | None:
        """A version's record, wherever in the workspace it is."""
        for ledger in self.siblings():
            record = ledger.read(version)
            if record is not None and record.model == model:
                return ledger, record
        return None
