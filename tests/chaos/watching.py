"""A client of Triton that never stops asking: which versions answered, and how long nobody did."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
import urllib.request
from types import TracebackType
from typing import Any

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Client:
    """Asks a model for an inference ten times a second while its context is open.

    answers: (seconds since the start, version) of each answer. gap: the longest time without one, in seconds.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v2/models/{model}"
        self._body = self._question()
        self.answers: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Client:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(30)
        self._ended = time.monotonic() - self._began

    @property
    def versions(self) -> list[int]:
        """The versions that answered, each time another one than before."""
        found = [version for _, version in self.answers]
        return [v for v, before in zip(found, [None, *found], strict=False) if v != before]

    @property
    def gap(self) -> float:
        moments = [0.0, *(moment for moment, _ in self.answers), self._ended]
        return max(after - before for before, after in itertools.pairwise(moments))

    def _question(self) -> bytes:
        inputs = [{**i, "shape": [1, *i["shape"][1:]]} for i in self._ask("", None)["inputs"]]
        return json.dumps({"inputs": [{**i, "data": [0.5] * math.prod(i["shape"])} for i in inputs]}).encode()

    def _ask(self, path: str, body: bytes | None) -> Any:
        with _direct.open(self._url + path, body, timeout=2) as answer:
            return json.load(answer)

    def _run(self) -> None:
        while not self._over.wait(0.1):
            try:
                said = self._ask("/infer", self._body)
            except OSError:
                continue
            self.answers.append((time.monotonic() - self._began, int(said["model_version"])))
