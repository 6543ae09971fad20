"""Is a version what was released? Its files, card and signature against the ledger, and what Triton serves.

`refit verify` asks; nothing is changed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refit.files import sha256
from refit.triton.bucket import open_repository
from refit.triton.client import TritonClient
from refit.triton.errors import AccessRefused, ArtefactError, RepositoryError, TritonError
from refit.triton.ledger import Ledger, Record
from refit.triton.lineage import FILE, LEFT_OUT, digest
from refit.triton.model import read_model

SIGN = (
    "it serves unsigned, and release.signing asks for a signature: start its pipeline again, whose release signs the "
    "same model as a new version; or go back to a version that is signed: refit rollback {} --to N"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; FAIL is not what was released, note could not be looked at."""

    level: Literal["ok", "FAIL", "note"]
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:4s}  {self.about}: {self.text}"


def check(ledger: Ledger, record: Record, public_key: str | None) -> Iterator[Finding]:
    """Everything that can be known of one version. `public_key`: as PEM, None where none is named."""
    folder = ledger.path(record.version)
    kept = ledger.model(record.version)
    yield from _files("files in the ledger", kept, record, str(kept))
    about = "files in the repository"
    try:
        repository = open_repository(record.repository)
    except RepositoryError as exc:
        yield Finding("note", about, f"they cannot be seen from here: {exc}")
    else:
        with repository.local(record.model, record.version) as there:
            shown = f"{repository.place}/{record.model}/{record.version}"
            yield from _files(about, there, record, shown)
    yield _card(folder / FILE, record)
    yield from _signature(folder, record, public_key)
    if record.state == "serving":
        yield served(record)


def _files(about: str, folder: Path, record: Record, shown: str) -> Iterator[Finding]:
    if not folder.is_dir() or not any(folder.iterdir()):
        if record.state == "serving":
            yield Finding("FAIL", about, f"{shown} is not there, and the version serves")
        else:
            yield Finding("note", about, f"{shown} is not there (any more)")
        return
    try:
        found = read_model(folder).sha256
    except ArtefactError as exc:
        yield Finding("FAIL", about, str(exc))
        return
    if found == record.sha256:
        yield Finding("ok", about, f"sha256 {found[:16]} as released")
    else:
        yield Finding("FAIL", about, f"{shown}: sha256 is {found}, {record.sha256} was released: somebody changed it")


def _card(path: Path, record: Record) -> Finding:
    if record.card is None:
        return Finding("note", "model card", "none: released by an older Refit, or by hand")
    try:
        found = sha256(path)
    except OSError as exc:
        return Finding("FAIL", "model card", f"{path}: {exc.strerror}")
    if found != record.card:
        return Finding("FAIL", "model card", f"{path}: sha256 is {found}, not {record.card}: somebody changed it")
    return Finding("ok", "model card", f"sha256 {found[:16]} as released")


def _signature(folder: Path, record: Record, public_key: str | None) -> Iterator[Finding]:
    about = "signature"
    if public_key is None:
        if record.signed_by is not None:
            yield Finding("FAIL", about, "signed, and no key to check it with: name --public-key FILE")
        return
    from refit.triton import signing  # cryptography is needed only here

    try:
        signed(folder, record, public_key)
        yield Finding("ok", about, f"good, of key {signing.fingerprint(signing.public_key(public_key))[:16]}")
    except signing.Unsigned as exc:
        told = SIGN.format(record.model) if record.state == "serving" else "no roll back goes to it"
        yield Finding("FAIL", about, f"{exc}; {told}")
    except signing.SigningError as exc:
        yield Finding("FAIL", about, str(exc))


def signed(folder: Path, record: Record, public_key: str) -> Mapping[str, str]:
    """The files of a version that its signature names, by their path in the ledger's folder -> sha256; those that lie
    there are as they were signed, and so is what the record says of model and configuration. Raises SigningError."""
    from refit.triton import signing

    found = signing.verify(folder, signing.public_key(public_key))
    name = f"{record.model}:{record.version}"
    if found.name != name:
        raise signing.SigningError(f"{folder / signing.FILE}: it is that of {found.name}, not of {name}")
    there = signing.digests(folder, LEFT_OUT | {signing.FILE})
    # What else lies beside them, as the rest of a write that was killed, is neither loaded nor believed.
    there = {n: d for n, d in there.items() if n in found.files or n.startswith("model/")}
    kept = (folder / "model").is_dir()  # the files go when the version is pruned, the card stays
    wanted = {n: d for n, d in found.files.items() if kept or not n.startswith("model/")}
    wrong = sorted(n for n in wanted.keys() | there.keys() if wanted.get(n) != there.get(n))
    if wrong:
        raise signing.SigningError(f"{folder}: {', '.join(wrong)} not as signed")
    card = json.loads((folder / FILE).read_text(encoding="utf-8"))
    for name, value in (("sha256", record.sha256), ("config", digest(record.config))):
        if card.get(name, value) != value:  # cards of an older Refit name no configuration
            raise signing.SigningError(f"{folder}/release.json: its {name} is not that of the signed card")
    return found.files


def signed_in_place(ledger: Ledger, record: Record, public_key: str, folder: Path) -> None:
    """Raises SigningError where the record, the card, or the files that Triton loads from `folder` are not those that
    were signed."""
    from refit.triton import signing

    files = signed(ledger.path(record.version), record, public_key)
    there = {f"model/{name}": found for name, found in signing.digests(folder, frozenset()).items()}
    if {**there, FILE: files.get(FILE)} != files:
        raise signing.SigningError(f"{folder}: the files in the model repository are not those that were signed")


def served(record: Record) -> Finding:
    """Whether Triton answers with this version, by what the server itself says."""
    about = f"Triton at {record.url}"
    try:
        with contextlib.closing(TritonClient(record.url, timeout_seconds=5.0)) as client:
            versions = client.ready_versions(record.model)
            if max(versions, default=None) != record.version:  # in a watch the version before is loaded too
                told = ", ".join(map(str, versions)) or "none"
                return Finding("FAIL", about, f"serves versions {told}, the ledger says {record.version}")
            found = client.config(record.model).sha256
    except AccessRefused:
        return Finding("note", about, f"serves version {record.version}; it shows its configuration to nobody")
    except TritonError as exc:
        return Finding("FAIL", about, str(exc).removeprefix(f"{about} "))
    if found != record.sha256:
        return Finding("FAIL", about, f"serves version {record.version} with sha256 {found}, not {record.sha256}")
    return Finding("ok", about, f"serves version {record.version}, sha256 {record.sha256[:16]}")
