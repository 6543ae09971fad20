"""A model that Triton serves: one version from the first image to the last, asked by several threads.

- The version is chosen when the work begins, and every request names it. Where a release takes it away meanwhile the
  work ends with that reason; what was answered by it is kept, and a new start asks the version that serves then about
  every image: results are never of two versions.
- A server that is away, or says that it has too much to do (its queue is full), is asked again after a while, with
  growing pauses, for as long as the spec's patience lasts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.command import BadSpec, StageError
from refit.postprocess import ModelInfo, ModelInfoError
from refit.predict.specs import TritonInferenceSpec
from refit.triton.client import TritonClient
from refit.triton.errors import InferenceFailed, ModelNotServed, TritonError, TritonUnavailable

BATCH = 4  # what a client got most images a second with, of 4 and 8 (benchmarks/results/predict.json)
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_TRIES = 5  # of a request that the server answers with an error of its own


class TritonModel:
    """See `refit.predict.work.Model`; `TritonModel(spec)` asks the server for version and description.

    Raises BadSpec: the server does not serve that version, or a model that Refit did not release. StageError: away.
    """

    def __init__(self, spec: TritonInferenceSpec) -> None:
        self._spec, self._own = spec, threading.local()
        self._clients: list[TritonClient] = []
        self.workers = spec.in_flight
        client = self._client()
        try:
            served = client.config(spec.model)
            versions = client.versions(spec.model)
        except ModelNotServed as exc:
            raise BadSpec(str(exc)) from None
        except TritonError as exc:
            raise StageError(str(exc)) from None
        self.version = spec.version or max(versions)
        if self.version not in versions:
            there = ", ".join(map(str, versions))
            raise BadSpec(f"Triton at {client.url} does not serve version {self.version} of {spec.model}, but {there}")
        if served.sidecar is None:
            raise BadSpec(
                f"Triton at {client.url} serves {spec.model} without a sidecar: it was not released by Refit, so "
                "nobody knows how to read its answers; release it first"
            )
        try:
            self.info = ModelInfo.from_json(served.sidecar, f"the sidecar of {spec.model}")
        except ModelInfoError as exc:
            raise BadSpec(str(exc)) from None
        self.batch = min(spec.batch or BATCH, served.max_batch_size or 1)
        self.about: Mapping[str, Any] = {
            "through": "triton",
            "model": spec.model,
            "version": self.version,
            "sha256": served.sha256,
        }

    def ask(self, tensor: NDArray[np.float32], stop: threading.Event) -> Mapping[str, NDArray[Any]]:
        client, arrays = self._client(), {self.info.input.name: tensor}
        until, pause, tries = time.monotonic() + self._spec.patience_seconds, FIRST_PAUSE, 0
        while True:
            try:
                return client.infer(self._spec.model, arrays, self.version).outputs
            except ModelNotServed as exc:
                self._still_there(client)  # a full queue has the same status
                why: TritonError = exc
            except TritonUnavailable as exc:
                why = exc
            except InferenceFailed as exc:
                why, tries = exc, tries + 1
            except TritonError as exc:
                raise StageError(str(exc)) from None
            if tries == _TRIES or time.monotonic() + pause > until or stop.wait(pause):
                raise StageError(f"{why}; what was answered is kept: start again to go on")
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        """Close the connections of all threads, which have ended."""
        for client in self._clients:
            client.close()

    def _still_there(self, client: TritonClient) -> None:
        try:
            there = client.versions(self._spec.model)
        except ModelNotServed:
            there = ()
        except TritonError:
            return  # away: asked again
        if self.version not in there:
            now = f"it serves {', '.join(map(str, there))}" if there else "it serves none"
            raise StageError(
                f"Triton at {client.url} does not serve version {self.version} of {self._spec.model} any more, {now}: "
                "start again to ask the version that serves now, from the first image on"
            )

    def _client(self) -> TritonClient:
        if not hasattr(self._own, "client"):
            self._own.client = TritonClient(self._spec.url)
            self._clients.append(self._own.client)
        client: TritonClient = self._own.client
        return client
