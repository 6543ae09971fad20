"""What TAO reads and writes: pretend models that know what they were trained to, TFRecords, data sets, plans."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
HDF5 = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK = 96  # bytes of version 0
PADDING = 4096


@dataclass(frozen=True)
class Model:
    """What a pretend model file says."""

    program: str
    classes: tuple[str, ...]
    objects: tuple[str, ...]  # the classes that the training data has
    width: int
    height: int
    channels: int
    epochs: int = 0
    kept: float = 1.0
    retrained: bool = True  # False between prune and retrain
    qat: bool = False
    ids: int = 0  # category ids that there are room for, where that is not the number of classes
    peak: int = 0  # the epoch from which on it gets worse; 0: never

    @property
    def parameters(self) -> int:
        return int(112_000 * self.kept)

    def average_precisions(self) -> dict[str, float]:
        """AP50 by class: it grows with the epochs, falls with pruning until retrained, 0 for what the data has not."""
        epochs = max(0, 2 * self.peak - self.epochs) if self.peak and self.epochs > self.peak else self.epochs
        quality = 0.95 * (1 - 0.4 ** (epochs + 1)) * (1.0 if self.retrained else 0.5)
        known = {name.lower() for name in self.objects}
        return {name: round(quality * (1 - _noise(name)), 4) if name.lower() in known else 0.0 for name in self.classes}

    def mean(self) -> float:
        found = self.average_precisions().values()
        return round(sum(found) / len(found), 6)

    def loss(self) -> float:
        return round(10 * 0.5**self.epochs + 0.1, 6)

    def after(self, epochs: int) -> Model:
        peak = int(os.environ.get("REFIT_STANDIN_PEAK") or 0)
        return replace(self, epochs=epochs, retrained=True, peak=peak)

    def write(self, path: Path) -> None:
        """An `.hdf5` begins as HDF5 does; the others are zip archives, as torch's and EFF's are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self)).encode()
        if path.suffix == ".hdf5":
            head = HDF5 + bytes([0, 0, 0, 0, 0, 8, 8]) + bytes(9 + 16)
            end = SUPERBLOCK + len(text) + 1 + PADDING
            head += end.to_bytes(8, "little")
            path.write_bytes(head.ljust(SUPERBLOCK, b"\0") + text + b"\n" + b"\0" * PADDING)
            return
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo("model.json"), text)
            archive.writestr(zipfile.ZipInfo("weights"), b"\0" * PADDING)

    @classmethod
    def read(cls, path: str | Path, program: str) -> Model:
        """Raises FileNotFoundError, or OSError for what is none of this program's models."""
        data = Path(path).read_bytes()
        try:
            if data.startswith(HDF5):
                text = data[SUPERBLOCK:].partition(b"\n")[0]
            else:
                text = zipfile.ZipFile(io.BytesIO(data)).read("model.json")
            found = json.loads(text)
        except (zipfile.BadZipFile, KeyError, ValueError):
            raise OSError(f"Unable to open file (file signature not found): {path}") from None
        if found["program"] != program:
            raise OSError(f"{path}: a model of {found['program']}, not of {program}")
        return cls(**{**found, "classes": tuple(found["classes"]), "objects": tuple(found["objects"])})


def is_other_hdf5(path: str) -> bool:
    """Whether a file begins as HDF5 does and is no pretend model: pretrained weights."""
    data = Path(path).read_bytes()
    return data.startswith(HDF5) and not data[SUPERBLOCK:].startswith(b"{")


def _noise(name: str) -> float:
    """0 to 0.05, the same for the same name."""
    return hashlib.sha256(name.lower().encode()).digest()[0] / 255 * 0.05


# --- TFRecords ---------------------------------------------------------------------------------------------------


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """The framing of TFRecords; the checksums are 0, nothing here reads them."""
    with path.open("wb") as file:
        for record in records:
            data = json.dumps(record).encode()
            file.write(struct.pack("<QI", len(data), 0) + data + struct.pack("<I", 0))


def read_records(pattern: str) -> list[dict[str, Any]]:
    """The records of every file that a glob matches. Raises OSError: there are none, or a file is no TFRecord."""
    found = []
    for name in sorted(glob.glob(pattern)):
        data, at = Path(name).read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at) if at + 16 <= len(data) else (len(data),)
            if at + 16 + length > len(data):
                raise OSError(f"DataLossError: corrupted record at {at} in {name}")
            found.append(json.loads(data[at + 12 : at + 12 + length]))
            at += 16 + length
    if not found:
        raise OSError(f"No TFRecords with images found in {pattern}")
    return found


def objects(records: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({name for record in records for name in record["objects"]}))


# --- data sets ---------------------------------------------------------------------------------------------------


def images(folder: str | Path) -> list[Path]:
    """The images of a folder. Raises FileNotFoundError."""
    return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGES)


def read_image(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith((b"\xff\xd8", b"\x89PNG", b"BM")):
        raise OSError(f"cannot identify image file '{path}'")
    return data


def kitti_objects(label: Path) -> Counter[str]:
    """Objects by class of a KITTI label file. Raises OSError for a line that is none."""
    count: Counter[str] = Counter()
    for number, line in enumerate(label.read_text().splitlines(), 1):
        words = line.split()
        if words and len(words) not in (15, 16):
            raise OSError(f"{label}:{number}: {len(words)} fields, KITTI has 15")
        count.update(words[:1])
    return count


@dataclass(frozen=True)
class Coco:
    names: dict[int, str]  # category id -> name
    found: list[tuple[Path, Counter[str]]]

    @classmethod
    def read(cls, json_file: str, image_dir: str) -> Coco:
        """Raises FileNotFoundError for an image that is not there."""
        data = json.loads(Path(json_file).read_text())
        names = {int(c["id"]): str(c["name"]) for c in data["categories"]}
        by_image: dict[Any, Counter[str]] = {image["id"]: Counter() for image in data["images"]}
        for item in data["annotations"]:
            by_image[item["image_id"]][names[item["category_id"]]] += 1
        found = [(Path(image_dir) / image["file_name"], by_image[image["id"]]) for image in data["images"]]
        for path, _ in found:
            if not path.exists():
                raise FileNotFoundError(f"[Errno 2] No such file or directory: '{path}'")
        return cls(names, found)

    def objects(self) -> tuple[str, ...]:
        return tuple(sorted({name for _, count in self.found for name in count}))


def draw(pictures: Iterable[Path], out: Path, labels: Path) -> None:
    """ "Annotated" copies in `out`, and a KITTI file with a score for each."""
    out.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        (out / path.name).write_bytes(read_image(path))
        (labels / f"{path.stem}.txt").write_text(f"object 0 0 0 1.00 2.00 30.00 40.00{' 0' * 7} 0.900\n")


# --- engines -----------------------------------------------------------------------------------------------------


def write_plan(path: Path, content: dict[str, Any]) -> None:
    """A pretend plan with the head of a real one: tag, form 0, and at byte 24 the TensorRT that wrote it."""
    version = os.environ.get("REFIT_STANDIN_TENSORRT") or "10.8.0.43"
    head = b"ftrt" + bytes(20) + bytes(int(part) for part in version.split("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + b"refit-standin" + json.dumps(content).encode() + b"\n" + bytes(PADDING))


def read_plan(path: str | Path) -> dict[str, Any]:
    data = Path(path).read_bytes()
    if not data.startswith(b"ftrt"):
        raise OSError(f"Serialization assertion magicTag failed: {path} is no plan")
    found: dict[str, Any] = json.loads(data[28 + len(b"refit-standin") :].partition(b"\n")[0])
    return found


def batches(items: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
