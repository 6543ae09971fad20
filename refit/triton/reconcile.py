"""Every Triton server, and the files that it reads, against the ledger: what differs is said, or put right.

The ledger is the truth. Looking takes no lock and changes nothing. Mending is a change like a roll back, to the version
that the ledger says serves: its files are put back from the ledger where somebody changed them, its configuration is
written, every server loads it and must answer as it did when it was released (`transaction`). Where releases are
signed, the ledger itself is believed only as far as the version's signature holds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from refit.triton import fleet, verify
from refit.triton.bucket import open_repository
from refit.triton.champion import look
from refit.triton.client import TritonClient
from refit.triton.config import pin
from refit.triton.errors import AccessRefused, ArtefactError, RepositoryError, TritonError, TritonUnavailable
from refit.triton.ledger import Ledger, Record
from refit.triton.model import read_model
from refit.triton.repository import CONFIG, JOURNAL, Repository
from refit.triton.rollback import UNSIGNED, expected_of
from refit.triton.specs import ReconcileReport, ReconcileSpec
from refit.triton.transaction import Change, exclusive

Say = Callable[[str], None]


@dataclass(frozen=True)
class Serving:
    """What the ledger says serves, and the ledger that holds it; `others` say the same of themselves and are older."""

    ledger: Ledger
    record: Record
    others: tuple[tuple[Ledger, Record], ...]


def reconcile(spec: ReconcileSpec, say: Say = lambda _: None) -> ReconcileReport:
    """Compare, and mend where the spec says so.

    Raises:
        RepositoryError: the ledger's own files of the version, or its record, are not what was released or signed, so
            nothing was touched.
        ReleaseFailed: the version does not serve any more; says what does.
        TritonUnavailable, AccessRefused, ModelLocked, LockLost, ServersDiffer: nothing was mended.
    """
    serving = _serving(spec)
    found = list(_differences(spec, serving))
    version = serving.record.version if serving else None
    for line in found:
        say(f"differs: {line}")
    if not found:
        what = f"Version {version} of {spec.model}" if serving else f"No version of {spec.model}"
        say(f"{what} is what the ledger says, in the repository and on every server")
    elif spec.mend:
        _mend(spec, serving, say)
        serving = _serving(spec)
        left = list(_differences(spec, serving))
        if left:
            raise RepositoryError(f"{spec.model}: still differs after it was mended: {'; '.join(left)}")
        version = serving.record.version if serving else None
        return ReconcileReport(outcome="mended", model=spec.model, version=version, differences=found)
    return ReconcileReport(
        outcome="differs" if found else "agrees", model=spec.model, version=version, differences=found
    )


def changed_by_hand(ledger: Ledger, repository: Repository, model: str, version: int) -> str:
    """Why the files of a version in the repository are not those that were released; "" where they are, or where the
    ledger does not know the version as one that serves from this repository."""
    found = ledger.find(model, version)
    if found is None or found[1].state != "serving" or not _lies_in(repository.place, found[1]):
        return ""
    return _in_place(repository, found[1])


def _serving(spec: ReconcileSpec) -> Serving | None:
    """The newest record of this workspace that says of itself that it serves."""
    place = open_repository(spec.repository).place
    found = [
        (ledger, record)
        for ledger in Ledger(spec.ledger).siblings()
        for record in ledger.records(spec.model)
        if record.state == "serving" and _lies_in(place, record)
    ]
    found.sort(key=lambda entry: entry[1].since())
    return Serving(*found[-1], tuple(found[:-1])) if found else None


def _lies_in(place: str, record: Record) -> bool:
    """Whether a version was released into the repository at a place; one that is gone is another."""
    with contextlib.suppress(RepositoryError):
        return place == record.repository or open_repository(record.repository).place == place
    return False


def _differences(spec: ReconcileSpec, serving: Serving | None) -> Iterator[str]:
    repository = open_repository(spec.repository)
    if repository.kept(spec.model, JOURNAL) is not None:
        yield "a change of the model is under way, or was left half done"
    if serving is None:
        yield from _unknown(spec, repository)
        return
    record = serving.record
    for ledger, other in serving.others:
        yield f"{ledger.path(other.version)} says that it serves too"
    wrong = _in_place(repository, record) or _not_as_signed(spec, serving, repository)
    if wrong:
        yield wrong
    loaded: tuple[int, ...] = (record.version,)
    policy = _policy(repository.read_config(spec.model), record)
    config = f"{repository.place}/{spec.model}/{CONFIG}"
    if policy is None:
        yield f"{config} is not that of version {record.version}: somebody changed it"
    elif policy != loaded:
        if record.version == max(policy) and _age(record) < spec.watch_minutes * 60:
            loaded = policy
        else:
            yield f"{config} keeps versions {list(policy)} loaded, and the watch of version {record.version} is over"
    with fleet.connect(spec.url, spec.timeout_seconds) as servers:
        for server in servers:
            wrong = _server(server, record, loaded)
            if wrong:
                yield wrong


def _unknown(spec: ReconcileSpec, repository: Repository) -> Iterator[str]:
    """What there is of a model of which nothing serves by the ledger."""
    if repository.read_config(spec.model) is not None:
        yield f"{repository.place}/{spec.model}/{CONFIG} is there, and no version serves by the ledger {spec.ledger}"
    with fleet.connect(spec.url, spec.timeout_seconds) as servers:
        for server in servers:
            try:
                versions = server.ready_versions(spec.model)
            except TritonUnavailable:
                continue  # whoever releases first is told
            if versions:
                yield f"{server.url} serves versions {list(versions)} of {spec.model}, the ledger says none"


def _in_place(repository: Repository, record: Record) -> str:
    with repository.local(record.model, record.version) as folder:
        return _files(folder, record, f"{repository.place}/{record.model}/{record.version}")


def _not_as_signed(spec: ReconcileSpec, serving: Serving, repository: Repository) -> str:
    """Why a version is not what was signed, "" where it is, or where none must be."""
    record = serving.record
    if spec.public_key is None:
        return ""
    from refit.triton import signing  # cryptography is needed only here

    with repository.local(record.model, record.version) as folder:
        try:
            verify.signed_in_place(serving.ledger, record, spec.public_key, folder)
        except signing.Unsigned as exc:
            return f"version {record.version}: {exc}; {verify.SIGN.format(record.model)}"
        except signing.SigningError as exc:
            return f"version {record.version} is not what was signed: {exc}"
    return ""


def _trust(spec: ReconcileSpec, serving: Serving) -> None:
    """Raises RepositoryError where the ledger's own copy and record are not signed by the key that is named."""
    if spec.public_key is None:
        return
    from refit.triton import signing

    record = serving.record
    try:
        verify.signed(serving.ledger.path(record.version), record, spec.public_key)
    except signing.SigningError as exc:
        raise RepositoryError(
            f"nothing was mended, for the ledger's own version {record.version} of {spec.model} cannot be trusted: "
            f"{exc}. Go back to another version: refit rollback {spec.model} --to N; or, {UNSIGNED.format('mending')}"
        ) from None


