"""YOLO's labels: a text file an image, a line an object, values as shares of the image's width and height.

    class x y width height [score]      x and y are the box's centre; the class is a number from 0
    class x1 y1 x2 y2 x3 y3 ...         the corners of a polygon, or of an oriented box: the box around them is taken

What the classes are called stands in data.yaml (`names`), classes.txt or obj.names. A label lies where its image lies
with `images` turned into `labels`, or beside it; an image without one has no objects. The splits are folders or lists
of images that data.yaml names. Source: docs.ultralytics.com (datasets/detect, /segment, /obb), darknet's README.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from refit.data.faults import BadData, Fault, fault
from refit.data.formats.base import (
    Changed,
    Layout,
    Names,
    Record,
    check_stems,
    fields_lost,
    known_part,
    part_lines,
    part_name,
    read_whole,
    stem_of,
)
from refit.data.formats.paired import PairedReader
from refit.data.images import SUFFIXES
from refit.data.model import NUMBERS, Box, Columns, Item, Labelled, Labels
from refit.data.text import NotText, class_name, decode, finite, number
from refit.data.tree import Tree, suffix_of

SUFFIX = ".txt"
_BEYOND = 0.01  # so far outside 0 to 1 it is taken for a share of a box at the edge, and cut there
_EDGE = 2e-6  # what six decimals do to a box that ends at the edge
_SNIFFED = 8  # label files, and of each no more than
_HEAD = 65_536  # bytes
_NO_LABELS = re.compile(r"(classes|train|val|valid|test|trainval|readme.*|notes)\.txt$", re.IGNORECASE)
_NO_PARTS = frozenset({"path", "names", "nc", "download", "kpt_shape", "flip_idx", "backup", "classes"})
_MAX_YAML = 2**20
# What tools write: lines of a small number and four plain shares, which need no look at each word.
_PLAIN = re.compile(rb"(?:[0-9]{1,4}+(?: [01](?:\.[0-9]{1,20}+)?+){4}+\r?+\n)++")


def parse(data: bytes, file: str, names: Mapping[int, str] | None = None) -> Labels:
    """The objects of a label file, their boxes as shares; `names` None: classes are called by their numbers."""
    try:
        text = decode(data)
    except NotText as exc:
        lost = sum(1 for line in data.split(b"\n") if line.strip(b"\0 \t\r"))
        return Labels(lost, faults=[fault("label_unreadable", file, str(exc), objects=lost)])
    labels = Labels(relative=True)
    polygons: list[int] = []
    for at, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words:
            continue
        labels.declared += 1
        found = _line(words, at, file, names)
        if isinstance(found, Fault):
            labels.faults.append(found)
            continue
        labels.objects.append(found)
        if len(words) > 6:
            polygons.append(at)
    if polygons:
        message = f"{len(polygons)} objects are polygons or oriented boxes"
        labels.faults.append(fault("polygon_boxed", file, message, line=polygons[0]))
    return labels


def columns(files: Sequence[bytes], names: Mapping[int, str] | None = None) -> Columns:
    """The objects of files that match `_PLAIN`. A share beyond `_BEYOND` leads out of the image, and so to `parse`."""
    ended = [data if data.endswith(b"\n") else data + b"\n" for data in files]
    counts = [data.count(b"\n") if _PLAIN.fullmatch(data) else -1 for data in ended]
    lines = b"".join(data for data, count in zip(ended, counts, strict=True) if count > 0).decode().splitlines()
    boxes = np.zeros((len(lines), NUMBERS))
    boxes[:, 5:] = np.nan  # truncated and occluded
    labels = list[str]()
    if lines:
        index, x, y, width, height = np.loadtxt(lines, comments=None, delimiter=" ", ndmin=2).T
        labels = [str(i) if names is None else names.get(i, "") for i in index.astype(np.int64).tolist()]
        boxes[:, :4] = np.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), axis=1)
        for edge in (0.0, 1.0):  # as in `_at_edge`
            boxes[:, :4][np.abs(boxes[:, :4] - edge) < _EDGE] = edge
    return Columns(counts, labels, boxes, relative=True)


def _line(words: list[str], at: int, file: str, names: Mapping[int, str] | None) -> Labelled | Fault:
    shown = " ".join(words)[:120]

    def lost(code: str, message: str, advice: str = "") -> Fault:
        return fault(code, file, message, line=at, value=shown, advice=advice, objects=1)

    like_kitti = len(words) in (15, 16) and number(words[0]) is None
    if like_kitti or (len(words) not in (5, 6) and (len(words) < 7 or len(words) % 2 == 0)):
        advice = "YOLO has 5 columns (6 with a score), or a class and the pairs of a polygon"
        if like_kitti:
            advice = "these look like KITTI's labels; name dataset.format: kitti"
        return lost("column_count", f"{len(words)} columns in place of 5", advice)
    numbers = [number(w) for w in words]
    values = [v for v in numbers if v is not None]
    if len(values) != len(words):
        column = numbers.index(None) + 1
        message = f"column {column} is {words[column - 1][:40]!r}, which is no number"
        advice = "YOLO's classes are numbers from 0; their names stand in data.yaml" if column == 1 else ""
        return lost("not_a_number", message, advice)
    if not finite(tuple(values)):
        return lost("not_finite", f"the values {shown} are not all finite")
    index, shares = values[0], values[1:5] if len(values) < 7 else values[1:]
    if index < 0 or index != int(index):
        return lost("not_a_number", f"the class is {words[0]!r}; it must be a whole number from 0")
    if not all(-_BEYOND <= v <= 1 + _BEYOND for v in shares):
        worst = max(shares, key=lambda v: abs(v - 0.5))
        advice = "these look like pixels: divide them by the image's width and height" if worst > 2 else ""
        return lost("out_of_range", f"{worst:g} is no share of the image (0 to 1)", advice)
    name = str(int(index)) if names is None else names.get(int(index))
    if name is None:
        known = f"{min(names)} to {max(names)}" if names else "none"
        message = f"class {int(index)} has no name (named are {known})"
        return lost("unknown_class", message, "add the name to the list of names")
    if len(values) < 7:
        x, y, width, height = shares
        x1, y1, x2, y2 = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        x1, y1, x2, y2 = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
    return Labelled(at, name, _at_edge(x1), _at_edge(y1), _at_edge(x2), _at_edge(y2))


def _at_edge(share: float) -> float:
    """The share, or the edge itself where six decimals cannot tell them apart."""
    return 0.0 if abs(share) < _EDGE else 1.0 if abs(share - 1) < _EDGE else share


# ---- recognition


def looks(tree: Tree, labels: Iterable[str]) -> bool:
    """Whether most lines of the first label files are YOLO's; where these have none, whether names are listed."""
    rows: list[list[str]] = []
    sampled = islice((path for path in labels if tree.files[path].size), _SNIFFED)
    for path in sampled:
        try:
            with open(os.path.join(tree.root, path), "rb") as f:
                text = f.read(_HEAD).decode("utf-8-sig", "replace")
        except OSError:
            continue
        rows += [words for line in text.split("\n")[:100] if (words := line.split())]
    if not rows:
        return any(_rank(path) in (0, 2) for path in _listing(tree))
    return 2 * sum(map(_is_row, rows)) > len(rows)


