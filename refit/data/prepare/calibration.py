"""Which images calibrate INT8: of the train split only, an equal number of each class as far as there are.

Copies that augment made are left out: production sees no such pictures.

`python -m refit.data calibrate`, a stage of its own: another number of images must not prepare the data set anew, and
train again after it. Writes `images/*` (hard links or copies), `calibration.json`, and, beside a COCO data set,
`annotations.json`: `quantize` of the PyTorch networks reads its calibration images through one.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from refit import files, picture
from refit.command import BadData
from refit.data.prepare.spec import COPIES, CalibrateSpec
from refit.data.snapshot import no_space
from refit.postprocess.blank import shows_nothing, told
from refit.status import StatusWriter

SCHEMA = 1
TRAIN = "train"


def run(spec: CalibrateSpec, out: Path, status: StatusWriter) -> None:
    """Choose and write; raises BadData where prepare's result is not whole or has too few images."""
    try:
        report = json.loads((spec.prepared / "prepare.json").read_text(encoding="utf-8"))
        coco = _coco(spec.prepared) if report["form"] == "coco" else None
        copies = set((spec.prepared / COPIES).read_text(encoding="utf-8").splitlines())
        classes = _in_coco(coco) if coco else _in_kitti(spec.prepared)
        classes = {name: found for name, found in classes.items() if Path(name).stem not in copies}
    except (OSError, ValueError, KeyError) as exc:
        raise BadData(f"{spec.prepared}: not what prepare wrote ({exc}); run prepare again") from None
    _enough(spec, len(classes))
    chosen = choose(classes, spec.images, spec.seed)
    folder = out / "images"
    with no_space(out):
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was ended
        folder.mkdir(parents=True)
        for name in chosen:
            files.link_or_copy(spec.prepared / TRAIN / "images" / name, folder / name)
        files.sync_folder(folder)
        if coco:
            files.write_text(out / "annotations.json", json.dumps(_part(coco, set(chosen)), ensure_ascii=False) + "\n")
        _look(folder, chosen, status)
        hashes = [(name, files.sha256(folder / name)) for name in chosen]
        row = {
            "schema": SCHEMA,
            "split": TRAIN,
            "images": len(chosen),
            "batch_size": spec.batch_size,
            "batches": len(chosen) // spec.batch_size,
            "seed": spec.seed,
            "images_with": {c: sum(c in classes[n] for n in chosen) for c in report["names"].values()},
            "digest": digest(hashes),
            "files": [{"file": name, "sha256": hash_} for name, hash_ in hashes],
        }
        files.write_json(out / "calibration.json", row)
    status.success(f"{len(chosen)} calibration images", kpi={"images": len(chosen)})


def _look(folder: Path, chosen: Sequence[str], status: StatusWriter) -> None:
    """Tell of pictures of one colour; most of them so, they would give ranges of nothing, and nobody could see why."""
    try:
        blank = [name for name in chosen if shows_nothing(picture.read(folder / name)[::4, ::4])]
    except picture.PictureError as exc:
        raise BadData(str(exc)) from None
    sentence, most = told(blank, len(chosen))
    if most:
        raise BadData(sentence)
    if sentence:
        status.running(f"{sentence}.")


def _enough(wanted: CalibrateSpec, there: int) -> None:
    if wanted.images > there:
        most = there // wanted.batch_size * wanted.batch_size
        do = f"use {most} images" if most else "use a smaller batch"
        raise BadData(
            f"calibration needs {wanted.images} images ({wanted.images // wanted.batch_size} batches of "
            f"{wanted.batch_size}), and the train split has {there}; {do}, or add images"
        )


def _in_kitti(prepared: Path) -> dict[str, list[str]]:
    """Image -> the classes of its objects."""
    found = {}
    for image in sorted((prepared / TRAIN / "images").iterdir()):
        lines = (prepared / TRAIN / "labels" / f"{image.stem}.txt").read_text(encoding="ascii").splitlines()
        found[image.name] = [line.partition(" ")[0] for line in lines]
    return found


def _coco(prepared: Path) -> dict[str, Any]:
    return dict(json.loads((prepared / "annotations" / f"{TRAIN}.json").read_text(encoding="utf-8")))


def _in_coco(coco: Mapping[str, Any]) -> dict[str, list[str]]:
    names = {c["id"]: c["name"] for c in coco["categories"]}
    found: dict[str, list[str]] = {i["file_name"]: [] for i in coco["images"]}
    files_ = {i["id"]: i["file_name"] for i in coco["images"]}
    for annotation in coco["annotations"]:
        found[files_[annotation["image_id"]]].append(names[annotation["category_id"]])
    return found


def _part(coco: Mapping[str, Any], chosen: set[str]) -> dict[str, Any]:
    images = [i for i in coco["images"] if i["file_name"] in chosen]
    ids = {i["id"] for i in images}
    return {**coco, "images": images, "annotations": [a for a in coco["annotations"] if a["image_id"] in ids]}


def choose(images: Mapping[str, Sequence[str]], count: int, seed: int) -> list[str]:
    """`count` names of `images` (name -> classes of its objects), sorted; the same ones on every machine.

    Each turn the class that has the fewest images so far, of those the rarest, gets one more; images without objects
    come last. Raises ValueError where there are too few.
    """
    if count > len(images):
        raise ValueError(f"{count} of {len(images)} images")
    order = sorted(images, key=lambda name: sha256(f"{seed}:{name}".encode()).digest())
    waiting: dict[str, deque[str]] = {}
    for name in order:
        for cls in set(images[name]):
            waiting.setdefault(cls, deque()).append(name)
    total = {cls: len(queue) for cls, queue in waiting.items()}
    taken: dict[str, None] = {}
    have: Counter[str] = Counter()
    while len(taken) < count and waiting:
        cls = min(waiting, key=lambda c: (have[c], total[c], c))
        queue = waiting[cls]
        while queue and queue[0] in taken:
            queue.popleft()
        if not queue:
            del waiting[cls]
            continue
        taken[queue[0]] = None
        have.update(set(images[queue.popleft()]))
    rest = (name for name in order if name not in taken)
    return sorted([*taken, *(name for name, _ in zip(rest, range(count - len(taken)), strict=False))])


def digest(rows: Sequence[tuple[str, str]]) -> str:
    """One sha256 over (name, sha256) rows, as of a folder output (docs/contracts.md, "result.json")."""
    lines = sorted((name.encode(), f"{hash_}  {name}\n".encode()) for name, hash_ in rows)
    return sha256(b"".join(line for _, line in lines)).hexdigest()
