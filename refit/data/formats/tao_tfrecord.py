"""NVIDIA TAO's own TFRecords, as DetectNet_v2's dataset_convert writes them: a record an image, which lies beside them.

frame/id (the image's path without its ending), frame/width, frame/height, and a list for each of target/object_class,
truncation, occlusion, coordinates_{x1, y1, x2, y2} in pixels, and KITTI's other columns, which no detector here learns.
With `use_dali` (ssd) the image is in frame/encoded, the coordinates are shares, and classes stand as numbers in
target/object_class_id. Source: nvidia_tao_tf1/cv/detectnet_v2/dataio/{dataset_converter_lib, kitti_converter_lib}.py.

As there, class names are written in small letters, what is not known of truncation and occlusion as 0, and numbers
with a point as float32 (read to a thousandth of a pixel).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from refit.data import tfrecord as container
from refit.data.faults import BadData, Fault, fault
from refit.data.formats import label_map
from refit.data.formats.base import Layout, Names, Record, ignored, lost, normal, not_recognised
from refit.data.formats.listed import Entry, image_folder, join, parts_lost, take_box
from refit.data.formats.tfrecord import (
    Found,
    Shards,
    WrongFeature,
    header_of,
    image_name,
    kind,
    parts_of_shards,
    record_files,
    stem_of_part,
    walk,
)
from refit.data.model import Item, Labels, pixel
from refit.data.tree import Tree

_SIDES = ("x1", "y1", "x2", "y2")
_LISTS = ("target/object_class", "target/object_class_id", *(f"target/coordinates_{side}" for side in _SIDES))
_ZEROS = tuple(f"world_bbox_{name}" for name in ("h", "w", "l", "x", "y", "z", "rot_y"))
_SHARD_BYTES = 2 * 2**20  # no images in them: some 5,000 records a file, for a loader that mixes files
IMAGES = "images"


@dataclass(frozen=True)
class TaoReader:
    """Reads all such files below a folder, with the images below `image_dir`."""

    name: str = "tao_tfrecord"

    def matches(self, tree: Tree) -> bool:
        paths = record_files(tree, ".")
        return bool(paths) and kind(tree, paths) == self.name

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        folder = normal(label_dir or ".")
        if not record_files(tree, folder):
            raise not_recognised(tree, f"no file of dataset_convert (kitti-fold-000-of-002-shard-...) below {folder}")
        return Layout(image_folder(tree, image_dir), folder)

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]:
        names = yield from label_map.told(tree)
        paths = [path for path in record_files(tree, layout.label_dir) if path not in leave]
        parts = parts_of_shards(paths)
        entries: dict[str, Entry] = {}
        again: list[Entry] = []
        inside = False
        for path in paths:
            for found in walk(tree, path):
                if isinstance(found, Fault):
                    yield found
                    continue
                read = read_record(found, path, names, parts[path])
                if isinstance(read, Item):
                    inside |= read.image is not None
                    yield read
                    continue
                other = entries.setdefault(read.ref, read)
                if other is not read and _same(other.labels, read.labels):
                    # dataset_convert repeats images of rare classes (sample_modifier_config).
                    why = fault("duplicate_image", path, f"{read.ref!r} is repeated", at=f"record {found.number}")
                    yield lost(path, read.labels, why)
                elif other is not read:
                    again.append(read)
        listed = [*entries.values(), *again]
        known = {*paths, *label_map.files(tree), *leave}
        if inside and not listed:
            yield from ignored(tree, known)
        else:
            yield from join(tree, layout, listed, known, unlisted="image_without_label", endings=False)


def _same(one: Labels, other: Labels) -> bool:
    boxes = [[(o.label, o.x1, o.y1, o.x2, o.y2) for o in labels.objects] for labels in (one, other)]
    return boxes[0] == boxes[1] and one.declared == other.declared


def read_record(found: Found, path: str, names: Mapping[int, str], part: str | None) -> Entry | Item:
    """What a record says of an image beside it, or the image in it; `names` are the classes by number."""
    at = f"record {found.number}"
    try:
        ref = found.text("frame/id")
        encoded = next(iter(found.texts("frame/encoded")), None)
        header = header_of(encoded or b"")
        labels = _labels(found, path, names, (header.width, header.height) if header else None)
    except WrongFeature as exc:
        return lost(path, Labels(found.longest(_LISTS)), fault("bad_entry", path, str(exc), at=at, images=1))
    if encoded is not None:
        return Item(image_name(ref, path, found.number, header), found.place(path, encoded), path, labels, part)
    if not ref:
        other = "; it is of TensorFlow's object detection: set dataset.format to tfrecord"
        message = f"it has no feature frame/id{other if 'image/encoded' in found.features else ''}"
        return lost(path, labels, fault("label_unreadable", path, message, at=at, images=1))
    return Entry(path, 0, ref, labels, part, at)


def _labels(found: Found, path: str, names: Mapping[int, str], shares_of: tuple[int, int] | None) -> Labels:
    """The objects of a record; coordinates are shares of the image's size where that is given. Raises WrongFeature."""
    place = f"record {found.number}"
    classes = [text.decode("utf-8", "replace") for text in found.texts("target/object_class")]
    classes = classes or [label_map.name_of(names, n) or f"{n:g}" for n in found.numbers("target/object_class_id")]
    sides = [found.numbers(f"target/coordinates_{side}") for side in _SIDES]
    count = max(len(classes), *map(len, sides))
    labels = Labels(size=found.size("frame/width", "frame/height"), at=place)
    uneven = [f"coordinates_{name} {len(v)}" for name, v in zip(_SIDES, sides, strict=True) if len(v) != count]
    uneven += [f"object_class {len(classes)}"] if len(classes) != count else []
    if uneven:
        message = f"the lists of its objects differ in length: of {count}, {', '.join(uneven)}"
        labels.declared = count
        labels.faults.append(fault("bad_entry", path, message, at=place, objects=count))
        return labels
    flags = found.numbers("target/truncation"), found.numbers("target/occlusion")
    for i, name in enumerate(classes):
        box = [values[i] for values in sides]
        box = [round(v * side, 3) for v, side in zip(box, (shares_of or (1, 1)) * 2, strict=True)]
        at = f"{place}, object {i + 1}"
        take_box(labels, path, 0, name, [*zip(_SIDES, box, strict=True)], at)
        if labels.objects and labels.objects[-1].at == at:
            truncated, occluded = (values[i] if i < len(values) else None for values in flags)
            labels.objects[-1] = replace(
                labels.objects[-1],
                truncated=pixel(truncated) if truncated is not None and 0 <= truncated <= 1 else None,
                occluded=int(occluded) if occluded in (0, 1, 2, 3) else None,
            )
    return labels


