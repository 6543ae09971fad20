"""Releases and roll backs as stage commands: report, summary and status lines, and the exit code that an error has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refit.command import BadData, BadSpec, Rejected, StageError
from refit.files import write_json
from refit.status import StatusWriter
from refit.triton import proven
from refit.triton.approved import approved
from refit.triton.artefact import read_origin
from refit.triton.canary import canary
from refit.triton.errors import ArtefactError, ReleaseFailed, RepositoryError, RollbackError, TritonError
from refit.triton.lineage import Lineage, gather
from refit.triton.reconcile import reconcile
from refit.triton.release import release
from refit.triton.rollback import rollback
from refit.triton.specs import (
    CanarySpec,
    ReconcileSpec,
    ReleaseReport,
    ReleaseSpec,
    RollbackSpec,
    SigningSpec,
    WatchSpec,
)
from refit.triton.watch import watch

if TYPE_CHECKING:
    from refit.triton.signing import Keys

_SUMMARY = (
    *("outcome", "model", "version", "previous", "sha256", "url", "servers"),
    *("milliseconds", "difference", "proven_by"),
)


def run_release(spec: ReleaseSpec, out: Path, status: StatusWriter) -> None:
    """Release and write ``out/release.json`` and ``out/summary.json``."""
    with stage_errors():
        keys = _keys(spec.signing) if spec.signing else None
        decision = approved(spec, read_origin(spec, out).run)
        lineage = Lineage(gather(out.absolute().parents[1], decision), keys)
        report = release(spec, out, _say(status), lineage)
    _done(report, out, status)


def _keys(signing: SigningSpec) -> Keys:
    from refit.triton.signing import Keys, SigningError  # cryptography is loaded where a key is named

    try:
        return Keys.of(signing.public_key)
    except SigningError as exc:
        raise BadSpec(str(exc)) from None


def run_rollback(spec: RollbackSpec, out: Path, status: StatusWriter) -> None:
    """Roll back and write ``out/release.json`` and ``out/summary.json``."""
    with stage_errors():
        report = rollback(spec, _say(status))
    _done(report, out, status)
    tell_people(spec.ledger)


def run_watch(spec: WatchSpec, out: Path, status: StatusWriter) -> None:
    """Watch and write ``out/release.json`` and ``out/summary.json``."""
    with stage_errors():
        report = watch(spec, out, _say(status))
    value = report.model_dump(by_alias=True)
    for name in ("release.json", "summary.json"):
        write_json(out / name, value)
    print(report.sentence())
    kpi = {"requests": float(report.requests), "failed": float(report.failed), "milliseconds": report.milliseconds}
    status.success(report.sentence(), kpi=kpi)


def run_reconcile(spec: ReconcileSpec, out: Path, status: StatusWriter) -> None:
    """Compare with the ledger and write ``out/release.json`` and ``out/summary.json``; rejected where it differs."""
    with stage_errors():
        report = reconcile(spec, _say(status))
    value = report.model_dump(by_alias=True)
    write_json(out / "release.json", value)
    write_json(out / "summary.json", {**value, "differences": [line[:300] for line in report.differences[:4]]})
    told = "; ".join(report.differences)
    if report.outcome == "differs":
        raise Rejected(
            f"{spec.model} is not what the ledger says: {told}. To mend it: refit reconcile --mend, or the DAG"
        )
    status.success(f"{spec.model}: {report.outcome}{f': {told}' if told else ''}")


def run_canary(spec: CanarySpec, out: Path, status: StatusWriter) -> None:
    """Try a challenger and write ``out/verdict.json``, ``out/comparison.json`` and ``out/summary.json``.

    Raises:
        Rejected: it is not to be released.
    """
    with stage_errors():
        verdict, found = canary(spec, out, _say(status))
    write_json(out / "comparison.json", found.to_json() if found else {})
    for name in ("verdict.json", "summary.json"):
        write_json(out / name, verdict.to_json())
    print(f"{verdict.state}: {verdict.reason}")
    if verdict.state == "fail":
        raise Rejected(verdict.reason)
    status.success(f"{verdict.state}: {verdict.reason}", kpi=dict(verdict.figures))


def _say(status: StatusWriter) -> Callable[[str], None]:
    def say(message: str) -> None:
        print(message, flush=True)
        status.running(message)

    return say


def _done(report: ReleaseReport, out: Path, status: StatusWriter) -> None:
    write_report(report, out)
    print(report.sentence())
    status.success(
        report.sentence(),
        kpi={
            "version": float(report.version),
            "inference_milliseconds": report.milliseconds,
            "reference_difference": report.difference,
            **{f"{name}_seconds": value for name, value in report.seconds.items()},
        },
    )


def tell_people(ledger: Path) -> None:
    """Make the index anew that people look at. What serves, serves without it."""
    from refit.publish.stage import refresh

    try:
        refresh(ledger.parent)
    except (OSError, StageError) as exc:
        print(f"warning: the published index is as before: {exc}")


def write_report(report: ReleaseReport, out: Path) -> None:
    """release.json has everything, summary.json what travels in the stage's result."""
    value = report.model_dump(by_alias=True)
    write_json(out / "release.json", value)
    summary = {name: value[name] for name in _SUMMARY}
    write_json(out / "summary.json", {**summary, "servers": proven.told(report.servers)})


@contextmanager
def stage_errors() -> Iterator[None]:
    """Errors of `refit.triton` as those of stage commands (exit codes: docs/contracts.md, "Stage commands")."""
    try:
        yield
    except ArtefactError as exc:
        raise BadData(str(exc)) from exc
    except (RepositoryError, RollbackError) as exc:
        raise BadSpec(str(exc)) from exc
    except ReleaseFailed as exc:
        raise (Rejected if exc.rejected else StageError)(str(exc)) from exc
    except TritonError as exc:
        raise StageError(str(exc)) from exc
