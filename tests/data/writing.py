"""A data set through a writer and back, as `refit dataset convert` does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from refit.data.examine import Examination, examine
from refit.data.formats.base import Record, Writer
from refit.data.model import Box, Sample
from tests.data.helpers import HEIGHT, WIDTH, encoded

Seen = dict[str, tuple[str, int, int, str | None, tuple[Box, ...]]]


def records(parts: Sequence[str | None] = (None,), images: int = 7, *, flags: bool = False) -> list[Record]:
    """Images with 0 to 3 boxes of whole and of broken pixels; image i is in part i modulo the number of parts."""
    out = []
    for i in range(images):
        rng = np.random.default_rng(i)
        objects = []
        for k in range(i % 4):
            x1, y1 = rng.integers(0, 30), rng.integers(0, 20)
            box = (float(x1), float(y1), float(x1 + rng.integers(1, 30)), float(y1 + rng.integers(1, 25)))
            if k == 2:
                box = (box[0] + 0.25, box[1] + 0.5, box[2] - 0.125, box[3])
            more = {"difficult": k == 0, "truncated": float(k % 2), "occluded": k} if flags else {}
            objects.append(Box(("car", "traffic light, red", "ça va")[k], *box, **more))
        name = f"cam{i % 2}/{i:03}.{'png' if i == 3 else 'jpg'}"
        out.append(Record(name, WIDTH, HEIGHT, "", parts[i % len(parts)], tuple(objects)))
    return out


def image(record: Record) -> bytes:
    return encoded(int(Path(record.name).stem), Path(record.name).suffix)


def write(writer: Writer, out: Path, found: Sequence[Record]) -> Counter[str]:
    """Write a data set, with its images; returns what the format could not hold."""
    classes = sorted({o.cls for r in found for o in r.objects})
    out.mkdir(parents=True)
    lost = writer.write(out, iter(found), classes, image)
    for r in found if writer.image_dir is not None else ():
        path = out / str(writer.image_dir) / r.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(r))
    return lost


def seen(found: Examination) -> Seen:
    """What a data set holds, by name, with the images' own hashes."""
    return {s.name: (s.sha256, s.width, s.height, s.part, s.objects) for s in found.samples}


def expected(found: Sequence[Record], *, flags: Sequence[str] = (), parts: bool = True) -> Seen:
    """What `seen` says of records, without the flags and parts that the format cannot hold."""
    import hashlib

    unset = {"difficult": False, "truncated": None, "occluded": None}
    gone = {name: value for name, value in unset.items() if name not in flags}
    return {
        r.name: (
            hashlib.sha256(image(r)).hexdigest(),
            r.width,
            r.height,
            r.part if parts else None,
            tuple(replace(o, **gone) for o in r.objects),
        )
        for r in found
    }


def check(folder: Path, name: str | None = None) -> Examination:
    return examine(folder, format=name, max_bad_labels=1)


def as_records(samples: Sequence[Sample]) -> list[Record]:
    return [Record(s.name, s.width, s.height, s.sha256, s.part, s.objects) for s in samples]
