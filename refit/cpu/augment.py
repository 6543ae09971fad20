"""augment: the training part again, each image followed by changed copies whose boxes followed the changes.

Works offline, on the train split only. What a copy looks like depends on the seed, the image's name and the number of
the copy, and on nothing else: not on the number of threads, not on other images.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refit.command import BadData, BadSpec
from refit.cpu.records import Dataset, Record, Split, clear, image_format, write_split
from refit.cpu.specs import AugmentSpec
from refit.cpu.status import StatusWriter
from refit.cpu.transforms import Chain
from refit.cpu.work import Progress, ordered_map
from refit.files import write_bytes, write_json
from refit.postprocess.draw import contact_sheet, draw_boxes

PREVIEW_ROWS, PREVIEW_COPIES = 6, 4


@dataclass(frozen=True)
class Group:
    """A training image and its copies."""

    original: Record
    copies: list[Record]
    dropped: int


def run(spec: AugmentSpec, out: Path, status: StatusWriter) -> None:
    """Write `train-*.tfrecord`, `frames.json` (boxes of the copies), `preview.jpg` and, last, `dataset.json` to `out`.

    In the results, `objects` + `dropped_objects` is (1 + copies) times the objects that came in.

    Raises:
        BadData: records that are damaged, or have no train split.
        BadSpec: a transform that does not fit the images.
    """
    source = Dataset.load(spec.records)
    train = source.split("train")
    if not len(train):
        raise BadData(f"{spec.records}: the train split is empty; nothing can be augmented")
    clear(out)
    made = _Made(spec, source.classes, Progress(status, "train images", len(train)))
    info = write_split(out, "train", made.records(train), source.classes, source.splits["train"].shards)
    write_json(out / "frames.json", {"frames": made.frames})
    _write_preview(out / "preview.jpg", made.preview, source.classes)
    Dataset(out, source.classes, {"train": info}, _fingerprint(spec, source)).save()
    share = made.dropped / max(1, made.dropped + info.objects)
    status.success(
        f"Made {spec.copies} of each of {len(train)} training images; {made.dropped} boxes dropped ({share:.1%}).",
        kpi={"images": info.images, "objects": info.objects, "dropped_objects": made.dropped},
        categorical={"objects": {name: made.objects[i] for i, name in enumerate(source.classes)}},
    )


class _Made:
    """The records of the new train split, and what is to be said about them when all are written."""

    def __init__(self, spec: AugmentSpec, classes: tuple[str, ...], progress: Progress) -> None:
        self._spec, self._classes, self._progress = spec, classes, progress
        self.frames: list[dict[str, Any]] = []
        self.preview: list[Group] = []
        self.objects: Counter[int] = Counter()
        self.dropped = 0

    def records(self, train: Split) -> Iterator[Record]:
        local = threading.local()  # a chain holds random state: each thread has its own

        def augment(index: int) -> Group:
            if not hasattr(local, "chain"):
                local.chain = Chain(self._spec.transforms, self._spec.min_visibility)
            return augment_record(train[index], local.chain, self._spec)

        for group in ordered_map(augment, range(len(train))):
            self._progress.step()
            self.dropped += group.dropped
            self.frames += [_frame(record, self._classes) for record in group.copies]
            if len(self.preview) < PREVIEW_ROWS and len(group.original.classes):
                self.preview.append(group)
            for record in (group.original, *group.copies):
                self.objects.update(record.classes.tolist())
                yield record


def augment_record(record: Record, chain: Chain, spec: AugmentSpec) -> Group:
    """The copies of one training image. Raises BadSpec, BadData that name it."""
    image = record.image()
    copies = []
    for number in range(1, spec.copies + 1):
        try:
            result = chain(image, record.boxes, f"{spec.seed}/{record.file}/{number}")
        except BadSpec as exc:
            raise BadSpec(f"{exc} ({record.file})") from exc
        # The format of the original: a lossless data set stays lossless.
        png = image_format(record.encoded) == "png"
        options = [] if png else [cv2.IMWRITE_JPEG_QUALITY, 95]
        suffix = ".png" if png else ".jpg"
        encoded = cv2.imencode(suffix, cv2.cvtColor(result.image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
        copies.append(
            Record(
                file=f"{record.file}.aug{number}{suffix}",
                width=result.image.shape[1],
                height=result.image.shape[0],
                encoded=encoded,
                boxes=result.boxes.astype(np.float32),
                classes=record.classes[result.kept],
                difficult=record.difficult[result.kept],
                truncated=record.truncated[result.kept],
            )
        )
    dropped = spec.copies * len(record.classes) - sum(len(copy.classes) for copy in copies)
    return Group(record, copies, dropped)


def _frame(record: Record, classes: tuple[str, ...]) -> dict[str, Any]:
    """The boxes of one copy; `path` is the name of its record."""
    boxes = [
        {"class": classes[index], **{k: round(float(v), 3) for k, v in zip(("x0", "y0", "x1", "y1"), box, strict=True)}}
        for index, box in zip(record.classes, record.boxes, strict=True)
    ]
    return {"path": record.file, "width": record.width, "height": record.height, "boxes": boxes}


def _write_preview(path: Path, groups: list[Group], classes: tuple[str, ...]) -> None:
    """A row for each of the first images: the original, then its copies."""
    rows = [[group.original, *group.copies[:PREVIEW_COPIES]] for group in groups]
    pictures = [draw_boxes(r.image(), r.boxes, r.classes, classes) for row in rows for r in row]
    sheet = contact_sheet(pictures, columns=max(map(len, rows), default=1))
    write_bytes(path, cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())


def _fingerprint(spec: AugmentSpec, source: Dataset) -> str:
    """What the new records depend on: the records they were made from, and the spec without its paths."""
    text = json.dumps([source.fingerprint, spec.model_dump(exclude={"records"})], sort_keys=True)
    return sha256(text.encode()).hexdigest()
