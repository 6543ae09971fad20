"""`python -m refit.data prepare`: a snapshot as TAO's input, in folders that a pod can mount.

    kitti   <split>/images/*.jpg, <split>/labels/*.txt
    coco    <split>/images/*, annotations/<split>.json, classmap.txt, classmap_deploy.txt, label_map.yaml
    both    prepare.json, copies.txt

Images are hard links to the snapshot's, or files of their own (a pod mounts snapshots apart, and no link leads from one
mount to another): never links that lead out of the mounted volume.

Category ids and class maps, as NVIDIA's sources read them (nvidia_tao_pytorch 6.25.11, nvidia_tao_tf2 6.0.0):
- rtdetr: id = index of the logit, 0 to num_classes - 1 (rtdetr/model/criterion.py makes id num_classes the background,
  so with ids from 1 and num_classes = n the last class is never learnt, and no check finds it: `max_id > num_classes`).
  Inference in PyTorch reads the class map from 0; that of nvidia_tao_deploy/cv/rtdetr takes its first line for -1,
  hence classmap_deploy.txt, which begins with a line for the background.
- dino, deformable_detr: ids from 1, num_classes = n + 1, for inference reads the class map from 1 (`start_from_one`).
- efficientdet_tf2: ids from 1, num_classes = n + 1 (utils/config_utils.py); evaluate reads label_map.yaml (id: name).
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from refit.command import BadData, BadSpec
from refit.data.formats import coco_write, kitti
from refit.data.formats.base import Record
from refit.data.model import Box
from refit.data.prepare import labels, names
from refit.data.prepare.images import SUFFIX, Found, Written, look, target_name, write
from refit.data.prepare.spec import COPIES, OWN_NAMES, PrepareSpec
from refit.data.snapshot import Snapshot, no_space, open_snapshot, read_annotations
from refit.files import sync_folder, write_json, write_text
from refit.status import StatusWriter

SCHEMA = 1
_TELL_SECONDS = 10.0
_BACKGROUND = "background"
_T = TypeVar("_T")
_R = TypeVar("_R")

NOTES = {
    "difficult": "TAO's forms have no such flag: these objects are trained on and evaluated like the others",
    "occluded kitti": "ssd and yolo_v4 do not train on objects with an occlusion other than 0, unless the spec says "
    "dataset_config.include_difficult_in_training: true",
    "occluded coco": "COCO has no such flag",
    "truncated": "COCO has no such flag",
    "thin kitti": "TAO cuts coordinates to whole numbers and leaves out what has no width or height then",
    "thin coco": "efficientdet_tf2 and the evaluation of engines leave out boxes below one pixel",
}


@dataclass(frozen=True)
class Part:
    """A split as it was written."""

    name: str
    found: Sequence[Found]
    files: Sequence[Written]
    images: Sequence[Record]


def run(spec: PrepareSpec, out: Path, status: StatusWriter) -> None:
    """Write `out`; raises BadSpec and BadData for what a person must mend."""
    snapshot, rows = _read(spec.snapshot)
    try:
        called = names.written(snapshot.classes, spec.form, spec.names)
    except ValueError as exc:
        raise BadSpec(str(exc)) from None
    splits = sorted({str(r["split"]) for r in rows}, key=lambda s: (s != "train", s != "val", s))
    if taken := OWN_NAMES & set(splits):
        raise BadSpec(
            f"dataset.split.lists: a split cannot be called {', '.join(sorted(taken))} here; name it otherwise"
        )
    folder = spec.snapshot / "images"
    found = list(_parallel(lambda r: look(folder, r), rows, status, "images looked at"))
    _check_kinds(found, spec)
    with no_space(out):
        _clear(out, splits)
        parts = [_write_split(s, [f for f in found if f.row["split"] == s], spec, called, out, status) for s in splits]
        _class_files(called, spec, out)
        report = _report(snapshot, spec, called, parts)
        _tell_copies(found, out)
        write_json(out / "prepare.json", report)
        short = ("form", "extension", "num_classes", "not_held")
        write_json(
            out / "summary.json",
            {
                **{k: report[k] for k in short},
                "images": {name: split["images"] for name, split in report["splits"].items()},
            },
        )
    objects = sum(len(i.objects) for p in parts for i in p.images)
    status.success(f"{len(rows)} images with {objects} objects as {spec.form}", kpi={"images": len(rows)})


def _read(path: Path) -> tuple[Snapshot, list[dict[str, Any]]]:
    try:
        return open_snapshot(path), sorted(read_annotations(path), key=lambda r: str(r["file"]))
    except (OSError, ValueError, KeyError) as exc:
        raise BadData(f"{path}: not a whole snapshot ({exc}); run bind again") from None


def _check_kinds(found: Sequence[Found], spec: PrepareSpec) -> None:
    """What TAO's loaders can open; KITTI's kitti_config has one image_extension for all."""
    first = {f.kind: f.name for f in reversed(found)}
    kinds = Counter(f.kind for f in found)
    told = ", ".join(f"{n} {kind} (first: {first[kind]})" for kind, n in kinds.most_common())
    if not spec.convert:
        if kinds.keys() - SUFFIX.keys():
            raise BadData(f"{told}: TAO reads jpeg and png; say convert: png, which loses nothing, or convert: jpg")
        if spec.form == "kitti" and len(kinds) > 1:
            raise BadData(
                f"{told}: TAO's kitti_config has one image_extension, and leaves the other images out without a word; "
                "say convert: png, which loses nothing, or convert: jpg"
            )
    taken: dict[tuple[str, str], str] = {}
    for f in found:
        name = f.path.stem if spec.form == "kitti" else target_name(f, spec.convert)
        other = taken.setdefault((str(f.row["split"]), name), f.name)
        if other != f.name:
            raise BadData(f"{other} and {f.name} would both be {name} in TAO's folders; rename one of them")


def _clear(out: Path, splits: Iterable[str]) -> None:
    """Take away what an attempt that was ended has left."""
    for name in (*splits, *OWN_NAMES):
        if (out / name).exists():
            shutil.rmtree(out / name)


def _write_split(
    name: str,
    found: Sequence[Found],
    spec: PrepareSpec,
    called: Mapping[str, str],
    out: Path,
    status: StatusWriter,
) -> Part:
    folder = out / name / "images"
    folder.mkdir(parents=True)
    made = list(_parallel(lambda f: write(f, folder, spec), found, status, f"images of {name} written"))
    images = [
        Record(w.file, w.width, w.height, w.sha256, name, [Box.from_json(o) for o in w.objects(f.row["objects"])])
        for f, w in zip(found, made, strict=True)
    ]
    if spec.form == "kitti":
        (out / name / "labels").mkdir()
        for image in images:
            path = out / name / "labels" / f"{Path(image.name).stem}.txt"
            path.write_text(kitti.text(image.objects, called), encoding="ascii")
        sync_folder(out / name / "labels")
    else:
        (out / "annotations").mkdir(exist_ok=True)
        coco_write.write_file(out / "annotations" / f"{name}.json", images, called, spec.first_id)
        sync_folder(out / "annotations")
    sync_folder(folder)
    return Part(name, found, made, images)


def _tell_copies(found: Iterable[Found], out: Path) -> None:
    """`copies.txt`: the images of train that augment made, which calibrate leaves out."""
    stems = sorted(f.path.stem for f in found if "augmented" in f.row)
    write_text(out / COPIES, "".join(f"{stem}\n" for stem in stems))


def _class_files(called: Mapping[str, str], spec: PrepareSpec, out: Path) -> None:
    if spec.form == "kitti":
        return
    ids = coco_write.category_ids(called, spec.first_id)
    write_text(out / "classmap.txt", "".join(f"{name}\n" for name in ids))
    lines = [_BACKGROUND, *ids] if spec.first_id == 0 else [*ids]
    write_text(out / "classmap_deploy.txt", "".join(f"{name}\n" for name in lines))
    write_text(
        out / "label_map.yaml", yaml.safe_dump({i: n for n, i in ids.items()}, allow_unicode=True, sort_keys=True)
    )


def _report(
    snapshot: Snapshot,
    spec: PrepareSpec,
    called: Mapping[str, str],
    parts: Sequence[Part],
) -> dict[str, Any]:
    """prepare.json: what the specs and the preflight must agree with, and all that was changed or cannot be held."""
    found = [f for p in parts for f in p.found]
    made = [w for p in parts for w in p.files]
    endings = Counter(Path(w.file).suffix for w in made)
    lost = labels.not_held((i for p in parts for i in p.images), spec.form)
    notes = {k: NOTES.get(k) or NOTES[f"{k} {spec.form}"] for k in lost}
    return {
        "schema": SCHEMA,
        "form": spec.form,
        "fingerprint": snapshot.fingerprint,
        "names": dict(called),
        "category_ids": coco_write.category_ids(called, spec.first_id) if spec.form == "coco" else None,
        "num_classes": spec.first_id + len(called) if spec.form == "coco" else len(called),
        "extension": next(iter(endings)) if len(endings) == 1 else None,
        "splits": {p.name: _split(p, called) for p in parts},
        "images": {
            "width": [min(w.width for w in made), max(w.width for w in made)],
            "height": [min(w.height for w in made), max(w.height for w in made)],
            "channels": _counts(w.channels for w in made),
            "bits": _counts(w.bits for w in made),
            "extensions": _counts(Path(w.file).suffix for w in made),
        },
        "files": {
            **_counts(w.how for w in made),
            "orientation_removed": sum(f.turned for f in found),
            "renamed": sum(w.file != f.name for f, w in zip(found, made, strict=True)),
        },
        "resize": spec.resize and spec.resize.model_dump(),
        "issues": dict(snapshot.issues),
        "not_held": dict(lost),
        "notes": notes,
    }


def _split(part: Part, called: Mapping[str, str]) -> dict[str, Any]:
    objects = Counter(o.cls for i in part.images for o in i.objects)
    return {
        "images": len(part.images),
        "without_objects": sum(not i.objects for i in part.images),
        "objects": {c: objects[c] for c in called},
    }


def _counts(values: Iterable[object]) -> dict[str, int]:
    return {str(k): n for k, n in sorted(Counter(values).items(), key=lambda kv: str(kv[0]))}


def _parallel(work: Callable[[_T], _R], items: Sequence[_T], status: StatusWriter, what: str) -> Iterator[_R]:
    """The results in order; a line of progress now and then, so that a large data set does not look like a stall."""
    told = time.monotonic()
    with ThreadPoolExecutor() as pool:
        for done, result in enumerate(pool.map(work, items), 1):
            yield result
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                status.running(f"{done} of {len(items)} {what}")