def _files(folder: Path, record: Record, shown: str) -> str:
    """Why the files of a folder, called `shown`, are not those of a version, "" where they are."""
    try:
        found = read_model(folder).sha256
    except ArtefactError as exc:
        return f"{shown} is not what was released: {exc}"
    if found == record.sha256:
        return ""
    return f"{shown} is not what was released (sha256 {found}, not {record.sha256}): somebody changed it"


def _policy(config: bytes | None, record: Record) -> tuple[int, ...] | None:
    """The versions that a configuration pins; None where it is not the record's, the versions apart."""
    try:
        if config is None or pin(config, (record.version,)) != pin(record.config.encode(), (record.version,)):
            return None
    except (RepositoryError, UnicodeDecodeError):
        return None
    return tuple(sorted(int(v) for v in re.findall(rb"^    versions: (\d+)$", config, re.MULTILINE)))


def _age(record: Record) -> float:
    """For how many seconds the version has served, by the ledger."""
    return (datetime.now(UTC) - datetime.fromisoformat(record.history[-1].when)).total_seconds()


def _server(server: TritonClient, record: Record, loaded: tuple[int, ...]) -> str:
    """What a server serves of the model that the ledger does not say, "" where it agrees."""
    try:
        versions = server.ready_versions(record.model)
        if versions != loaded:
            told = f"versions {list(versions)}" if versions else "nothing"
            return f"{server.url} serves {told} of {record.model}, the ledger says {list(loaded)}"
        found = server.config(record.model).sha256
    except AccessRefused:
        return ""  # its versions agree; it shows its configuration to nobody
    except TritonError as exc:
        return str(exc)
    return "" if found == record.sha256 else f"{server.url} serves a model of sha256 {found}, not {record.sha256}"


def _mend(spec: ReconcileSpec, serving: Serving | None, say: Say) -> None:
    run = f"reconcile, {spec.asked_by()}"
    with exclusive(spec, run, say) as held:  # settles what was left half done
        if serving is None:
            return  # what else there is, only its owner can say
        record = serving.record
        now = _serving(spec)
        if now is None or now.record.version != record.version:
            raise RepositoryError(f"somebody has changed {spec.model} meanwhile; look again")
        _trust(spec, now)
        repository = held.repository
        if _in_place(repository, record) or _not_as_signed(spec, now, repository):
            _restore(serving.ledger, repository, record, say)
            held.lock.check()
        for ledger, other in serving.others:
            ledger.write(other.turn("retired", f"version {record.version} serves ({run})"))
        champion = look(held.servers, spec.model, say)
        with repository.local(spec.model, record.version) as folder:
            signature = read_model(folder).signature
        expected = expected_of(serving.ledger, record, signature)
        change = Change.begin(
            "rollback", spec, held, version=record.version, champion=champion, keep_versions=1, run=run, say=say
        )
        say(f"Loading version {record.version} of {spec.model} again, as the ledger has it")
        try:
            change.swap(record.config.encode(), record.sha256, expected)
        except BaseException as exc:
            change.fail(exc)
            raise
        change.finish()


def _restore(ledger: Ledger, repository: Repository, record: Record, say: Say) -> None:
    """Put the ledger's files of a version in place of those in the repository, which are kept for a look at them."""
    source = ledger.model(record.version)
    wrong = _files(source, record, str(source))
    if wrong:
        raise RepositoryError(f"{wrong}; the ledger has no good copy, so go back to another version: refit rollback")
    why = "somebody changed its files; those that were released were put back"
    files = {path.name: path for path in source.iterdir()}
    repository.put_back(record.model, record.version, files, record.config, why)
    say(f"The changed files of version {record.version} lie among the retired ones now")
