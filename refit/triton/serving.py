"""Does Triton still serve what a release made the champion? Bind asks before it reuses an earlier run's release."""

from __future__ import annotations

import json
from pathlib import Path

from refit.triton.client import TritonClient
from refit.triton.errors import AccessRefused, TritonError
from refit.triton.ledger import Ledger, Record


def still_serving(report: Path, *, url: str, signed_in: Ledger | None = None, timeout_seconds: float = 5.0) -> bool:
    """Whether Triton serves the version of a release.json.

    Args:
        report: the release stage's ``out/release.json``.
        url: where the model is released to now; another one than the report's is a no.
        signed_in: the ledger, where releases are signed; a version without a signature there is a no.

    Returns:
        True only where the server says so itself. A report that cannot be read, a server that does not answer, another
        version or other bytes: False. No control key is needed: a server that shows its configuration to nobody without
        one is taken at its version's number, which no release uses twice.
    """
    try:
        value = json.loads(report.read_text(encoding="utf-8"))
        model, version, sha256 = str(value["model"]), int(value["version"]), str(value["sha256"])
        if value["url"] != url or (signed_in is not None and not _signed(signed_in, version)):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    try:
        with TritonClient(url, timeout_seconds=timeout_seconds) as client:
            return _serves(client, model, version, sha256) and client.ready(model, version)
    except TritonError:
        return False


def is_other(record: Record, url: str, timeout_seconds: float = 5.0) -> bool:
    """Whether Triton says itself that it serves something else than a record of the ledger; no answer is no other."""
    try:
        with TritonClient(url, timeout_seconds=timeout_seconds) as client:
            return not _serves(client, record.model, record.version, record.sha256)
    except TritonError:
        return False


def _signed(ledger: Ledger, version: int) -> bool:
    from refit.triton import signing  # cryptography is needed only here

    return (ledger.path(version) / signing.FILE).is_file()


def _serves(client: TritonClient, model: str, version: int, sha256: str) -> bool:
    try:
        served = client.config(model)
    except AccessRefused:
        return max(client.versions(model)) == version
    return bool(served.versions) and max(served.versions or ()) == version and served.sha256 == sha256
