"""`subset`: a few images of each split, in the form of a snapshot, for the smoke run.

Every class of a split is in it while there are images for it; the rest is spread over the split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from refit.command import BadData
from refit.data.snapshot import SCHEMA, facts, open_snapshot, read_annotations, write_lines
from refit.files import link_or_copy, write_json
from refit.specs import Spec
from refit.status import StatusWriter

Row = Mapping[str, Any]


class SubsetSpec(Spec):
    snapshot: Path
    images: int = Field(16, ge=1, description="at most so many of each split")
    train: int = Field(16, ge=1, description="at most so many of the training split, which needs whole batches")


def run(spec: SubsetSpec, out: Path, status: StatusWriter) -> None:
    """Write out/images, annotations.jsonl and dataset.json. Raises BadData for what is no snapshot."""
    try:
        whole = open_snapshot(spec.snapshot)
        rows = sorted(read_annotations(spec.snapshot), key=lambda row: str(row["file"]))
    except (OSError, ValueError, KeyError) as exc:
        raise BadData(f"{spec.snapshot}: cannot be read as a snapshot: {exc}") from None
    chosen = []
    for split in whole.splits:
        part = [row for row in rows if row["split"] == split]
        chosen += choose(part, spec.train if split == "train" else spec.images)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for row in chosen:
        if not os.path.exists(out / "images" / row["file"]):
            link_or_copy(spec.snapshot / "images" / row["file"], out / "images" / row["file"])
    write_lines(out / "annotations.jsonl", chosen)
    name = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    about = facts(chosen, whole.classes, ())
    write_json(out / "dataset.json", {"schema": SCHEMA, "fingerprint": name, **about, "provenance": {}})
    status.success(f"{len(chosen)} of {len(rows)} images.")


def choose(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` of them, in their order: one of each class first."""
    taken: dict[int, None] = {}
    seen: set[str] = set()
    for at, row in enumerate(rows):
        fresh = {str(o["class"]) for o in row["objects"]} - seen
        if fresh and len(taken) < count:
            taken[at] = None
            seen |= fresh
    for at in range(0, len(rows), max(1, len(rows) // count)):
        if len(taken) < count:
            taken[at] = None
    return [rows[at] for at in sorted(taken)]
