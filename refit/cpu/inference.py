"""inference: a folder of images -> JSON and pictures with boxes.

Written to `out`, for an image folder named `yard` with a subfolder `gate`:
- `results/yard.json`, `results/yard/gate.json`: for each folder `[{"id": file name, "objects": [{"type": class, "x1",
  "y1", "x2", "y2", "score"}]}]`, the form of the dockerized TensorFlow pipeline that many teams come from;
- `detections.json`: all of them as one COCO results file, category ids from 1;
- `images/`: the pictures with boxes, where `draw` asks for them;
- `errors.json`: `[{"file", "error"}]`, the images that could not be read. They do not stop the others.
Coordinates are pixels of the image as stored (no EXIF rotation), x2 and y2 exclusive edges.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from refit.command import BadData, BadSpec
from refit.cpu.convert import verify_image
from refit.cpu.files import remove_leftovers
from refit.cpu.models import open_model, predict
from refit.cpu.records import Record
from refit.cpu.specs import InferenceSpec
from refit.cpu.status import StatusWriter
from refit.cpu.work import Progress, ordered_map
from refit.files import write_bytes, write_json
from refit.postprocess import Detections
from refit.postprocess.draw import draw_boxes

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SAID = 20  # bad images that get a status line each; errors.json has all


def run(spec: InferenceSpec, out: Path, status: StatusWriter) -> None:
    """Detect objects in every image below `spec.images`; the files are described above.

    Raises:
        BadSpec: the model cannot be used, or images and results would mix.
        BadData: no image at all, or none that can be read.
    """
    root = Path(os.path.abspath(spec.images))
    _check_apart(root, Path(os.path.abspath(out)))
    paths = find_images(root)
    model = open_model(spec.model)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    progress = Progress(status, "images", len(paths))
    results = _Results(model.info.classes)
    settings = replace(model.info.postprocess, score_threshold=spec.score_threshold)
    for record, found in predict(model, model.info, _readable(root, paths, results, progress, status), settings):
        results.add(paths.index_of[record.file], record, found)
        if spec.draw:
            _draw(out / "images" / record.file, record, found, model.info.classes)
        progress.step()
    write_json(out / "errors.json", results.errors)
    if not results.images:
        first = results.errors[0]
        raise BadData(f"{root}: none of {len(paths)} images can be read, e.g. {first['file']}: {first['error']}")
    for folder, images in results.folders.items():
        path = out / "results" / Path(root.name, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path.with_name(path.name + ".json"), images)
    write_json(out / "detections.json", results.coco)
    bad = f"; {len(results.errors)} could not be read, see errors.json" if results.errors else ""
    status.success(
        f"Found {results.objects.total()} objects in {results.images} images{bad}.",
        kpi={"images": results.images, "objects": results.objects.total(), "bad_images": len(results.errors)},
        categorical={"objects": {name: results.objects[name] for name in model.info.classes}},
    )


@dataclass(frozen=True)
class Images:
    """The images of a folder, by path relative to it, in sorted order; `index_of` is the id in the COCO file."""

    files: tuple[str, ...]
    index_of: dict[str, int]

    def __len__(self) -> int:
        return len(self.files)


def find_images(root: Path) -> Images:
    """All images below a folder, by their suffix; hidden files and folders are left out.

    Raises BadData: no such folder, or no image in it.
    """
    if not root.is_dir():
        raise BadData(f"{root}: no such folder; `images` must name a folder of images")
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        files += [
            os.path.relpath(os.path.join(folder, n), root)
            for n in names
            if not n.startswith(".") and os.path.splitext(n)[1].lower() in SUFFIXES
        ]
    if not files:
        raise BadData(f"{root}: no image in it ({', '.join(sorted(SUFFIXES))} are looked for)")
    files.sort()
    return Images(tuple(files), {name: i for i, name in enumerate(files)})


def read_image(root: Path, file: str) -> Record:
    """An image as a record without objects. Raises BadData where it cannot be read to its end."""
    try:
        encoded = (root / file).read_bytes()
    except OSError as exc:
        raise BadData(f"{file}: cannot be read: {exc.strerror}") from None
    verify_image(encoded, file)
    record = Record(file, 0, 0, encoded, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    height, width = record.image().shape[:2]  # what OpenCV cannot decode is found here, not in the middle of a batch
    return replace(record, width=width, height=height)


@dataclass
class _Results:
    """What was found so far."""

    classes: tuple[str, ...]
    images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    folders: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    coco: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)

    def add(self, index: int, record: Record, found: Detections) -> None:
        folder, name = os.path.split(_text(record.file))
        objects = []
        for box, score, c in zip(found.boxes, found.scores, found.classes, strict=True):
            x1, y1, x2, y2 = (round(float(v), 2) for v in box)
            value = round(float(score), 5)
            objects.append({"type": self.classes[c], "x1": x1, "y1": y1, "x2": x2, "y2": y2, "score": value})
            size = [round(x2 - x1, 2), round(y2 - y1, 2)]
            self.coco.append(
                {
                    "image_id": index,
                    "file_name": _text(record.file),
                    "category_id": int(c) + 1,
                    "bbox": [x1, y1, *size],
                    "score": value,
                }
            )
            self.objects[self.classes[c]] += 1
        self.folders.setdefault(folder, []).append({"id": name, "objects": objects})
        self.images += 1


def _readable(
    root: Path, images: Images, results: _Results, progress: Progress, status: StatusWriter
) -> Iterator[Record]:
    """The images that can be read; the others go to `results.errors`."""

    def read(file: str) -> Record | dict[str, str]:
        try:
            return read_image(root, file)
        except BadData as exc:
            return {"file": _text(file), "error": _text(str(exc).removeprefix(f"{file}: "))}

    for found in ordered_map(read, images.files):
        if isinstance(found, Record):
            yield found
            continue
        results.errors.append(found)
        progress.step()
        if len(results.errors) <= SAID:
            status.running(f"left out {found['file']}: {found['error']}")


def _draw(path: Path, record: Record, found: Detections, classes: tuple[str, ...]) -> None:
    picture = draw_boxes(record.image(), found.boxes, found.classes, classes, found.scores)
    if path.suffix.lower() not in {".jpg", ".jpeg", ".png"}:
        path = path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, cv2.imencode(path.suffix.lower(), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def _text(name: str) -> str:
    """A file's name as JSON can hold it: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _check_apart(root: Path, out: Path) -> None:
    """Pictures written to `out/images` must not replace images that were given, nor be taken for them next time."""
    real, target = root.resolve(), out.resolve()
    if real.is_relative_to(target) or target.is_relative_to(real):
        raise BadSpec(f"images: {root} and the results folder {out} lie in one another; write the results elsewhere")
