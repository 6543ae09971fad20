"""The files that people and programs read, made from the journal when every image has its answer.

For an image folder named `yard` with a subfolder `gate`:
- `json/yard.json`, `json/yard/gate.json`: `[{"file", "width", "height", "objects": [{"class", "score", "box": [x1, y1,
  x2, y2]}]}]`;
- `results/yard.json`, `results/yard/gate.json`: `[{"id": file name, "objects": [{"type": class, "x1", "y1", "x2", "y2",
  "score"}]}]`, the form (and the place) of Drip, the dockerized TensorFlow pipeline that many teams come from;
- `detections.json`: all of them as one COCO results file, category ids from 1; `images.json`: its `images` and
  `categories`, so that pycocotools can read it;
- `errors.json`: `[{"file", "code", "error"}]`, the images that could not be used;
- `predictions.json`: which model and version answered, with which limits, and how many of what;
- `summary.json`: the part of it that travels in the stage's result.
Coordinates are pixels of the image as stored (no EXIF rotation), x2 and y2 exclusive edges. Files appear whole or not
at all, `predictions.json` last. Nothing is held in memory but one image's answer.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from refit.files import whole, write_json
from refit.predict.images import Images, folders
from refit.predict.journal import Journal
from refit.predict.work import shown


@dataclass
class Totals:
    """What was found. `reasons` counts unusable images by code; `first` is one of them, in words."""

    images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    first: str = ""

    @property
    def bad(self) -> int:
        return self.reasons.total()


def write(images: Images, journal: Journal, classes: Sequence[str], about: Mapping[str, Any], out: Path) -> Totals:
    """Write all files. `about` is what `predictions.json` says beside the counts."""
    totals = Totals()
    with ExitStack() as stack:
        detections, pictures, errors = (
            stack.enter_context(_rows(out / name)) for name in ("detections.json", "images.json", "errors.json")
        )
        categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
        pictures.before, pictures.after = f'{{"categories": {json.dumps(categories)}, "images": ', "}"

        def bad(path: str, code: str, error: str) -> None:
            totals.reasons[code] += 1
            totals.first = totals.first or f"{shown(path)}: {error}"
            errors.add({"file": shown(path), "code": code, "error": shown(error)})

        for path, why in sorted(images.skipped.items()):
            bad(path, "not_followed", why)
        for folder, places in folders(images):
            below = Path(images.name, *Path(shown(folder)).parts)
            with _rows(_named(out / "json", below)) as own, _rows(_named(out / "results", below)) as drip:
                for place in places:
                    row = journal.read(place)
                    if "error" in row:
                        bad(row["file"], row["code"], row["error"])
                        continue
                    file, name = shown(row["file"]), shown(os.path.basename(row["file"]))
                    size = {"width": row["width"], "height": row["height"]}
                    totals.images += 1
                    totals.objects.update(classes[c] for c, *_ in row["objects"])
                    own.add({"file": file, **size, "objects": [_own(classes, o) for o in row["objects"]]})
                    drip.add({"id": name, "objects": [_drip(classes, o) for o in row["objects"]]})
                    pictures.add({"id": place, "file_name": file, **size})
                    for found in row["objects"]:
                        detections.add({"image_id": place, "file_name": file, **_coco(found)})
    counts = {
        "images": totals.images,
        "bad_images": totals.bad,
        "objects": {name: totals.objects[name] for name in classes},
        "reasons": dict(totals.reasons),
        "ignored": dict(images.ignored),
    }
    short = {k: v for k, v in {**about, **counts}.items() if k not in _LONG}
    write_json(out / "summary.json", {**short, "results": str(out)})
    write_json(out / "predictions.json", {"schema": 1, **about, **counts})
    return totals


_text = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each row
_LONG = ("thresholds", "objects", "ignored")  # many classes would not fit into a result


def _own(classes: Sequence[str], found: Sequence[Any]) -> dict[str, Any]:
    c, score, *box = found
    return {"class": classes[c], "score": score, "box": box}


def _drip(classes: Sequence[str], found: Sequence[Any]) -> dict[str, Any]:
    c, score, x1, y1, x2, y2 = found
    return {"type": classes[c], "x1": x1, "y1": y1, "x2": x2, "y2": y2, "score": score}


def _coco(found: Sequence[Any]) -> dict[str, Any]:
    c, score, x1, y1, x2, y2 = found
    return {"category_id": c + 1, "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], "score": score}


def _named(root: Path, below: Path) -> Path:
    path = root / below
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".json")


class _Rows:
    """A JSON list that is written row by row."""

    before = after = ""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._begun = file, False

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(",\n" if self._begun else f"{self.before}[\n")
        self._file.write(_text(row))
        self._begun = True

    def end(self) -> None:
        self._file.write(f"\n]{self.after}\n" if self._begun else f"{self.before}[]{self.after}\n")


@contextmanager
def _rows(path: Path) -> Iterator[_Rows]:
    """A list that appears at `path` when the block has ended well."""
    with whole(path) as file:
        text = io.TextIOWrapper(file, "utf-8")
        rows = _Rows(text)
        yield rows
        rows.end()
        text.detach()  # after a flush; `whole` syncs and closes the file
