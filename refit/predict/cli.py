"""`refit predict`: what a model finds in a folder or bucket of images, from a shell."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refit import command
from refit.cluster import load
from refit.command import BadSpec, StageError
from refit.config import Settings
from refit.files import write_json
from refit.status import StatusWriter

GOOD, FAILED, BAD = 0, 1, 2
CONNECTION = "REFIT_CONNECTION"


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGES", help="a folder, s3://, gs://, az:// or https://...zip")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for the results; the same goes on")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="NAME", help="the model's name in Triton")
    which.add_argument("--file", type=Path, metavar="FILE", help="an .onnx with model.json beside it, without Triton")
    parser.add_argument("--version", type=int, metavar="N", help="of the model in Triton; default: the one that serves")
    parser.add_argument("--url", help="Triton's HTTP address; default: the cluster profile's")
    parser.add_argument("--cluster", default="local", metavar="NAME", help="the cluster profile; default: local")
    parser.add_argument("--connection", metavar="NAME", help="the login of a bucket (secret AIRFLOW_CONN_NAME)")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[CLASS=]SCORE",
        help="least score, 0 to 1, of all classes or of one; may be repeated; default: the model's own",
    )
    parser.add_argument("--draw", action="store_true", help="also pictures with the boxes drawn")
    parser.add_argument("--max-bad-images", type=float, default=0.0, metavar="SHARE", help="allowed; default 0")
    parser.add_argument("--in-flight", type=int, default=8, metavar="N", help="requests to Triton at once; default 8")
    parser.add_argument("--batch", type=int, metavar="N", help="images in a request; default 4, or the model's fewer")


def run_predict(args: argparse.Namespace, settings: Settings) -> int:
    """0 every image was answered, 2 some could not be read (the others are answered) or the input is wrong, 1 failed.

    Raises StageError, SpecError.
    """
    from pydantic import ValidationError

    from refit.predict.specs import FileInferenceSpec, TritonInferenceSpec

    every, classes = _thresholds(args.threshold)
    local = "://" not in args.images
    if local:  # a path on the command line is allowed by being there
        args.images = os.path.abspath(args.images)
        os.environ["REFIT_DATA_ROOTS"] = ":".join([*map(str, settings.data_roots), args.images])
    about: dict[str, Any] = {
        "images": args.images,
        "connection": args.connection,
        "score_threshold": every,
        "thresholds": classes,
        "draw": args.draw,
        "max_bad_images": args.max_bad_images,
    }
    try:
        if args.file is not None:
            if args.version is not None:
                raise BadSpec("--version goes with --model; a file is what it is")
            return _by_file(FileInferenceSpec(**about, model=os.path.abspath(args.file)).model_dump(), args.out)
        url = args.url or load(args.cluster, settings).triton.url
        more = {"model": args.model, "url": url, "version": args.version}
        spec = TritonInferenceSpec(**about, **more, batch=args.batch, in_flight=args.in_flight)
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"])).replace("_", "-")
        raise BadSpec(f"--{key}: {fault['msg']} (it is {fault['input']!r})") from None
    if args.connection is not None:
        os.environ[CONNECTION] = _login(args.connection, settings)
    return _by_triton(spec, args.out)


def _by_triton(spec: Any, out: Path) -> int:
    from refit.predict.stage import run

    signal.signal(signal.SIGTERM, _cancel)
    try:
        run(spec, out, _Telling(out))
    except command.BadData as exc:
        print(f"error: {exc}", file=sys.stderr)
        return BAD
    except command.Cancelled:
        print("error: stopped by SIGTERM; the same command goes on", file=sys.stderr)
        return command.CANCELLED
    return _told(out)


def _by_file(spec: Mapping[str, Any], out: Path) -> int:
    from refit.runtime.local import EnvironmentMissing, interpreter

    try:
        python = interpreter("cpu")
    except EnvironmentMissing as exc:
        raise BadSpec(str(exc)) from None
    with tempfile.TemporaryDirectory(prefix="refit-predict-") as folder:
        file = Path(folder) / "inference.yaml"
        write_json(file, spec)
        code = subprocess.call([python, "-m", "refit.cpu", "inference", "-e", file, "-r", out])
    if code != command.OK:
        return BAD if code in (command.BAD_SPEC, command.BAD_DATA) else FAILED
    return _told(out)


def _told(out: Path) -> int:
    told = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    version = f" version {told['version']}" if told["version"] else ""
    objects = ", ".join(f"{name} {n}" for name, n in told["objects"].items())
    print(f"{out}: {told['images']} images by {told['model']}{version}; objects: {objects}")
    for code, n in told["reasons"].items():
        print(f"left out: {n} x {code} (errors.json)")
    return GOOD


class _Telling(StatusWriter):
    """Progress also on stderr."""

    def running(self, message: str = "", **fields: object) -> None:
        super().running(message, **fields)
        print(message, file=sys.stderr, flush=True)


def _thresholds(words: list[str]) -> tuple[float | None, dict[str, float]]:
    every, classes = None, {}
    for word in words:
        name, equals, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise BadSpec(f"--threshold {word}: write SCORE or CLASS=SCORE, e.g. 0.6 or plate=0.6") from None
        if equals:
            classes[name] = value
        else:
            every = value
    return every, classes


def _login(name: str, settings: Settings) -> str:
    """The login of a bucket, from where the local runtime keeps secrets. Raises StageError."""
    from refit.data.source import secret_name
    from refit.runtime.local import SecretError, secret

    try:
        value = secret(secret_name(name), settings.home)
    except SecretError as exc:
        raise StageError(str(exc)) from None
    if value is None:
        raise BadSpec(
            f"--connection {name}: the secret {secret_name(name)} is not set: put an Airflow connection (URI or JSON) "
            f"into {settings.home / 'secrets' / secret_name(name)}, readable by its owner only"
        )
    return value


def _cancel(*_: object) -> None:
    raise command.Cancelled
