"""Labelled images as TFRecords: the data set between the stages of the cpu toolkit.

A records folder holds `dataset.json` and, for each split, `<split>-00000-of-00002.tfrecord` and so on. The features of
a record are those of the TensorFlow Object Detection API (object_detection/dataset_tools/create_pascal_tf_record.py
and core/standard_fields.py), so its tools read our files. Image `i` lies in shard `i % shards`: the order in which
images come back does not depend on the number of shards.

Boxes are float32 pixels of the image as stored; an EXIF rotation is never applied (docs/contracts.md, "A snapshot").
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from refit.command import BadData
from refit.cpu.files import atomic, remove_leftovers
from refit.data import tfrecord
from refit.files import write_json

DATASET_FILE = "dataset.json"
_MADE_FROM = "image/augmented_from"  # ours; TensorFlow's tools read the features that they know
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, eq=False)
class Record:
    """One labelled image.

    Attributes:
        file: its name in the snapshot, unique in a split.
        width, height: pixels.
        encoded: the bytes of the JPEG or PNG file.
        boxes: float32 [n, 4], x1 y1 x2 y2 in pixels, x2 and y2 exclusive edges.
        classes: int64 [n], index into the data set's class list, from 0.
        difficult, truncated: bool [n]; left out: all False.
        made_from: the image that augment made this one from; "" for an image of the data set.
    """

    file: str
    width: int
    height: int
    encoded: bytes
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    truncated: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    made_from: str = ""

    def __post_init__(self) -> None:
        n = len(self.classes)
        object.__setattr__(self, "boxes", np.asarray(self.boxes, dtype=np.float32).reshape(n, 4))
        object.__setattr__(self, "classes", np.asarray(self.classes, dtype=np.int64).reshape(n))
        for name in ("difficult", "truncated"):
            flags = np.asarray(getattr(self, name), dtype=bool)
            object.__setattr__(self, name, flags.reshape(n) if flags.size else np.zeros(n, dtype=bool))

    def image(self) -> NDArray[np.uint8]:
        """The decoded image, RGB uint8 [height, width, 3]. Raises BadData where it cannot be decoded."""
        return decode_image(self.encoded, self.file)


def decode_image(encoded: bytes, name: str) -> NDArray[np.uint8]:
    """Decode image bytes to RGB uint8 [height, width, 3], pixels as stored (no EXIF rotation), grey made RGB.

    Raises BadData that names the image. OpenCV fills the missing end of a cut-off file with grey and says nothing:
    where that matters, call `refit.cpu.convert.verify_image` first, as dataset_convert does for each image.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags) if encoded else None
    except cv2.error:
        image = None
    if image is None:
        raise BadData(f"{name}: not an image that can be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


@dataclass(frozen=True)
class SplitInfo:
    """The size of one split."""

    images: int
    objects: int
    shards: int


@dataclass(frozen=True)
class Dataset:
    """What `dataset.json` of a records folder says."""

    folder: Path
    classes: tuple[str, ...]
    splits: Mapping[str, SplitInfo]
    fingerprint: str

    @staticmethod
    def load(folder: str | Path) -> Dataset:
        """Read `<folder>/dataset.json`. Raises BadData where it is missing or is not one of ours."""
        folder = Path(folder)
        path = folder / DATASET_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            splits = {name: SplitInfo(**{k: int(info[k]) for k in _COUNTS}) for name, info in data["splits"].items()}
            return Dataset(folder, tuple(map(str, data["classes"])), splits, str(data["fingerprint"]))
        except OSError as exc:
            raise BadData(f"{path}: cannot be read: {exc.strerror}; run dataset_convert first") from None
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise BadData(f"{path}: not the file that dataset_convert writes ({exc!r}); run it again") from None

    def split(self, name: str) -> Split:
        """One split, read from the files on demand. Raises BadData: no split of this name, or damaged files."""
        info = self.splits.get(name)
        if info is None:
            near = difflib.get_close_matches(name, self.splits, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(self.splits) or 'none'}"
            raise BadData(f"{self.folder}: no split '{name}'; {hint}")
        split = Split([shard_path(self.folder, name, i, info.shards) for i in range(info.shards)], len(self.classes))
        if len(split) != info.images:
            raise BadData(
                f"{self.folder}: split '{name}' holds {len(split)} images, {DATASET_FILE} says {info.images}; "
                "run dataset_convert again"
            )
        return split

    def save(self) -> None:
        """Write `dataset.json`, after the splits' files: its presence says that the folder is complete."""
        splits = {name: {k: getattr(info, k) for k in _COUNTS} for name, info in self.splits.items()}
        value = {"schema": 1, "classes": list(self.classes), "splits": splits, "fingerprint": self.fingerprint}
        write_json(self.folder / DATASET_FILE, value)


_COUNTS = ("images", "objects", "shards")


class Split(Sequence[Record]):
    """The records of a split, in the order they were written, decoded when asked for.

    Holds only offsets, no open file: it can be pickled, forked and read from several threads.
    Reading raises `tfrecord.DamagedRecords` with file and byte, or BadData.
    """

    def __init__(self, shards: list[Path], classes: int) -> None:
        self._classes = classes
        found = [tfrecord.offsets(path) for path in shards]
        count = sum(map(len, found))
        if any(len(o) != len(range(i, count, len(found))) for i, o in enumerate(found)):
            raise BadData(f"{shards[0].parent}: the shards of {shards[0].name} do not belong together")
        self._at = [(shards[i % len(found)], found[i % len(found)][i // len(found)]) for i in range(count)]

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path, offset = self._at[index]
        data = tfrecord.read_record(path, offset)
        try:
            return _from_features(tfrecord.decode_example(data), self._classes)
        except (KeyError, IndexError, ValueError) as exc:
            reason = f"the feature {exc} is missing" if isinstance(exc, KeyError) else str(exc)
            raise tfrecord.DamagedRecords(path, offset, f"not a labelled image of this data set: {reason}") from None

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


def write_split(
    folder: Path, split: str, records: Iterable[Record], classes: Sequence[str], shards: int = 1
) -> SplitInfo:
    """Write one split. All its files appear together at the end, or none where `records` raises.

    Args:
        folder: the records folder, made where it is missing.
        split: its name, e.g. "train".
        records: read once, held one at a time.
        classes: the data set's class list; the records' ids index it.
        shards: how many files.

    Raises:
        BadData: a record that does not fit its image or the class list.
    """
    if not _SPLIT_NAME.fullmatch(split):
        raise BadData(f"split '{split}': use letters, digits, '_', '-' and '.' for the name of a split")
    images = objects = 0
    with ExitStack() as stack:
        paths = [stack.enter_context(atomic(shard_path(folder, split, i, shards))) for i in range(shards)]
        with ExitStack() as opened:
            files = [opened.enter_context(path.open("wb")) for path in paths]
            for record in records:
                data = tfrecord.encode_example(_to_features(record, classes))
                tfrecord.write_record(files[images % shards], data)
                images += 1
                objects += len(record.classes)
    return SplitInfo(images, objects, shards)


def clear(folder: Path) -> None:
    """Take away what an earlier attempt wrote: first `dataset.json`, which says that the rest is whole."""
    (folder / DATASET_FILE).unlink(missing_ok=True)
    remove_leftovers(folder)
    for path in folder.glob("*.tfrecord"):
        path.unlink()


def shard_path(folder: Path, split: str, index: int, shards: int) -> Path:
    """Where a shard of a split lies."""
    return folder / f"{split}-{index:05d}-of-{shards:05d}.tfrecord"


def image_format(encoded: bytes) -> str | None:
    """ "jpeg" or "png" by the first bytes (what the Object Detection API can decode), else None."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "png" if encoded.startswith(b"\x89PNG\r\n\x1a\n") else None


def _to_features(record: Record, classes: Sequence[str]) -> dict[str, tfrecord.Feature]:
    kind = image_format(record.encoded)
    if kind is None:
        raise BadData(f"{record.file}: a record holds JPEG or PNG, this is neither")
    if len(record.classes) and not 0 <= record.classes.min() <= record.classes.max() < len(classes):
        raise BadData(f"{record.file}: class ids {sorted(set(record.classes.tolist()))} of {len(classes)} classes")
    # Divided as float64 and stored as float32: the way back is exact to 6e-8 of the side, 5e-4 px at 8192 px.
    x1, y1, x2, y2 = (record.boxes.astype(np.float64) / np.tile([record.width, record.height], 2)).astype(np.float32).T
    name = record.file.encode()
    return {
        "image/encoded": [record.encoded],
        "image/format": [kind.encode()],
        "image/filename": [name],
        "image/source_id": [name],
        "image/key/sha256": [sha256(record.encoded).hexdigest().encode()],
        "image/height": np.array([record.height], dtype=np.int64),
        "image/width": np.array([record.width], dtype=np.int64),
        "image/object/bbox/xmin": x1,
        "image/object/bbox/ymin": y1,
        "image/object/bbox/xmax": x2,
        "image/object/bbox/ymax": y2,
        "image/object/class/text": [classes[i].encode() for i in record.classes],
        "image/object/class/label": record.classes + 1,
        "image/object/difficult": np.asarray(record.difficult, dtype=np.int64),
        "image/object/truncated": np.asarray(record.truncated, dtype=np.int64),
        **({_MADE_FROM: [record.made_from.encode()]} if record.made_from else {}),
    }


def _from_features(features: Mapping[str, Any], classes: int) -> Record:
    width, height = int(features["image/width"][0]), int(features["image/height"][0])
    sides = [features[f"image/object/bbox/{side}"] for side in ("xmin", "ymin", "xmax", "ymax")]
    ids = features["image/object/class/label"] - 1
    if len(ids) and not 0 <= ids.min() <= ids.max() < classes:
        raise ValueError(f"a class label is outside 1..{classes}")
    return Record(
        file=features["image/filename"][0].decode(),
        width=width,
        height=height,
        encoded=features["image/encoded"][0],
        boxes=(np.stack(sides, axis=1).astype(np.float64) * np.tile([width, height], 2)).astype(np.float32),
        classes=ids,
        difficult=features["image/object/difficult"] != 0,
        truncated=features["image/object/truncated"] != 0,
        made_from=features[_MADE_FROM][0].decode() if _MADE_FROM in features else "",
    )
