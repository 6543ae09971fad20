"""What is different between two data sets, row by row of annotations.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
_END: Row = {}


@dataclass(slots=True)
class Difference:
    """Images by their plain names, and the objects of each class before and now.

    `renamed` maps the old name to the new one of equal bytes; `moved` counts the images of each (old, new) part.
    """

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    picture_changed: list[str] = field(default_factory=list)
    labels_changed: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    unchanged: int = 0
    objects: dict[str, tuple[int, int]] = field(default_factory=dict)
    moved: dict[tuple[str, str], int] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """The same in five numbers; an image under another name is changed."""
        changed = len(self.picture_changed) + len(self.labels_changed) + len(self.renamed)
        return {
            "added": len(self.added),
            "changed": changed,
            "removed": len(self.removed),
            "unchanged": self.unchanged,
        }


def compare(before: Iterable[Row], now: Iterable[Row]) -> Difference:
    """Compare two data sets whose rows are sorted by `file`; only what differs is held in memory."""
    out = Difference()
    objects: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    moved = Counter[tuple[str, str]]()
    gone: dict[str, list[Row]] = {}
    new: list[Row] = []
    for old, young in _pairs(before, now):
        for row, counter in zip((old, young), objects, strict=True):
            counter.update(o["class"] for o in row.get("objects", ()))
        if not young:
            gone.setdefault(old["sha256"], []).append(old)
        elif not old:
            new.append(young)
        else:
            _same_name(out, old, young)
            _part(moved, old, young)
    for row in new:
        if gone.get(row["sha256"]):
            old = gone[row["sha256"]].pop(0)
            out.renamed[old["file"]] = row["file"]
            _part(moved, old, row)
        else:
            out.added.append(row["file"])
    out.removed = sorted(row["file"] for rows in gone.values() for row in rows)
    out.objects = {cls: (objects[0][cls], objects[1][cls]) for cls in sorted(objects[0] | objects[1])}
    out.moved = dict(sorted(moved.items()))
    return out


def _same_name(out: Difference, old: Row, young: Row) -> None:
    if old["sha256"] != young["sha256"]:
        out.picture_changed.append(young["file"])
    elif old["objects"] != young["objects"]:
        out.labels_changed.append(young["file"])
    else:
        out.unchanged += 1


def _part(moved: Counter[tuple[str, str]], old: Row, young: Row) -> None:
    """A folder that was not split yet has no parts."""
    if old["split"] and young["split"] and old["split"] != young["split"]:
        moved[old["split"], young["split"]] += 1


def _pairs(before: Iterable[Row], now: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Rows of one name together; where one is missing, an empty one."""
    left, right = iter(before), iter(now)
    old, young = next(left, _END), next(right, _END)
    while old or young:
        if not young or (old and old["file"] < young["file"]):
            yield old, _END
            old = next(left, _END)
        elif not old or young["file"] < old["file"]:
            yield _END, young
            young = next(right, _END)
        else:
            yield old, young
            old, young = next(left, _END), next(right, _END)
