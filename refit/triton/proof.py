"""The proof that a server serves a version as it should: by its answers, as only those tell.

Measured: an overwritten model keeps its READY state and health 200 while old bytes serve, and a dead stub process
leaves every readiness at 200. So a version counts as served when the index names it alone, the configuration carries
its sha256 and its number, and real inferences come back from that version with the right values.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refit.triton import reference
from refit.triton.client import TritonClient
from refit.triton.config import Signature
from refit.triton.errors import ModelNotServed, ProofFailed
from refit.triton.installation import Installation
from refit.triton.reference import Reference, Samples, Tolerance
from refit.triton.server import TritonServer

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Proof:
    """What was seen.

    Attributes:
        answers: the outputs that came back, a row per sample.
        difference: the largest difference from the reference, in parts of the output's range.
        milliseconds: the median time of an inference, as the client sees it.
    """

    answers: Samples
    difference: float
    milliseconds: float


def ask(
    client: TritonClient, model: str, signature: Signature, inputs: Samples, version: int | None = None
) -> tuple[Samples, set[int], list[float]]:
    """Send every sample by itself.

    Returns:
        (outputs, a row per sample; the versions that answered; seconds per inference).

    Raises:
        ProofFailed: an answer has other outputs, shapes or types than the signature, or values that are not finite.
        InferenceFailed, ModelNotServed, TritonUnavailable: as the client.
    """
    rows: dict[str, list[object]] = {t.name: [] for t in signature.outputs}
    versions, seconds = set(), []
    for i in range(len(next(iter(inputs.values())))):
        sample = {name: array[i : i + 1] if signature.batch else array[i] for name, array in inputs.items()}
        answer = client.infer(model, sample, version)
        versions.add(answer.version)
        seconds.append(answer.seconds)
        if set(answer.outputs) != set(rows):
            raise ProofFailed(f"{model} answered with outputs {sorted(answer.outputs)}, and {sorted(rows)} are needed")
        for t in signature.outputs:
            array = answer.outputs[t.name]
            fault = reference.mismatch(t, array, rows=signature.batch)
            if fault:
                raise ProofFailed(f"{model} answered with an output {t.name!r} that {fault}")
            if not reference.finite(array):
                raise ProofFailed(
                    f"{model} answered with values of {t.name!r} that are not finite: the model is broken"
                )
            rows[t.name].append(array[0] if signature.batch else array)
    return {name: np.stack(values) for name, values in rows.items()}, versions, seconds  # type: ignore[arg-type]


def verify(
    client: TritonClient,
    model: str,
    version: int,
    sha256: str | None,
    expected: Reference,
    *,
    loaded: tuple[int, ...],
    tolerance: Tolerance,
    timeout_seconds: float,
) -> Proof:
    """Prove that a server answers with this version, has exactly these loaded, and gives the right answers.

    Args:
        sha256: what the configuration must say; None: it is that of another version, for the moment.
        loaded: the versions that are to be loaded, in order; requests that name none get the highest.
        timeout_seconds: for other versions to stop serving.

    Raises:
        ProofFailed: it does not; says in what. TritonUnavailable, ModelNotServed, InferenceFailed: as the client.
    """
    wait_for_versions(client, model, loaded, timeout_seconds)
    served = client.config(model)
    # A version that was not loaded anew goes on telling the configuration with which it was loaded (measured, 2.51.0):
    # what is loaded, the index says; here the policy must but name it.
    if (sha256 is not None and served.sha256 != sha256) or not set(loaded) <= set(served.versions or ()):
        raise ProofFailed(
            f"Triton at {client.url} has a configuration of {model} with versions {served.versions} and sha256 "
            f"{served.sha256}; {loaded} and {sha256 or 'any'} were released: somebody else changes this model, or "
            "Triton reads another repository"
        )
    outputs, versions, seconds = ask(client, model, served.signature, expected.inputs)
    if versions != {version}:
        raise ProofFailed(f"{model}: version {version} was asked for, and {sorted(versions)} answered")
    return Proof(
        answers=outputs,
        difference=reference.difference(expected.outputs, outputs, tolerance),
        milliseconds=round(float(np.median(seconds)) * 1000, 3),
    )


def wait_for_versions(client: TritonClient, model: str, versions: tuple[int, ...], timeout_seconds: float) -> None:
    """Wait until exactly these versions are READY.

    Another version may still be UNLOADING: it answers what it had taken on, and gets nothing new.

    Raises:
        ModelNotServed: one of them is not loaded, and is not being loaded.
        ProofFailed: another version still serves after ``timeout_seconds``.
    """
    until = time.monotonic() + timeout_seconds
    while True:
        entries = client.index(model)
        ready = tuple(sorted(e.version for e in entries if e.state == "READY" and e.version is not None))
        loading = any(e.state == "LOADING" for e in entries)
        if ready == versions and not loading:
            return
        if not set(versions) <= set(ready) and not loading:
            reasons = "; ".join(f"version {e.version}: {e.state or 'not loaded'} {e.reason}".strip() for e in entries)
            raise ModelNotServed(
                f"Triton at {client.url} serves {model} {ready}, not {versions} ({reasons or 'unknown'})"
            )
        if time.monotonic() >= until:
            raise ProofFailed(
                f"Triton at {client.url} serves {model} {ready} after {timeout_seconds:g} s, and only {versions} should"
            )
        time.sleep(_POLL_SECONDS)


def wait_unloaded(client: TritonClient, model: str, timeout_seconds: float) -> bool:
    """Wait until no version is on its way out; False when one still is (measured: one whose process died stays so)."""
    until = time.monotonic() + timeout_seconds
    while any(e.state == "UNLOADING" for e in client.index(model)):
        if time.monotonic() >= until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def prove_aside(
    tree: Path,
    model: str,
    version: int,
    signature: Signature,
    inputs: Samples,
    *,
    installation: Installation,
    folder: Path | None = None,
) -> Samples:
    """Serve a staged version from a throwaway Triton and ask it: a model that fails here never meets production.

    A failed load in production leaves its strict readiness at 400 for good, so the first load happens here.

    Args:
        tree: a repository with this one model.
        folder: where the server's log stays; default: nowhere.

    Raises:
        ProofFailed: the model does not load or does not answer as its signature says.
    """
    with tempfile.TemporaryDirectory(prefix="refit-proof-") as scratch:
        server = TritonServer(tree, folder or Path(scratch), installation=installation, stop_seconds=0)
        with server, TritonClient(server.url, control_key="") as client:
            entries = client.index(model)
            if not any(e.version == version and e.state == "READY" for e in entries):
                reason = "; ".join(e.reason for e in entries if e.reason) or server.log_tail(6)
                raise ProofFailed(f"a throwaway Triton cannot load the model: {reason}")
            served = client.config(model)
            if served.signature != signature:
                raise ProofFailed(
                    f"Triton understood the signature as {served.signature}; the ONNX file has {signature}"
                )
            outputs, versions, _ = ask(client, model, signature, inputs)
            if versions != {version}:
                raise ProofFailed(f"version {version} was staged, and {sorted(versions)} answered")
            return outputs
