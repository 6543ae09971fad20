"""A client of one Triton server, on tritonclient's HTTP side: typed errors, time limits, the control key.

A client belongs to one thread (tritonclient's own rule); make one for each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from geventhttpclient.response import HTTPParseError
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from refit.triton.config import NUMPY_TYPES, Served
from refit.triton.errors import (
    AccessRefused,
    InferenceFailed,
    LoadFailed,
    ModelNotServed,
    TritonError,
    TritonUnavailable,
)
from refit.triton.server import CONTROL_HEADER, CONTROL_KEY_VARIABLE
from refit.triton.traffic import Traffic

Arrays = Mapping[str, npt.NDArray[Any]]
T = TypeVar("T")

_DATATYPES = {np.dtype(kind): name for name, kind in NUMPY_TYPES.items()}


@dataclass(frozen=True)
class IndexEntry:
    """A line of the repository index.

    Attributes:
        version: None for a model of which nothing was ever loaded.
        state: READY, LOADING, UNLOADING, UNAVAILABLE, or "".
        reason: why it is not READY.
    """

    name: str
    version: int | None
    state: str
    reason: str


@dataclass(frozen=True)
class Answer:
    """Outputs by name, the version that gave them, and the seconds from sending to the parsed answer."""

    outputs: dict[str, npt.NDArray[Any]]
    version: int
    seconds: float


class TritonClient:
    """Asks one Triton server.

    Args:
        url: "http://host:port", https too.
        timeout_seconds: for connecting, and for each answer but a load's.
        load_seconds: for the answer to a load or an unload.
        control_key: for restricted APIs; default: the environment's REFIT_SECRET_TRITON_CONTROL_KEY.

    Every method raises TritonUnavailable when the server cannot be reached, AccessRefused when it wants another key.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 10.0,
        load_seconds: float = 300.0,
        control_key: str | None = None,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TritonUnavailable(url, "not an HTTP address; give one like http://127.0.0.1:8000")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        key = control_key if control_key is not None else os.environ.get(CONTROL_KEY_VARIABLE)
        self._headers = {CONTROL_HEADER: key} if key else None

        def connect(seconds: float) -> Any:
            return triton_http.InferenceServerClient(
                f"{parts.netloc}{parts.path.rstrip('/')}",
                ssl=parts.scheme == "https",
                connection_timeout=timeout_seconds,
                network_timeout=seconds,
            )

        self._client = connect(timeout_seconds)
        self._loader = connect(load_seconds)

    def __enter__(self) -> TritonClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._loader.close()

    def live(self) -> None:
        """The server answers and says that it is live."""
        if not self._call(self._client.is_server_live):
            raise TritonUnavailable(self.url, "it answers, and says that it is not live")

    def server(self) -> dict[str, Any]:
        """The server's name (its id), version and extensions."""
        answer: dict[str, Any] = self._call(self._client.get_server_metadata)
        return answer

    def index(self, model: str | None = None) -> list[IndexEntry]:
        """Every version that the server knows of, of one model or of all. Restricted API."""
        lines = self._call(lambda: self._client.get_model_repository_index(headers=self._headers))
        return [
            IndexEntry(line["name"], _version(line.get("version")), line.get("state", ""), line.get("reason", ""))
            for line in lines
            if model in (None, line["name"])
        ]

    def ready_versions(self, model: str) -> tuple[int, ...]:
        """The versions of a model that serve, in order. Restricted API."""
        return tuple(sorted(e.version for e in self.index(model) if e.state == "READY" and e.version is not None))

    def ready(self, model: str, version: int) -> bool:
        """A version is loaded. It says nothing about answers: those of a dead stub process are errors all the same."""
        return bool(self._call(lambda: self._client.is_model_ready(model, str(version))))

    def versions(self, model: str) -> tuple[int, ...]:
        """The versions of a model that the server offers, in order. Everybody may ask, whatever APIs are restricted.

        Raises:
            ModelNotServed: no version of it is loaded.
        """
        answer = self._call(lambda: self._client.get_model_metadata(model))
        return tuple(sorted(int(version) for version in answer["versions"]))

    def config(self, model: str) -> Served:
        """The configuration that the server uses for a model.

        Raises:
            ModelNotServed: no version of it is loaded.
        """
        return Served.from_json(self._call(lambda: self._client.get_model_config(model, headers=self._headers)))

    def traffic(self, model: str, version: int) -> Traffic:
        """What requests of a version have cost since it was loaded.

        Raises:
            ModelNotServed: it is not loaded.
        """
        answer = self._call(lambda: self._client.get_inference_statistics(model, str(version)))
        return Traffic.from_json(answer["model_stats"][0])

    def load(self, model: str) -> None:
        """Load a model, or load it again after its files changed; returns when the new state serves. Restricted API.

        Raises:
            LoadFailed: the server's reason; a version that served before goes on serving.
        """
        self._call(lambda: self._loader.load_model(model, headers=self._headers), LoadFailed)

    def unload(self, model: str) -> None:
        """Unload every version of a model; Triton says yes for an unknown one too. Restricted API."""
        self._call(lambda: self._loader.unload_model(model, headers=self._headers), LoadFailed)

    def infer(self, model: str, arrays: Arrays, version: int | None = None) -> Answer:
        """Run a model.

        Args:
            model: its name.
            arrays: inputs by name, in the shapes that the server expects, the batch dim included.
            version: a version, or None for the one that the server chooses (the highest that serves).

        Raises:
            ModelNotServed: the model or the version is not loaded.
            InferenceFailed: the server's error, or an answer without outputs (a Triton environment with numpy 2 gives
                those).
        """
        inputs = []
        for name, array in arrays.items():
            datatype = _DATATYPES.get(array.dtype)
            if datatype is None:
                raise InferenceFailed(
                    f"{model}: input {name!r} is {array.dtype}; Triton takes {', '.join(NUMPY_TYPES)}"
                )
            tensor = triton_http.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            inputs.append(tensor)
        begin = time.perf_counter()
        result = self._call(
            lambda: self._client.infer(model, inputs, model_version="" if version is None else str(version)),
            InferenceFailed,
        )
        answer = result.get_response()
        outputs = {o["name"]: result.as_numpy(o["name"]) for o in answer.get("outputs", [])}
        seconds = time.perf_counter() - begin
        if not outputs or any(array is None or array.size == 0 for array in outputs.values()):
            raise InferenceFailed(f"{self.url}: {model} answered with empty outputs; look into the server's log")
        return Answer(outputs, int(answer["model_version"]), seconds)

    def _call(self, call: Callable[[], T], refused: type[TritonError] = InferenceFailed) -> T:
        """Run one request; the server's refusals and the network's faults become our errors."""
        try:
            return call()
        except InferenceServerException as exc:
            raise self._translate(exc, refused) from None
        except TimeoutError:
            raise TritonUnavailable(self.url, "no answer in time") from None
        except OSError as exc:
            raise TritonUnavailable(self.url, exc.strerror or str(exc)) from None
        except HTTPParseError as exc:
            raise TritonUnavailable(self.url, f"the answer is not Triton's: {exc}") from None

    def _translate(self, exc: InferenceServerException, refused: type[TritonError]) -> TritonError:
        # A Python backend puts its traceback behind "At:"; the server's log has it too.
        status, message = exc.status(), " ".join(str(exc.message()).split("\n\nAt:")[0].split())
        if "API is restricted" in message:
            return AccessRefused(self.url, given=self._headers is not None)
        unknown = ("unknown model", "is not ready", "not at ready state", "is not found", "has no available versions")
        if status in ("404", "503") or (refused is InferenceFailed and any(u in message for u in unknown)):
            return ModelNotServed(f"Triton at {self.url} does not serve it: {message}")
        return refused(f"Triton at {self.url}: {message}")


def _version(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