def _is_row(words: list[str]) -> bool:
    """Five or six numbers, the first a whole one; or a polygon, all in shares (KITTI has 15 columns, of pixels)."""
    values = [v for v in map(number, words) if v is not None]
    if len(values) != len(words) or not words[0].isdecimal():
        return False
    return len(words) in (5, 6) or (len(words) > 6 and all(-_BEYOND <= v <= 1 + _BEYOND for v in values[1:]))


# ---- the folder


def _key(path: str, folder: str) -> str:
    """An image's path without its ending; of a label, the same: its last folder `labels` is read as `images`."""
    stem = stem_of(path, folder)
    if suffix_of(path) != SUFFIX:
        return stem
    parts = stem.split("/")
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "labels":
            return "/".join([*parts[:i], "images", *parts[i + 1 :]])
    return stem


@dataclass
class _About:
    """What the files beside the labels say: names of the classes, the part of each image, what those files are."""

    names: dict[int, str] | None = None
    parts: Callable[[str], str | None] = lambda path: None
    files: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)


def _is_label(tree: Tree, label_dir: str | None) -> Callable[[str], bool]:
    """What tells label files: in a folder that was named, below one called `labels`, or beside images; but for lists
    and read-mes, unless an image is called like these."""
    folders = {path.rpartition("/")[0] for path in tree.files.ending(*SUFFIXES)}
    named = label_dir not in (None, ".")
    holds: dict[str, bool] = {}  # by folder: most files are of a few

    def is_label(path: str) -> bool:
        folder, _, file = path.rpartition("/")
        if folder not in holds:
            holds[folder] = named or folder in folders or "labels" in folder.split("/")
        if not holds[folder] or suffix_of(path) != SUFFIX:
            return False
        return not _NO_LABELS.match(file) or _pictured(tree, path)

    return is_label


