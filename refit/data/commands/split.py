"""Show how a data set would be split, or write the split as lists; the data set is only read.

What a pipeline has frozen as its evaluation set is not looked at: this is the split of a data set by itself.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refit.data.codes import CODES
from refit.data.commands import BAD, GOOD, listed, refused
from refit.data.commands.progress import Progress
from refit.data.commands.terminal import show
from refit.data.faults import BadData, Fault, counts
from refit.data.settings import FORMATS

if TYPE_CHECKING:
    from refit.data.ingest import Divided

# Beginnings of the codes that a split brings about; of the rest only the number is shown.
_OWN = ("split", "group", "class_not_in_", "not_in_group", "duplicate_across", "too_few", "no_objects", "own_parts")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="SRC", help="the data set's folder")
    parser.add_argument("--val", type=float, default=0.2, help="share of the images to evaluate with (default 0.2)")
    parser.add_argument("--seed", type=int, default=42, help="the same seed gives the same split (default 42)")
    parser.add_argument(
        "--group",
        metavar="BY",
        help="keep groups together: folder, tag, name_prefix=REGEX, tag=REGEX (each with one group in brackets), "
        "file=groups.csv",
    )
    parser.add_argument("--lists", type=Path, metavar="OUT", help="write OUT/train.txt and OUT/val.txt")
    parser.add_argument("--format", choices=FORMATS, help="default: recognised")
    parser.add_argument("--classes", help="names separated by commas; other ones are faults (default: all are taken)")
    parser.add_argument("--image-dir", help="folder of the images below SRC (default: the format's own)")
    parser.add_argument("--label-dir", help="folder of the labels below SRC (default: the format's own)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Split a data set; 0 good, 2 bad data or arguments."""
    from pydantic import ValidationError

    from refit.data import checks
    from refit.data.examine import examine
    from refit.data.ingest import divide
    from refit.data.settings import DatasetSettings, GroupBy, Split

    names = listed(args.classes)
    try:
        by = Split(val=args.val, seed=args.seed, group=_group(args.group))
    except ValidationError as exc:
        show(refused(exc))
        return BAD
    taken = [n for n in ("train.txt", "val.txt") if args.lists and (args.lists / n).exists()]
    if taken:
        show([f"error: {args.lists / taken[0]} is there already; name another folder, or remove it"])
        return BAD
    table = [by.group.file] if isinstance(by.group, GroupBy) and by.group.file else []
    try:
        with Progress(args.json) as progress:
            found = examine(
                args.path,
                format=args.format,
                image_dir=args.image_dir,
                label_dir=args.label_dir,
                classes=checks.Classes(names),
                leave=table,
                progress=progress,
            )
        seen = names or sorted({o.cls for s in found.samples for o in s.objects}) or ["object"]
        divided = divide(found, DatasetSettings(classes=seen, split=by))
    except BadData as exc:
        return _refused(args, exc.faults)
    if any(f.severity == "error" for f in divided.faults):
        return _refused(args, divided.faults)
    if args.lists:
        _write(divided, args.lists)
    about = _about(divided, seen)
    if args.json:
        parts = {s.name: divided.parts[s.file] for s in divided.samples}
        faults = [f.as_json() for f in divided.faults]
        print(json.dumps({"path": str(args.path), "good": True, **about, "images": parts, "faults": faults}, indent=1))
    else:
        _show(args, about, divided.faults)
    return GOOD


def _group(text: str | None) -> Any:
    """The value of split.group that the argument means."""
    name, equals, value = (text or "").partition("=")
    return {name: value} if equals else text


def _about(divided: Divided, classes: Sequence[str]) -> dict[str, Any]:
    images, objects = Counter(divided.parts.values()), Counter[tuple[str, str]]()
    groups: dict[str, set[str]] = {}
    for s in divided.samples:
        part = divided.parts[s.file]
        objects.update((part, o.cls) for o in s.objects)
        groups.setdefault(part, set()).update(s.groups)
    return {
        "splits": {
            part: {
                "images": images[part],
                "objects": {c: objects[part, c] for c in classes},
                **({"groups": sorted(groups[part])} if any(groups.values()) else {}),
            }
            for part in sorted(images)
        },
        "evaluation": divided.evaluation["version"],
    }


def _show(args: argparse.Namespace, about: dict[str, Any], faults: Sequence[Fault]) -> None:
    lines = [str(args.path)]
    total = sum(part["images"] for part in about["splits"].values())
    for name, part in about["splits"].items():
        objects = ", ".join(f"{cls} {n}" for cls, n in part["objects"].items())
        groups = f", groups: {len(part['groups'])}" if "groups" in part else ""
        lines.append(f"{name}: {part['images']} images ({part['images'] / total:.1%}){groups}, objects: {objects}")
    own = [f for f in faults if f.code.startswith(_OWN)]
    lines += [f"{f.severity}: {f}; {f.advice}" for f in own]
    if len(faults) > len(own):
        lines.append(f"{len(faults) - len(own)} more findings: refit dataset check {args.path}")
    if args.lists:
        lines.append(f"written: {args.lists / 'train.txt'}, {args.lists / 'val.txt'}")
    show(lines)


def _refused(args: argparse.Namespace, faults: Sequence[Fault]) -> int:
    errors = [f for f in faults if f.severity == "error"]
    if args.json:
        about = {"path": str(args.path), "good": False, "counts": counts(faults)}
        print(json.dumps({**about, "faults": [f.as_json() for f in faults]}, indent=1))
    else:
        shown = [f"error: {f}; {f.advice or CODES[f.code].advice}" for f in errors[:5]]
        more = [f"... and {len(errors) - 5} more: refit dataset check {args.path}"] if len(errors) > 5 else []
        show([str(args.path), *shown, *more])
    return BAD


def _write(divided: Divided, folder: Path) -> None:
    """A list for each part, names as `dataset.split.lists` takes them: paths below the image folder."""
    from refit.files import write_text

    os.makedirs(folder, exist_ok=True)
    written: list[Path] = []
    try:
        for part in ("train", "val"):
            names = sorted(s.name for s in divided.samples if divided.parts[s.file] == part)
            write_text(folder / f"{part}.txt", "".join(f"{name}\n" for name in names))
            written.append(folder / f"{part}.txt")
    except BaseException:
        for path in written:  # one list without the other would be taken for the whole
            path.unlink()
        raise
