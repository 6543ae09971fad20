"""What `start_from` may say, and what bind makes of it.

| form | the training begins with |
|---|---|
| `champion` | the weights of the version that serves, from before it was pruned; at random where none serves |
| `run:RUN`, `run:RUN/STAGE` | the weights that a training of another run of this pipeline ended with |
| `resume:RUN` | the training of another run, after its last saved epoch, under this run's parameters |
| `PATH`, `s3://...`, `gs://...`, `az://...`, `https://...` | weights in a file; `#sha256=HEX`: its content |

bind replaces it by what it found: `taken:SHA256/NAME` is a file of the workspace, `session:SHA256` a training whose
files lie in the stage's own folder already. So a stage's key has the content, and no path and no run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator

from refit.data import source

FOLDER = "starts"  # in the pipeline's folder of the workspace
CHAMPION = "champion"
TRAININGS = ("train", "retrain", "distill")
_TAKEN, _SESSION = "taken:", "session:"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"(run|resume):([^/\s][^/]*)(?:/([a-z_]+))?")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip", ".gz")
_TENSORFLOW = (".pb", ".ckpt", ".index", ".meta")
_KINDS = {
    ".pth": "weights of PyTorch",
    ".pt": "weights of PyTorch",
    ".onnx": "an exported graph",
    ".hdf5": "a Keras model",
    ".h5": "a Keras model",
    ".tlt": "a model in NVIDIA's encrypted form",
}


@dataclass(frozen=True)
class Start:
    """`start_from`, taken apart. `what` is the run, or the path or URL of a file."""

    kind: Literal["champion", "run", "resume", "file"]
    what: str = ""
    stage: str | None = None
    sha256: str | None = None

    @property
    def ending(self) -> str:
        return ending(self.what)


def parse(text: str) -> Start:
    """Raises ValueError that says what to write instead."""
    if text == CHAMPION:
        return Start("champion")
    if text.startswith((_TAKEN, _SESSION)):
        raise ValueError(f"{text!r} is how bind notes what it found; write champion, run:RUN, resume:RUN or a file")
    if text.startswith(("run:", "resume:")):
        found = _RUN.fullmatch(text)
        if not found or (found[3] and (found[1] == "resume" or found[3] not in TRAININGS)):
            raise ValueError(f"{text!r} names no training; write run:RUN, run:RUN/retrain or resume:RUN")
        return Start("run" if found[1] == "run" else "resume", found[2], found[3])
    place, mark, digest = text.partition("#")
    if mark and not _SHA256.fullmatch(digest.removeprefix("sha256=")):
        raise ValueError(f"{text!r}: behind '#' stands sha256=, and 64 digits of 0-9 and a-f")
    if not mark and "://" in place:
        raise ValueError(
            f"{place!r} may hold other weights tomorrow, and a result would not tell; write {place}#sha256=..., "
            "as sha256sum prints it"
        )
    source.parse(place, single=True)
    return Start("file", place, sha256=digest.removeprefix("sha256=") if mark else None)


def _good(value: str | None) -> str | None:
    if value is not None:
        parse(value)
    return value


def _empty(value: Any) -> Any:
    """A field of a form that was left empty."""
    return None if value == "" else value


StartFrom = Annotated[str | None, BeforeValidator(_empty), AfterValidator(_good)]
DESCRIPTION = (
    "champion, run:RUN (the weights of another run), resume:RUN (goes on with its training), or a file: a path below a "
    "data root, s3://...#sha256=..., https://...#sha256=...; null: where the network begins by itself"
)


def ending(name: str) -> str:
    """Of a file's name, in lower case; both parts of .tar.gz."""
    path = PurePosixPath(unquote(urlsplit(name).path) if "://" in name else name)
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[:1] == [".tar"] else "".join(suffixes[-1:])


def misfit(network: str, text: str | None, endings: Sequence[str], stage: str) -> str:
    """Why a training of a network cannot begin so, "" where it can. `endings`: of the files that it can read."""
    if text is None:
        return ""
    start = parse(text)
    if stage != "train" and start.kind != "resume":
        begins = {"retrain": "with the pruned model", "distill": "beside its teacher"}.get(stage, "by itself")
        return f"{stage} begins {begins}; of another run it can only go on: resume:RUN"
    if start.kind != "file" or start.ending in endings:
        return ""
    can = f"{network} begins with {' or '.join(endings)}" if endings else f"{network} begins with no file of one's own"
    instead = f"{can}, with run:RUN or with champion"
    if start.ending in _ARCHIVES:
        return (
            f"{start.what} is an archive. One of TensorFlow's model zoo (checkpoint, pipeline.config, saved_model) "
            f"holds a graph of its object detection API, whose variables no network here has; {instead}"
        )
    if start.ending in _TENSORFLOW:
        return f"{start.what} is a graph or checkpoint of TensorFlow, whose variables no network here has; {instead}"
    kind = _KINDS.get(start.ending)
    return f"{start.what} is {kind}, which its training cannot read; {instead}" if kind else f"{start.what}: {instead}"


def taken(name: str) -> str:
    """The value that stands for a file of the workspace's weights."""
    return _TAKEN + name


def session(digest: str) -> str:
    """The value that stands for a training that is gone on with."""
    return _SESSION + digest


def weights(value: str | None) -> str | None:
    """The file that a training begins with, as a path with tokens; before bind has found it, it has no name yet."""
    if value is None or value.startswith(_SESSION):
        return None
    if value.startswith(_TAKEN):
        return f"{{workspace}}/{FOLDER}/{value.removeprefix(_TAKEN)}"
    return None if parse(value).kind == "resume" else f"{{workspace}}/{FOLDER}/<{parse(value).kind}>"


def digest(value: str | None) -> str | None:
    """The sha256 of what bind has found, the file's or the training's; None where nothing was."""
    found = _SHA256.search(value or "")
    return found[0] if found else None


def session_of(value: str | None) -> str | None:
    """The hash of the training that is gone on with; None where there is none."""
    return value.removeprefix(_SESSION) if value is not None and value.startswith(_SESSION) else None


def given(stages: Any) -> Iterator[tuple[str, str]]:
    """(block, value) of each training of a pipeline that says where it begins."""
    for block in TRAININGS:
        value = getattr(getattr(stages, block, None), "start_from", None)
        if value is not None:
            yield block, value