def _pictured(tree: Tree, path: str) -> bool:
    """Whether there is an image that this would be the label of."""
    key = _key(path, ".")
    return any(f"{key}{ending}" in tree.files for suffix in SUFFIXES for ending in (suffix, suffix.upper()))


class YoloReader:
    """YOLO's folders: `images` and `labels` side by side (with splits below, or above them), or all in one place."""

    name = "yolo"

    def matches(self, tree: Tree) -> bool:
        return self._paired(tree).matches(tree)

    def layout(self, tree: Tree, image_dir: str | None = None, label_dir: str | None = None) -> Layout:
        return self._paired(tree, label_dir).layout(tree, image_dir, label_dir)

    def read(self, tree: Tree, layout: Layout, leave: Collection[str] = ()) -> Iterator[Item | Fault | Names]:
        about = _about(tree, _is_label(tree, layout.label_dir))
        yield from about.faults
        if about.names:
            yield Names(tuple(dict.fromkeys(about.names[i] for i in sorted(about.names))))
        paired = self._paired(tree, layout.label_dir, about.names, about.parts)
        yield from paired.read(tree, layout, {*leave, *about.files})

    def _paired(
        self,
        tree: Tree,
        label_dir: str | None = None,
        names: Mapping[int, str] | None = None,
        part: Callable[[str], str | None] = lambda path: None,
    ) -> PairedReader:
        is_label = _is_label(tree, label_dir)
        tops = {path.partition("/")[0] for path in tree.files.ending(*SUFFIXES)}
        apart = tops == {"images"} and any(is_label(f.path) for f in tree.below("labels"))
        dirs = (("images",), ("labels",)) if apart else ((".",), (".",))
        one, many = partial(parse, names=names), partial(columns, names=names)
        return PairedReader(self.name, SUFFIX, *dirs, one, looks, is_label, _key, part, background=True, many=many)


def _listing(tree: Tree) -> Iterator[str]:
    """The files that may name classes."""
    return tree.files.ending(".yaml", ".yml", ".txt", ".names", ".labels")


def _rank(path: str) -> int | None:
    """How much a file is to be believed about the names of classes: 0 most, None: it says nothing of them."""
    folder, _, file = path.lower().rpartition("/")
    if file.endswith((".yaml", ".yml")) and not folder:
        return 0 if file in ("data.yaml", "dataset.yaml", "data.yml") else 1
    return 2 if file in ("classes.txt", "obj.names", "_darknet.labels") or file.endswith(".names") else None


