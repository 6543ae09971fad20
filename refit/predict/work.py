"""Images through a model: several at once, never more than memory holds, each answer kept before the next is fetched.

A worker takes as many images as one request holds, decodes and prepares them, asks, reads the answer, draws. The main
thread keeps the answers. No worker takes more before the answer of its last images is handed over, so that a slow model
slows the reading down (back pressure) and memory holds `workers` requests, whatever the number of images.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.command import BadSpec
from refit.files import write_bytes
from refit.postprocess import Detections, Frame, ModelInfo, decoder_for, resize, to_tensor
from refit.postprocess.draw import draw_boxes
from refit.predict.images import Images, Unreadable
from refit.predict.journal import Journal, Row
from refit.predict.specs import PredictParams
from refit.status import StatusWriter

Pixels = NDArray[np.uint8]
SAID = 20  # bad images that get a status line each; errors.json has all
TELL_SECONDS = 2.0
PICTURES = "images"
_CANDIDATES = 1000  # objects of an image before limits by class choose


class Model(Protocol):
    """Who is asked; used by several threads at once.

    Attributes:
        info: how it is fed and read.
        batch: images in one request.
        workers: requests at once.
        about: what its answers depend on, as JSON: part of the journal's question and of the results.
    """

    info: ModelInfo
    batch: int
    workers: int
    about: Mapping[str, Any]

    def ask(self, tensor: NDArray[np.float32], stop: threading.Event) -> Mapping[str, NDArray[Any]]:
        """float32 [n, ...] -> outputs by name. Waits where it must, but not once `stop` is set. Raises StageError."""


def question(spec: PredictParams, model: Model) -> dict[str, Any]:
    """What decides the answers. Raises BadSpec for thresholds of classes that the model does not have."""
    unknown = spec.unknown(model.info.classes)
    if unknown:
        known = ", ".join(model.info.classes)
        raise BadSpec(f"thresholds: the model has no class {unknown[0]!r}; it has {known}")
    own = model.info.postprocess.score_threshold
    return {**model.about, "thresholds": {n: spec.threshold(n, own) for n in model.info.classes}, "draw": spec.draw}


def answer(
    images: Images,
    model: Model,
    decode: Callable[[bytes], Pixels],
    asked: Mapping[str, Any],
    journal: Journal,
    out: Path,
    status: StatusWriter,
) -> None:
    """Ask about every image that the journal has no answer for.

    Args:
        decode: bytes -> RGB uint8 [h, w, 3]; raises Unreadable.
        asked: of `question`.
        out: drawn pictures go below it.

    Raises StageError: the model, or the store with the images, cannot be asked; what was answered is kept.
    """
    worker = _Worker(images, model, decode, asked, out)
    progress = _Progress(status, len(images), journal)
    places = iter(journal.missing())
    chunks = iter(lambda: list(islice(places, model.batch)), [])
    for rows in _mapped(worker, chunks, model.workers):
        journal.add(rows)
        progress.step(rows, images)
    journal.sync()


class _Worker:
    def __init__(
        self,
        images: Images,
        model: Model,
        decode: Callable[[bytes], Pixels],
        asked: Mapping[str, Any],
        out: Path,
    ) -> None:
        self._images, self._model, self._decode, self._out = images, model, decode, out
        self._draw: bool = asked["draw"]
        info = model.info
        limits = [asked["thresholds"][name] for name in info.classes]
        self._limits, self._most = np.array(limits, np.float32), info.postprocess.max_detections
        same = len(set(limits)) == 1
        most = self._most if same else max(self._most, _CANDIDATES)
        loose = replace(info.postprocess, score_threshold=min(limits), max_detections=most)
        self._read = decoder_for(replace(info, postprocess=loose))
        self.stop = threading.Event()
        self._own = threading.local()

    def __call__(self, places: list[int]) -> list[tuple[int, Row]]:
        rows: list[tuple[int, Row]] = []
        frames: list[Frame] = []
        kept = []
        tensors, target = self._room(), self._model.info.input
        for place in places:
            try:
                pixels = self._decode(self._images.read(self._images.files.at(place)))
            except Unreadable as exc:
                rows.append((place, {"code": exc.code, "error": str(exc)}))
                continue
            small, frame = resize(pixels, target)
            tensors[len(frames)] = to_tensor(small, target)
            frames.append(frame)
            kept.append((place, pixels if self._draw else None, pixels.shape))
        if not kept:
            return rows
        outputs = self._model.ask(tensors[: len(frames)], self.stop)
        for (place, pixels_drawn, shape), every in zip(kept, self._read(outputs, frames), strict=True):
            found = self._chosen(every)
            if pixels_drawn is not None:
                self._save(self._images.files.paths[place], pixels_drawn, found)
            rows.append((place, {"width": shape[1], "height": shape[0], "objects": _plain(found)}))
        return rows

    def _room(self) -> NDArray[np.float32]:
        """For the images of one request, used again by the same thread: memory that is new costs more than a copy."""
        if not hasattr(self._own, "room"):
            self._own.room = np.empty((self._model.batch, *self._model.info.input.shape), np.float32)
        room: NDArray[np.float32] = self._own.room
        return room

    def _chosen(self, found: Detections) -> Detections:
        keep = found.scores >= self._limits[found.classes]
        return Detections(found.boxes[keep], found.scores[keep], found.classes[keep]).best(self._most)

    def _save(self, file: str, pixels: Pixels, found: Detections) -> None:
        drawn = draw_boxes(pixels, found.boxes, found.classes, self._model.info.classes, found.scores)
        path = self._out / PICTURES / file
        if path.suffix.lower() not in {".jpg", ".jpeg", ".png"}:
            path = path.with_name(path.name + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, cv2.imencode(path.suffix.lower(), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1].tobytes())


def _plain(found: Detections) -> list[list[float]]:
    """Rounded where the digits mean nothing: a hundredth of a pixel, a score to 1e-5."""
    boxes = found.boxes.astype(np.float64).round(2).tolist()
    scores = found.scores.astype(np.float64).round(5).tolist()
    return [[c, s, *box] for c, s, box in zip(found.classes.tolist(), scores, boxes, strict=True)]


def _mapped(worker: _Worker, chunks: Iterable[list[int]], workers: int) -> Iterator[list[tuple[int, Row]]]:
    """Results as they come; when it ends early (an error, SIGTERM), what is under way is told to stop."""
    chunks = iter(chunks)
    with ThreadPoolExecutor(workers, thread_name_prefix="predict") as pool:
        under_way: set[Future[list[tuple[int, Row]]]] = set()
        try:
            while True:
                under_way |= {pool.submit(worker, chunk) for chunk in islice(chunks, workers - len(under_way))}
                if not under_way:
                    return
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
        finally:
            worker.stop.set()
            for future in under_way:
                future.cancel()


class _Progress:
    """Status lines with what is done, how fast, and how long it will take."""

    def __init__(self, status: StatusWriter, total: int, journal: Journal) -> None:
        self._status, self._total, self._journal = status, total, journal
        self._began = time.monotonic()
        self._next = self._began + TELL_SECONDS
        self._bad = self._now = 0
        if journal.reused:
            status.running(f"{journal.reused} of {total} images were answered before; they are not asked about again")

    def step(self, rows: list[tuple[int, Row]], images: Images) -> None:
        self._now += len(rows)
        for place, row in rows:
            if "error" in row:
                self._bad += 1
                if self._bad <= SAID:
                    file = shown(images.files.paths[place])
                    self._status.running(f"left out {file}: {row['error']}")
        done, now = self._journal.reused + self._now, time.monotonic()
        if now < self._next and done < self._total:
            return
        self._next = now + TELL_SECONDS
        rate = self._now / max(now - self._began, 1e-3)
        left = (self._total - done) / rate
        bad = f", {self._bad} bad" if self._bad else ""
        self._status.running(f"images: {done} of {self._total}{bad}; {rate:.1f} a second, {left:.0f} s left")


def shown(name: str) -> str:
    """A file's name as JSON and a terminal can hold it: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def check_apart(root: Path, out: Path) -> None:
    """Drawn pictures must not replace images that were given, nor be taken for them next time. Raises BadSpec."""
    real, target = Path(os.path.realpath(root)), Path(os.path.realpath(out))
    if real.is_relative_to(target) or target.is_relative_to(real):
        raise BadSpec(f"images: {root} and the results folder {out} lie in one another; write the results elsewhere")
