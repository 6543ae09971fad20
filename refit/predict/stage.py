"""The stage command `inference`, through Triton and (from `refit.cpu.inference`) with the model's own file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from refit.command import BadData
from refit.config import Settings
from refit.predict import results, work
from refit.predict.images import Images, open_images
from refit.predict.journal import Journal
from refit.predict.specs import PredictSpec, TritonInferenceSpec
from refit.status import StatusWriter

INCOMING = "incoming"


def run(spec: TritonInferenceSpec, out: Path, status: StatusWriter) -> None:
    """Ask Triton about every image of `spec.images`; the files are those of `refit.predict.results`.

    Raises:
        BadSpec: the model is not served so, or images and results would mix.
        BadData: no image at all, none that can be read, or more that cannot than `max_bad_images` allows.
        StageError: Triton or the store cannot be asked.
    """
    from refit.predict.pictures import decode
    from refit.predict.triton import TritonModel

    images = find(spec, out, status)
    model = TritonModel(spec)
    try:
        status.running(f"Asking version {model.version} of {spec.model} at {spec.url} about {len(images)} images")
        predict(spec, images, model, decode, out, status)
    finally:
        model.close()


def find(spec: PredictSpec, out: Path, status: StatusWriter) -> Images:
    """The images that a spec names. Raises BadSpec, BadData, StageError."""
    settings = Settings.from_env()
    if "://" not in spec.images:
        work.check_apart(settings.data_roots[0] / spec.images, out)
    return open_images(spec.images, spec.connection, settings, out / INCOMING, status)


def predict(
    spec: PredictSpec,
    images: Images,
    model: work.Model,
    decode: Callable[[bytes], work.Pixels],
    out: Path,
    status: StatusWriter,
) -> None:
    """Ask a model about images, and write the results. Raises BadSpec, BadData, StageError."""
    asked = work.question(spec, model)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.rglob(".*.tmp-*"):  # of a process that was killed
        leftover.unlink()
    journal = Journal(out, asked, images.files)
    try:
        begin, reused = time.monotonic(), journal.reused
        work.answer(images, model, decode, asked, journal, out, status)
        seconds = time.monotonic() - begin
        about = {"source": work.shown(spec.images), **{k: v for k, v in asked.items() if k != "draw"}}
        totals = results.write(images, journal, model.info.classes, about, out)
    finally:
        journal.close()
    every = totals.images + totals.bad
    if not totals.images:
        raise BadData(f"{spec.images}: none of {every} images can be read, e.g. {totals.first}")
    if totals.bad > spec.max_bad_images * every:
        raise BadData(
            f"{spec.images}: {totals.bad} of {every} images cannot be read, more than max_bad_images: "
            f"{spec.max_bad_images:g} allows, e.g. {totals.first}; all are in {out / 'errors.json'}, and beside it the "
            "results of the others"
        )
    bad = f"; {totals.bad} could not be read, see errors.json" if totals.bad else ""
    rate = {"images_per_second": round((len(images) - reused) / seconds, 1)} if reused < len(images) else {}
    status.success(
        f"Found {totals.objects.total()} objects in {totals.images} images{bad}.",
        kpi={"images": totals.images, "objects": totals.objects.total(), "bad_images": totals.bad, **rate},
        categorical={"objects": {name: totals.objects[name] for name in model.info.classes}},
    )
