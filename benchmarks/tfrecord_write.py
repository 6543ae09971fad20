"""How many images a CPU-second become TFRecords, from a CSV list and a folder of JPEGs, against the old systems' way.

    python -m benchmarks.tfrecord_write --old PYTHON [--images 2000] [--objects 7]     in the tools environment

The old way is what TensorFlow's object detection tutorials and both old systems do: `pandas.read_csv`, a group for each
image, a loop over its rows, the picture opened by PIL for its size, a `tf.train.Example`, TensorFlow's own writer.
PYTHON is an interpreter that has tensorflow, pandas and pillow. Ours reads the same list with Refit's reader and writes
with its writer, CRC and all. Both read and write the same files; that the records hold the same boxes, classes and
images is checked after the last round.
CPU seconds are of the whole process (TensorFlow's threads, too) without imports.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLASSES = [f"class{i}" for i in range(10)]
SIZES = {"640x480": ((640, 480), 70), "1248x384": ((1248, 384), 90)}  # pixels, JPEG quality: some 20 and 100 KB


def old(source: Path, out: Path) -> None:
    """A converter as the old systems have it. Runs where TensorFlow is."""
    import io

    import pandas as pd
    import tensorflow as tf
    from PIL import Image

    ids = {name: i for i, name in enumerate(CLASSES, 1)}

    def integers(values: list[int]) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def texts(values: list[bytes]) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    def floats(values: list[float]) -> Any:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def example(name: str, rows: Any) -> Any:
        with tf.io.gfile.GFile(str(source / "images" / name), "rb") as file:
            encoded = file.read()
        width, height = Image.open(io.BytesIO(encoded)).size
        sides: dict[str, list[float]] = {"xmin": [], "xmax": [], "ymin": [], "ymax": []}
        names, labels = [], []
        for _, row in rows.iterrows():
            sides["xmin"].append(row["xmin"] / width)
            sides["xmax"].append(row["xmax"] / width)
            sides["ymin"].append(row["ymin"] / height)
            sides["ymax"].append(row["ymax"] / height)
            names.append(row["class"].encode("utf8"))
            labels.append(ids[row["class"]])
        feature = {
            "image/height": integers([height]),
            "image/width": integers([width]),
            "image/filename": texts([name.encode("utf8")]),
            "image/source_id": texts([name.encode("utf8")]),
            "image/encoded": texts([encoded]),
            "image/format": texts([b"jpg"]),
            **{f"image/object/bbox/{side}": floats(values) for side, values in sides.items()},
            "image/object/class/text": texts(names),
            "image/object/class/label": integers(labels),
        }
        return tf.train.Example(features=tf.train.Features(feature=feature))

    with tf.io.TFRecordWriter(str(out / "old.tfrecord")) as writer:
        for name, rows in pd.read_csv(source / "labels.csv").groupby("filename"):
            writer.write(example(name, rows).SerializeToString())


def ours(source: Path, out: Path) -> None:
    """Refit's reader of the list, and its writer."""
    from refit.data.formats import WRITERS, tf_csv
    from refit.data.formats.base import Record
    from refit.data.model import Box

    entries, _ = tf_csv.parse((source / "labels.csv").read_bytes(), "labels.csv")
    records = (
        Record(e.ref, *size, "", None, [Box(o.label, o.x1, o.y1, o.x2, o.y2) for o in e.labels.objects])
        for e in entries
        if (size := e.labels.size) is not None
    )

    def image(record: Record) -> bytes:
        with open(f"{source}/images/{record.name}", "rb") as file:
            return file.read()

    WRITERS["tfrecord"].write(out, records, CLASSES, image)


def make(root: Path, images: int, objects: int, size: tuple[int, int], quality: int) -> int:
    """The list and the pictures (50 different ones, under many names); returns how many objects there are."""
    import cv2
    import numpy as np

    chance, noise = random.Random(7), np.random.default_rng(7)
    (root / "images").mkdir(parents=True)
    pictures = []
    for _ in range(50):
        rough = noise.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        smooth = cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC)
        pictures.append(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    count = 0
    with open(root / "labels.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for i in range(images):
            (root / "images" / f"{i:06}.jpg").write_bytes(pictures[i % len(pictures)])
            for _ in range(chance.randint(1, 2 * objects - 1)):
                x, y = chance.randint(0, size[0] - 100), chance.randint(0, size[1] - 100)
                box = (x, y, x + chance.randint(4, 99), y + chance.randint(4, 99))
                rows.writerow([f"{i:06}.jpg", *size, chance.choice(CLASSES), *box])
                count += 1
    return count


def timed(convert: Callable[[Path, Path], None], source: Path, rounds: int) -> list[float]:
    """CPU seconds of each round; one before them is not counted (imports)."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for i in range(rounds + 1):
            out = Path(temporary) / str(i)
            out.mkdir()
            before = time.process_time()
            convert(source, out)
            found.append(time.process_time() - before)
    return found[1:]


def contents(folder: Path) -> dict[str, Any]:
    """What the records of a folder hold, by the image's name."""
    from refit.data import tfrecord

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.tfrecord")):
        for offset in tfrecord.offsets(path):
            features = tfrecord.decode_example(tfrecord.read_record(path, offset))
            name = features["image/filename"][0].decode()
            lists = [features[f"image/object/bbox/{side}"].tolist() for side in ("xmin", "ymin", "xmax", "ymax")]
            found[name] = (*lists, features["image/object/class/label"].tolist(), features["image/encoded"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, metavar="PYTHON", help="an interpreter with tensorflow, pandas, pillow")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--objects", type=int, default=7, help="of an image, on average")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    from benchmarks.report import write

    results: dict[str, Any] = {"images": args.images}
    for name, (size, quality) in SIZES.items():
        with tempfile.TemporaryDirectory() as temporary:
            row = measure(Path(temporary), args, size, quality)
        if row is None:
            print(f"{name}: the two converters wrote different records", file=sys.stderr)
            return 1
        results[name] = row
    write("tfrecord_write", results)
    return 0


def measure(root: Path, args: argparse.Namespace, size: tuple[int, int], quality: int) -> dict[str, Any] | None:
    """Both on pictures of one size; None where they did not write the same."""
    objects = make(root / "source", args.images, args.objects, size, quality)
    total = sum(p.stat().st_size for p in (root / "source" / "images").iterdir())
    for name in ("old", "ours"):
        (root / name).mkdir()
    command = [args.old, __file__, "old", str(root / "source"), str(args.rounds), str(root / "old")]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env={"TF_CPP_MIN_LOG_LEVEL": "3"})
    row = json.loads(told.stdout.splitlines()[-1])
    seconds = timed(ours, root / "source", args.rounds)
    ours(root / "source", root / "ours")
    if contents(root / "old") != contents(root / "ours"):
        return None
    old_rate, our_rate = args.images / min(row["seconds"]), args.images / min(seconds)
    return {
        "objects": objects,
        "bytes_an_image": total // args.images,
        "tensorflow": row["tensorflow"],
        "pandas": row["pandas"],
        "old_images_per_cpu_second": round(old_rate),
        "our_images_per_cpu_second": round(our_rate),
        "ratio": round(our_rate / old_rate, 2),
    }


def main_old(source: str, rounds: str, out: str) -> None:
    """The part that runs where TensorFlow is."""
    import pandas as pd
    import tensorflow as tf

    seconds = timed(old, Path(source), int(rounds))
    old(Path(source), Path(out))
    print(json.dumps({"seconds": seconds, "tensorflow": tf.__version__, "pandas": pd.__version__}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["old"]:
        main_old(*sys.argv[2:])
    else:
        sys.exit(main())
