"""The formats of data sets, by name. A format is a module here: how it is read, how it is written."""

from __future__ import annotations

from pathlib import Path

from refit.data.formats import coco, coco_write, drip, kitti, supervisely, tao_tfrecord, tf_csv, tfrecord, voc, yolo
from refit.data.formats.base import Reader, Writer, not_recognised
from refit.data.tree import Tree, scan

READERS: dict[str, Reader] = {
    r.name: r
    for r in (
        kitti.READER,
        voc.READER,
        coco.READER,
        yolo.READER,
        tf_csv.READER,
        tfrecord.READER,
        tao_tfrecord.READER,
        drip.READER,
        supervisely.READER,
    )
}
WRITERS: dict[str, Writer] = {
    w.name: w
    for w in (
        kitti.WRITER,
        voc.WRITER,
        coco_write.WRITER,
        yolo.WRITER,
        tf_csv.WRITER,
        tfrecord.WRITER,
        tao_tfrecord.WRITER,
        drip.WRITER,
        supervisely.WRITER,
    )
}


def reader(tree: Tree, name: str | None = None) -> Reader:
    """The reader of a format, or the one that the folder looks like. Raises BadData."""
    if name is not None:
        return READERS[name]
    found = [r for r in READERS.values() if r.matches(tree)]
    if len(found) == 1:
        return found[0]
    if found:
        raise not_recognised(tree, f"looks like {' and '.join(r.name for r in found)}; say which in dataset.format")
    shown = ", ".join(sorted({p.split("/")[0] for p in tree.files})[:8]) or "nothing"
    raise not_recognised(tree, f"none of the known formats ({', '.join(READERS)}); the folder holds {shown}")


def recognise(path: Path | str) -> str:
    """The name of the format that a folder looks like. Raises BadData, and OSError where it cannot be listed."""
    return reader(scan(Path(path))).name