def _about(tree: Tree, is_label: Callable[[str], bool]) -> _About:
    about = _About()
    ranked = sorted((rank, path) for path in _listing(tree) if (rank := _rank(path)) is not None and not is_label(path))
    best = None
    settings: dict[str, Any] = {}
    for _, path in ranked:
        names, keys = _names_in(tree, path, about.faults)
        if names is None:
            continue
        about.files.add(path)
        if best is None:
            best, about.names, settings = path, names, keys
        elif names != about.names:
            message = f"its names of classes are not those of {best}, which are taken"
            about.faults.append(fault("class_names_differ", path, message))
    if about.names is None:
        about.faults.append(fault("class_names_missing", "", "no file says what the classes are called"))
    else:
        _twice(about.names, best or "", about.faults)
    about.parts = _parts(tree, settings, about)
    return about


def _twice(names: Mapping[int, str], file: str, faults: list[Fault]) -> None:
    seen: dict[str, int] = {}
    for index, name in sorted(names.items()):
        if seen.setdefault(name, index) != index:
            message = f"classes {seen[name]} and {index} are both called {name!r}, and become one"
            faults.append(fault("duplicate_id", file, message, value=name))


def _names_in(tree: Tree, path: str, faults: list[Fault]) -> tuple[dict[int, str] | None, dict[str, Any]]:
    """The names that a file gives, None where it gives none, and all that a YAML file says."""
    try:
        text = decode(read_whole(tree, path))
        if suffix_of(path) not in (".yaml", ".yml"):
            lines = [class_name(line) for line in text.rstrip().split("\n")]
            return {i: name for i, name in enumerate(lines) if name} or None, {}
        if len(text) > _MAX_YAML:
            raise NotText(f"it has {len(text)} characters; a list of names never needs more than {_MAX_YAML}")
        # BaseLoader: every scalar is text, so a class called "no" is not False.
        found = yaml.load(text, yaml.BaseLoader)
    except Changed:
        raise
    except OSError as exc:
        faults.append(fault("label_unreadable", path, f"cannot be opened: {exc.strerror}"))
        return None, {}
    except (NotText, yaml.YAMLError, RecursionError) as exc:
        why = "nested too deeply" if isinstance(exc, RecursionError) else " ".join(str(exc).split())[:200]
        faults.append(fault("label_unreadable", path, f"not read: {why}"))
        return None, {}
    if not isinstance(found, dict) or "names" not in found:
        return None, {}
    given = found["names"]
    rows = list(given.items()) if isinstance(given, dict) else list(enumerate(given)) if isinstance(given, list) else []
    names: dict[int, str] = {}
    for key, value in rows:
        if not (str(key).isdecimal() and len(str(key)) < 10 and class_name(value)):
            faults.append(fault("bad_entry", path, f"names: {str(key)[:40]!r} is not the number and name of a class"))
        else:
            names[int(key)] = class_name(value)
    return names or None, {k: v for k, v in found.items() if isinstance(k, str)}


def _parts(tree: Tree, settings: Mapping[str, Any], about: _About) -> Callable[[str], str | None]:
    """What puts an image into a split: folders and lists that data.yaml names, else a folder called train, val, ...."""
    folders: dict[str, set[str]] = {}
    listed: dict[str, set[str]] = {}
    present = set(tree.folders)
    for key, value in settings.items():
        part = part_name(key)
        if part is None or key in _NO_PARTS:
            continue
        for entry in value if isinstance(value, list) else [value]:
            where = _resolved(str(entry), settings.get("path"), present, tree) if isinstance(entry, str) else None
            if where in present:
                folders.setdefault(str(where), set()).add(part)
            elif where is not None:
                about.files.add(where)
                for image in _listed(tree, where, about.faults):
                    listed.setdefault(image, set()).add(part)
    unclear = [*(f for f, parts in folders.items() if len(parts) > 1), *(i for i, p in listed.items() if len(p) > 1)]
    if unclear:
        message = f"{unclear[0]}{f' and {len(unclear) - 1} others' * (len(unclear) > 1)}: in several splits"
        about.faults.append(fault("parts_unclear", "data.yaml", message, value=unclear[0]))

    def part_of(path: str) -> str | None:
        above = [str(p) for p in PurePosixPath(path).parents]
        found = listed.get(path) or next((folders[f] for f in above if f in folders), None)
        if found is None and not settings_name_parts:
            return next((part for f in reversed(path.split("/")[:-1]) if (part := known_part(f))), None)
        return next(iter(found)) if found and len(found) == 1 else None

    settings_name_parts = bool(folders or listed)
    return part_of


