"""`dataset.mode: append`: the source adds to the data set taken last, corrects it, and removes from it.

The data set taken last is its snapshot, so objects that were left out of it are not there to come back. An image of the
source takes the place of one with the same name or the same bytes; `removed.txt` in the source names images that go.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from refit.data import checks, doubts, names, snapshot
from refit.data.arrival import last_taken
from refit.data.examine import Examination
from refit.data.faults import BadData, Fault, fault, graded
from refit.data.formats.base import Layout
from refit.data.images import SUFFIXES
from refit.data.model import Box, Sample
from refit.data.settings import DatasetSettings
from refit.data.tree import scan

REMOVED = "removed.txt"
# Faults of a whole data set, not of what is added to one: `checks.whole`, `doubts.of_all`.
_OF_ALL = frozenset({"too_few_images", "class_without_objects"})
_ODD_OF_ALL = frozenset(
    {"rare_class", "class_imbalance", "name_case_collision", "name_not_ascii", "mixed_colour", "alpha_channel"}
)


@dataclass(frozen=True, slots=True)
class Base:
    """The data set taken last: its snapshot, and what its dataset.json says. `lost` says why it cannot be read."""

    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    lost: str = ""

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @property
    def evaluation(self) -> str:
        """The version of its evaluation set, "" where it was taken before there were any."""
        return str(self.about.get("evaluation", {}).get("version", ""))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows of annotations.jsonl, by file name."""
        return snapshot.read_annotations(self.path)


def last(workspace: Path) -> Base | None:
    """The data set that a run took last, None where there was none."""
    taken = last_taken(workspace)
    if taken is None or taken.fingerprint is None:
        return None
    path = workspace / "datasets" / taken.fingerprint
    try:
        return Base(path, json.loads((path / "dataset.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        return Base(path, lost=str(exc))


def removals_only(source: Path, why: BadData) -> Examination:
    """The examination of a source that holds no image, but a removed.txt. Raises `why` for any other."""
    if [f.code for f in why.faults] == ["not_recognised"]:
        tree = scan(source)
        if REMOVED in tree.files and not any(PurePosixPath(p).suffix.lower() in SUFFIXES for p in tree.files):
            return Examination(tree, "", Layout("images", "labels"), recalled=bytearray(len(tree.files)))
    raise why


def merge(examined: Examination, base: Base | None, settings: DatasetSettings, store: snapshot.Store) -> dict[str, str]:
    """Add the samples of the data set taken last to those of the source; their faults go to `examined`, too.

    Returns the part that each of the added ones had, by its `file`. Raises BadData where the base is lost.
    """
    delivered = bool(examined.samples)
    faults: list[Fault] = []
    classes = checks.Classes(settings.classes, settings.class_map)
    earlier: dict[str, tuple[Sample, str]] = {}
    if base is not None:
        wrong = base.lost or snapshot.verify(base.path)
        if wrong:
            raise BadData(str(examined.tree.root), [fault("base_missing", "", f"{base.path} was taken last: {wrong}")])
        earlier = {sample.file: (sample, part) for sample, part in _samples(base, store)}
    removed = _removed(examined, [s for s, _ in earlier.values()], faults)
    arrived = []
    for s in examined.samples:
        if s.file in removed:
            faults.append(fault("removed_image", s.source, "left out", objects=len(s.objects), images=1))
        else:
            arrived.append(s)
    by_name = {s.file: s for s in arrived}
    contents = {s.sha256: s for s in arrived}
    kept: dict[str, str] = {}
    for file, (sample, part) in earlier.items():
        same = contents.get(sample.sha256)
        if same is not None and sample.objects and not same.objects:
            message = f"had {len(sample.objects)} objects before, and none now"
            faults.append(fault("labels_gone", same.source, message))
        if file in by_name:
            new = by_name[file]
            if new.sha256 != sample.sha256:
                message = f"another picture than the {file} that was taken before"
                faults.append(fault("picture_replaced", new.source, message))
        elif file in removed:
            faults.append(fault("removed_image", file, "taken out of the data set"))
        elif same is None:
            objects, found = _objects(sample, classes)
            examined.declared += len(sample.objects)
            faults += found
            arrived.append(replace(sample, objects=objects))
            kept[file] = part
    examined.samples = sorted(arrived, key=lambda s: s.name)
    of_all = checks.whole(examined.samples, (), examined.declared, classes, 1)
    faults += [f for f in of_all if f.code in _OF_ALL or not delivered]
    faults += doubts.of_all(examined.samples)
    own = [f for f in examined.faults if f.code not in _OF_ALL | _ODD_OF_ALL]
    examined.faults = graded([*own, *graded(faults, settings.severity)], {})
    return kept


def _samples(base: Base, store: snapshot.Store) -> Iterator[tuple[Sample, str]]:
    """The samples of a snapshot with their parts; an image that the store has lost is put back into it."""
    images = str(base.path / "images")
    for row in base.rows():
        image = f"{images}/{row['file']}"
        suffix, size = PurePosixPath(row["file"]).suffix.lower(), os.stat(image).st_size
        if not store.holds(row["sha256"], suffix, size):
            data = Path(image).read_bytes()
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise BadData(str(base.path), [fault("base_missing", "", f"images/{row['file']} is damaged")])
            store.put(row["sha256"], suffix, data)
        yield (
            Sample(
                file=row["file"],
                name=row.get("name", row["file"]),
                source=row["source"],
                sha256=row["sha256"],
                bytes=size,
                width=row["width"],
                height=row["height"],
                objects=tuple(map(Box.from_json, row["objects"])),
                tags=tuple(row.get("tags", ())),
                groups=tuple(row.get("groups", ())),
                look=bytes.fromhex(row.get("look", "")),
            ),
            row["split"],
        )


def _objects(sample: Sample, classes: checks.Classes) -> tuple[tuple[Box, ...], list[Fault]]:
    """The objects by the pipeline's classes of today; a fault for each whose class is gone."""
    good, faults = [], []
    for box in sample.objects:
        if classes.names is None or box.cls in classes.names:
            good.append(box)
            continue
        try:
            cls = classes.of(box.cls)
        except KeyError:
            advice = classes.advice(box.cls)
            message = f"unknown class {box.cls!r}, taken before"
            faults.append(fault("unknown_class", sample.file, message, value=box.cls, advice=advice, objects=1))
            continue
        if cls is None:
            message = f"{box.cls!r} is left out"
            faults.append(fault("excluded_class", sample.file, message, value=box.cls, objects=1))
        else:
            good.append(replace(box, cls=cls))
    return tuple(good), faults


def _removed(examined: Examination, earlier: list[Sample], faults: list[Fault]) -> set[str]:
    """The `file` of each sample that removed.txt names; in what arrives, too."""
    if REMOVED not in examined.tree.files:
        return set()
    known = names.of_samples(earlier) | names.of_samples(examined.samples)
    present = names.of_images(examined)
    found = set()
    for at, word in names.lines(examined, REMOVED, "removed_unreadable", faults):
        if word in known:
            found.add(known[word])
        elif word not in present:
            message = f"{word[:100]!r} is no image of the data set"
            faults.append(fault("removed_unknown", REMOVED, message, line=at, value=word))
    return found
