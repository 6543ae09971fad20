"""COCO's annotations, written: images/ and annotations/instances_<part>.json (without parts: instances_default.json).

The text is made row by row, so that a file of any size costs no memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from refit.data.formats.base import Record, fields_lost
from refit.data.model import pixel


class CocoWriter:
    name = "coco"
    image_dir = "images"

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        parts: dict[str, list[Record]] = {}
        for r in records:
            parts.setdefault(r.part or "default", []).append(r)
        (out / "annotations").mkdir()
        for part, found in (parts or {"default": []}).items():
            write_file(out / "annotations" / f"instances_{part}.json", found, {c: c for c in classes}, 1)
        return fields_lost((r for found in parts.values() for r in found), "difficult", "truncated", "occluded")


def write_file(path: Path, records: Sequence[Record], called: Mapping[str, str], first_id: int) -> None:
    """One COCO file; `called` gives each class's name in it, in the order of the category ids.

    Ids of images and annotations begin at 1: pycocotools takes an annotation 0 for none.
    """
    ids = category_ids(called, first_id)
    of_class = {cls: ids[name] for cls, name in called.items()}
    with open(path, "w", encoding="utf-8") as f:
        f.write('{"images": [')
        f.writelines(_rows(map(_image, range(1, len(records) + 1), records)))
        f.write('],\n"annotations": [')
        f.writelines(_rows(_annotations(records, of_class)))
        f.write('],\n"categories": [')
        f.writelines(_rows(_json({"id": i, "name": name, "supercategory": ""}) for name, i in ids.items()))
        f.write("]}\n")


def category_ids(called: Mapping[str, str], first_id: int) -> dict[str, int]:
    """Name in the file -> category id, without gaps: TAO's DETR networks use the id as the index of a logit."""
    return {name: i for i, name in enumerate(called.values(), first_id)}


def _rows(rows: Iterable[str]) -> Iterator[str]:
    for i, row in enumerate(rows):
        yield f",\n{row}" if i else f"\n{row}"


def _image(number: int, r: Record) -> str:
    return f'{{"id": {number}, "file_name": {_json(r.name)}, "width": {r.width}, "height": {r.height}}}'


def _annotations(records: Iterable[Record], ids: Mapping[str, int]) -> Iterator[str]:
    number = 0
    for image, r in enumerate(records, 1):
        for o in r.objects:
            number += 1
            width, height = pixel(o.x2 - o.x1), pixel(o.y2 - o.y1)
            box, area = f"[{o.x1!r}, {o.y1!r}, {width!r}, {height!r}]", pixel(width * height)
            yield (
                f'{{"id": {number}, "image_id": {image}, "category_id": {ids[o.cls]}, '
                f'"bbox": {box}, "area": {area!r}, "iscrowd": 0}}'
            )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


WRITER = CocoWriter()