def _resolved(entry: str, base: Any, folders: Collection[str], tree: Tree) -> str | None:
    """A folder or list that data.yaml names, as a path below the source: its `path` is often another machine's."""
    clean = entry.replace("\\", "/")
    tried = [clean, f"{base}/{clean}" if isinstance(base, str) else clean]
    for value in tried:
        words = [w for w in value.split("/") if w not in ("", ".", "..")]
        for i in range(len(words)):
            found = "/".join(words[i:])
            if found in folders or (found in tree.files and suffix_of(found) == SUFFIX):
                return found
    return None


def _listed(tree: Tree, path: str, faults: list[Fault]) -> Iterator[str]:
    """The images that a list names, as paths below the source."""
    try:
        lines = decode(read_whole(tree, path)).split("\n")
    except Changed:
        raise
    except (OSError, NotText) as exc:
        faults.append(fault("list_stale", path, f"not read: {exc}"))
        return
    unknown: list[int] = []
    for at, line in enumerate(lines, 1):
        words = [w for w in line.strip().replace("\\", "/").split("/") if w not in ("", ".", "..")]
        tails = ("/".join(words[i:]) for i in range(len(words)))
        found = next((t for t in tails if t in tree.files), None)
        if found is not None:
            yield found
        elif words:
            unknown.append(at)
    if unknown:
        message = f"{len(unknown)} lines name no image of the data set"
        faults.append(fault("list_stale", path, message, line=unknown[0], value=lines[unknown[0] - 1].strip()))


READER = YoloReader()


# ---- written


class YoloWriter:
    """images/, labels/, data.yaml, and a list of images for each part."""

    name = "yolo"
    image_dir = "images"

    def write(
        self, out: Path, records: Iterable[Record], classes: Sequence[str], image: Callable[[Record], bytes]
    ) -> Counter[str]:
        records = list(records)
        check_stems(records, "YOLO")
        lists = part_lines(records, lambda name: f"./images/{name}")
        taken = [
            fault("bad_name", part, "data.yaml has another meaning for this word") for part in _NO_PARTS & set(lists)
        ]
        if taken:
            raise BadData("YOLO", taken)
        numbers = {cls: i for i, cls in enumerate(classes)}
        for r in records:
            path = out / "labels" / PurePosixPath(r.name).with_suffix(SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(_written(o, r, numbers[o.cls]) for o in r.objects), encoding="ascii")
        for part, text in lists.items():
            (out / f"{part}.txt").write_text(text, encoding="utf-8")
        about = {**{part: f"{part}.txt" for part in lists}, "names": dict(enumerate(classes))}
        (out / "data.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return fields_lost(records, "difficult", "truncated", "occluded")


def _written(o: Box, r: Record, number: int) -> str:
    """Twelve digits: less than a millionth of a pixel is lost, in which `refit.data.model.pixel` sees no difference."""
    x, y = (o.x1 + o.x2) / 2 / r.width, (o.y1 + o.y2) / 2 / r.height
    return f"{number} {x:.12g} {y:.12g} {(o.x2 - o.x1) / r.width:.12g} {(o.y2 - o.y1) / r.height:.12g}\n"


WRITER = YoloWriter()