@dataclass(frozen=True)
class TaoWriter:
    """Writes `<part>-fold-000-of-001-shard-00000-of-00001`, which say images/<name> in frame/id.

    DetectNet_v2's training takes them by `tfrecords_path: "<out>/train-*"` with `image_directory_path: "<out>"`, and
    those of val as `validation_data_source`.
    """

    name: str = "tao_tfrecord"
    image_dir: str | None = IMAGES

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        gone = Counter[str]()
        folded = Counter(name.lower() for name in classes)
        twice = [name for name in classes if folded[name.lower()] > 1]
        if twice:
            message = f"{' and '.join(twice)} become one class: TAO's TFRecords hold names in small letters"
            raise BadData(str(out), [fault("unknown_class", "", message, advice="map them with dataset.class_map")])
        ending, first = "", ""
        with Shards(out, lambda part, i, n: f"{part}-fold-000-of-001-shard-{i:05}-of-{n:05}", _SHARD_BYTES) as shards:
            for r in records:
                suffix = PurePosixPath(r.name).suffix
                ending, first = (ending, first) if first else (suffix, r.name)
                if suffix != ending or suffix.lower() not in (".jpg", ".jpeg", ".png"):
                    message = f"{r.name} beside {first}: TAO reads JPEG or PNG files of one ending (image_extension)"
                    raise BadData(str(out), [fault("image_unsupported", r.name, message)])
                shards.write(r.part, container.encode_example(features(r)))
                gone["difficult"] += sum(o.difficult for o in r.objects)
                gone["class_name"] += sum(o.cls != o.cls.lower() for o in r.objects)
                gone["rounded"] += sum(_rounded(o.x1, o.y1, o.x2, o.y2) for o in r.objects)
        gone["part"] += parts_lost(shards.images, stem_of_part)
        return +gone


def features(record: Record) -> dict[str, container.Feature]:
    """The features of an image."""
    objects = record.objects

    def floats(values: Iterable[float]) -> container.Feature:
        return np.array([*values], np.float32)

    target: dict[str, container.Feature] = {
        "object_class": [o.cls.lower().encode() for o in objects],
        "truncation": floats(o.truncated or 0 for o in objects),
        "occlusion": np.array([o.occluded or 0 for o in objects], np.int64),
        "observation_angle": floats(0 for _ in objects),
        "coordinates_x1": floats(o.x1 for o in objects),
        "coordinates_y1": floats(o.y1 for o in objects),
        "coordinates_x2": floats(o.x2 for o in objects),
        "coordinates_y2": floats(o.y2 for o in objects),
        **{name: floats(0 for _ in objects) for name in _ZEROS},
    }
    return {
        "frame/id": [str(PurePosixPath(IMAGES) / PurePosixPath(record.name).with_suffix("")).encode()],
        "frame/height": np.array([record.height], np.int64),
        "frame/width": np.array([record.width], np.int64),
        **{f"target/{name}": value for name, value in target.items()},
    }


def _rounded(*box: float) -> bool:
    return any(round(float(np.float32(v)), 3) != v for v in box)


READER = TaoReader()
WRITER = TaoWriter()
