"""Draw what a pipeline's augmentation makes of its images: a row for each, the image and its copies with their boxes.

The images are of the training part and spread over the classes. Nothing is trained and nothing kept but the picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from refit.data.commands import BAD, FAILED, GOOD
from refit.data.commands.progress import Progress

_IMAGES = 6  # rows of the sheet


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the pipeline file")
    parser.add_argument("--data", type=Path, metavar="PATH", help="a folder in place of the file's dataset.source")
    parser.add_argument("--json", action="store_true", help="what is on the sheet as one JSON object on stdout")
    parser.add_argument("-o", dest="out", type=Path, metavar="OUT.jpg", default=Path("preview.jpg"), help="the sheet")


def run(args: argparse.Namespace) -> int:
    """Write the sheet; 0 written, 2 a pipeline or data that cannot be used, 1 failed."""
    from refit.command import StageError
    from refit.config import ConfigError
    from refit.runtime.local import EnvironmentMissing
    from refit.specs import SpecError

    try:
        about = _sheet(args.file, args.data, args.out, quiet=args.json)
    except (SpecError, ConfigError) as exc:
        for line in str(exc).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return BAD
    except (StageError, EnvironmentMissing) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return BAD if isinstance(exc, StageError) and exc.exit_code != 1 else FAILED
    names = ", ".join(f"{name} {p:g}" for name, p in about["transforms"])
    told = f"{args.out}: {about['images']} training images, copies of each: {about['copies']} ({names})"
    print(json.dumps({"out": str(args.out), **about}, indent=1) if args.json else told)
    return GOOD


def _sheet(file: Path, data: Path | None, out: Path, *, quiet: bool) -> dict[str, Any]:
    """Write the sheet; gives what is on it."""
    from refit import cluster, files, pipeline
    from refit.config import Settings
    from refit.data import ingest
    from refit.data.prepare.calibration import choose
    from refit.runtime import augmentation
    from refit.specs import Problem, SpecError, read_document

    settings = Settings.from_env()
    doc = read_document(file)
    made = pipeline.from_document(doc, pipeline.peek_name(file), attached=pipeline.attachments(doc, file.parent))
    if made.augmentation is None:
        advice = "augments no images with albumentations; a line that does: stages: {augment: {copies: 1}}"
        raise SpecError([Problem(str(file), 0, "stages", advice)])
    profile = cluster.of_pipeline(made, settings)
    source = data or settings.data_path(made.dataset.source)
    with Progress(quiet) as progress, tempfile.TemporaryDirectory() as folder:
        taken = ingest.excerpt(
            source,
            made.dataset.settings(),
            Path(folder),
            lambda train: choose(train, min(_IMAGES, len(train)), made.seed),
            progress,
        )
        augmentation.try_out(made, profile, doc, taken.path, Path(folder) / "out")
        files.write_bytes(out, (Path(folder) / "out" / "preview.jpg").read_bytes())
    params = made.augmentation[1]
    transforms = [[t.name, t.p] for t in params.chain]
    return {"images": taken.splits["train"], "copies": params.copies, "transforms": transforms}
