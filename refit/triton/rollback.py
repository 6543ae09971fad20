"""Back to a version that served before: the same path as a release, with nothing to stage.

The version's bytes are held against the ledger before Triton is asked to load them, and its answers against those
that it gave when it was released. The version that is left stays in the repository: going forward again is a roll
back to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from refit.triton import verify
from refit.triton.champion import Champion, look
from refit.triton.config import Signature
from refit.triton.errors import ArtefactError, RollbackError
from refit.triton.ledger import Ledger, Record
from refit.triton.model import ONNX, read_model
from refit.triton.reference import Reference, made_up
from refit.triton.repository import Repository
from refit.triton.specs import ReleaseReport, RollbackSpec
from refit.triton.transaction import Change, exclusive, reached

UNSIGNED = (
    "where it is known to be good (released before release.signing was set, or signed with an older key), take "
    "release.signing out of the pipeline's file for this {}"
)


def rollback(spec: RollbackSpec, say: Callable[[str], None] = lambda _: None) -> ReleaseReport:
    """Make an older version the champion again, or leave everything as it was.

    Raises:
        RollbackError: there is no such version, or its files are not what was released; nothing was touched.
        TritonUnavailable, AccessRefused, ModelLocked, RepositoryError, ServersDiffer: nothing was touched.
        LockLost: this process was paused; who took the lock settles what was begun.
        ReleaseFailed: the version does not serve; says what serves now.
    """
    run = spec.asked_by()
    with exclusive(spec, run, say) as held:
        champion = look(held.servers, spec.model, say)
        ledger, record, signature = _choose(spec, held.repository, champion)
        if champion.versions == (record.version,):
            raise RollbackError(f"version {record.version} of {spec.model} serves already; name another one with --to")
        expected = expected_of(ledger, record, signature)
        change = Change.begin(
            "rollback",
            spec,
            held,
            version=record.version,
            champion=champion,
            keep_versions=1,
            run=run,
            say=say,
        )
        reached("begun")
        say(f"Going back to version {record.version} of {spec.model}")
        begin = time.perf_counter()
        seconds = {}
        try:
            if record.version in champion.versions:
                change.route(expected)
                seconds["back"] = time.perf_counter() - begin
                say(f"Version {record.version} answers again, after {seconds['back']:.2f} s; its configuration follows")
            seen = change.swap(record.config.encode(), record.sha256, expected)
        except BaseException as exc:
            change.fail(exc)
            raise
        seconds["swap"] = time.perf_counter() - begin
        change.finish()
        return ReleaseReport(
            outcome="rolled_back",
            model=spec.model,
            version=record.version,
            previous=champion.version,
            sha256=record.sha256,
            url=spec.url,
            servers=[server.url for server in held.servers],
            pipeline=record.pipeline,
            run=run,
            probes=len(expected),
            difference=seen.difference,
            milliseconds=seen.milliseconds,
            proven_by=expected.source,
            seconds={name: round(value, 3) for name, value in seconds.items()},
            notes=[],
        )


def _choose(spec: RollbackSpec, repository: Repository, champion: Champion) -> tuple[Ledger, Record, Signature]:
    """The version to go back to, proven to be the bytes that were released."""
    ledger = Ledger(spec.ledger)
    there = repository.versions(spec.model)
    wanted = spec.to if spec.to is not None else _before(spec, ledger, there, champion)
    found = ledger.find(spec.model, wanted)
    if found is None or wanted not in there or found[1].state == "failed":
        good = [v for v in there if (r := ledger.find(spec.model, v)) is not None and r[1].state != "failed"]
        raise RollbackError(
            f"version {wanted} of {spec.model} cannot serve: it is not in {repository.place}, or the ledger "
            f"{spec.ledger} does not know it as good; there are {good or 'none'}"
        )
    ledger, record = found
    try:
        with repository.local(spec.model, wanted) as folder:
            model = read_model(folder)
            if model.sha256 != record.sha256:
                file = "" if model.engines else f"/{ONNX}"
                raise RollbackError(
                    f"{repository.place}/{spec.model}/{wanted}{file} is not the file that was released as version "
                    f"{wanted} (sha256 {record.sha256}): somebody changed it; go back to another version"
                )
            if spec.public_key is not None:
                _check_signature(ledger, record, spec.public_key, folder)
    except ArtefactError as exc:
        raise RollbackError(f"version {wanted} of {spec.model} cannot serve: {exc}") from None
    return ledger, record, model.signature


def _check_signature(ledger: Ledger, record: Record, public_key: str, folder: Path) -> None:
    """Raises ArtefactError where the version is not what was signed."""
    from refit.triton import signing  # cryptography is needed only here

    try:
        verify.signed_in_place(ledger, record, public_key, folder)
    except signing.SigningError as exc:
        raise ArtefactError(f"{exc}. Go back to another version; or, {UNSIGNED.format('roll back')}") from None


def _before(spec: RollbackSpec, ledger: Ledger, there: list[int], champion: Champion) -> int:
    """The version that the champion replaced, else the newest good one below it that is still there."""
    current = champion.version
    known = ledger.find(spec.model, current) if current is not None else None
    if known is not None and known[1].previous is not None and known[1].previous.version in there:
        return known[1].previous.version
    for version in reversed(there):
        found = ledger.find(spec.model, version)
        if found and found[1].state in ("retired", "serving") and (current is None or version < current):
            return version
    raise RollbackError(
        f"there is no version of {spec.model} before {current} in the repository: nothing to go back to"
    )


def expected_of(ledger: Ledger, record: Record, signature: Signature) -> Reference:
    """The answers that the version gave when it was released; without them its shapes are proven."""
    path = ledger.reference(record.version)
    if path.exists():
        return Reference.load(path, signature, "the release's own answers")
    return Reference(made_up(signature, record.sidecar), {}, "nothing")
