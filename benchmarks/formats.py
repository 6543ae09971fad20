"""How many images a CPU-second our writers write, against converters as the systems before had them.

The floor is one of their shape: labels row by row into a pandas DataFrame, then `iterrows` and a group for each image,
the JSON in one piece at the end. Both get the same data set, both write the same boxes, checked after each run.

    python -m benchmarks.formats [--images 5000] [--objects 7]      in the tools environment, with pandas beside it
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import write
from refit.data.formats import WRITERS
from refit.data.formats.base import Record
from refit.data.model import Box

CLASSES = [f"class{i}" for i in range(10)]
SIZE = (1248, 384)


def made(images: int, objects: int) -> list[Record]:
    """Records like KITTI's: up to 2 * objects boxes an image, two decimals."""
    chance = random.Random(7)
    records = []
    for i in range(images):
        boxes = []
        for _ in range(chance.randint(0, 2 * objects)):
            x, y = chance.uniform(0, SIZE[0] - 100), chance.uniform(0, SIZE[1] - 100)
            x2, y2 = x + chance.uniform(4, 100), y + chance.uniform(4, 100)
            boxes.append(Box(chance.choice(CLASSES), round(x, 2), round(y, 2), round(x2, 2), round(y2, 2)))
        records.append(Record(f"{i:06}.png", *SIZE, f"{i:064x}", "train" if i % 5 else "val", boxes))
    return records


def old_coco(records: list[Record], out: Path) -> None:
    """The old way: a DataFrame of objects (`filename,width,height,class,xmin,...`), then a loop over its rows."""
    import pandas as pd

    columns = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "part"]
    rows = [(r.name, r.width, r.height, o.cls, o.x1, o.y1, o.x2, o.y2, r.part) for r in records for o in r.objects]
    frame = pd.DataFrame(rows, columns=columns)
    out.mkdir(parents=True)
    ids = {name: i for i, name in enumerate(CLASSES, 1)}
    for part in sorted(set(frame["part"])):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, group) in enumerate(frame[frame["part"] == part].groupby("filename"), 1):
            first = group.iloc[0]
            images.append(
                {"id": number, "file_name": name, "width": int(first["width"]), "height": int(first["height"])}
            )
            for _, row in group.iterrows():
                width, height = row["xmax"] - row["xmin"], row["ymax"] - row["ymin"]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": ids[row["class"]],
                        "bbox": [row["xmin"], row["ymin"], width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": i, "name": name} for name, i in ids.items()]
        with open(out / f"{part}.json", "w", encoding="utf-8") as f:
            json.dump({"images": images, "annotations": annotations, "categories": categories}, f)


def our_coco(records: list[Record], out: Path) -> None:
    out.mkdir(parents=True)
    WRITERS["coco"].write(out, records, CLASSES, lambda r: b"")


def boxes_in(files: list[Path]) -> list[tuple[str, float, float, float, float]]:
    """The boxes of COCO files, to a millionth of a pixel, sorted."""
    found = []
    for path in files:
        value = json.loads(path.read_text(encoding="utf-8"))
        names = {row["id"]: row["file_name"] for row in value["images"]}
        found += [(names[row["image_id"]], *(round(v, 6) for v in row["bbox"])) for row in value["annotations"]]
    return sorted(found)


Convert = Callable[[list[Record], Path], None]
Boxes = Callable[[list[Path]], list[tuple[str, float, float, float, float]]]
RIVALS: dict[str, tuple[Convert, Convert, str, Boxes]] = {
    # format: the old way, ours, which files hold the labels, how their boxes are read back
    "coco": (old_coco, our_coco, "*.json", boxes_in),
}


def rate(convert: Convert, records: list[Record], out: Path) -> float:
    """Images a CPU-second of this process."""
    before = time.process_time()
    convert(records, out)
    return len(records) / (time.process_time() - before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=7, help="of an image, on average")
    args = parser.parse_args()
    records = made(args.images, args.objects)
    results: dict[str, Any] = {
        "images": len(records),
        "objects": sum(len(r.objects) for r in records),
    }
    for name, (old, ours, pattern, boxes) in RIVALS.items():
        old_rates, our_rates = [], []
        for _ in range(3):  # one after the other, so that both meet the same machine
            with tempfile.TemporaryDirectory() as temporary:
                for convert, rates, place in ((old, old_rates, "old"), (ours, our_rates, "ours")):
                    rates.append(rate(convert, records, Path(temporary) / place))
                same = [boxes(sorted((Path(temporary) / place).rglob(pattern))) for place in ("old", "ours")]
                if same[0] != same[1]:
                    print(f"{name}: the two converters wrote different boxes", file=sys.stderr)
                    return 1
        results[name] = {
            "old_images_per_cpu_second": round(max(old_rates)),
            "our_images_per_cpu_second": round(max(our_rates)),
            "ratio": round(max(our_rates) / max(old_rates), 2),
        }
        print(f"{name}: {results[name]}")
    write("formats", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
