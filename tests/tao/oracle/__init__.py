"""NVIDIA's own argument parsers and spec loaders as judges of command lines and specs.

They come from checkouts of NVIDIA's sources in the folder REFIT_NVIDIA_SOURCES: tao_tensorflow1_backend,
tao_tensorflow2_backend, tao_pytorch_backend, tao_deploy, tao_dataset_suite; and tao_core, where the nvidia-tao-core of
their release is unpacked (`pip install --no-deps --target`): it holds the dataclasses of the releases before 7.0. They
run in an environment of their own, `bin/setup oracle`. Nothing of NVIDIA's is in this repository.

`python -m tests.tao.oracle` prints what they say to NVIDIA's own samples.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from refit.config import Settings

TF1 = ("dataset_convert", "train", "evaluate", "prune", "export", "inference")
DETR = ("train", "evaluate", "export", "quantize", "inference", "distill")
ENGINE = ("gen_trt_engine", "evaluate", "inference")
KINDS = {
    **dict.fromkeys(("detectnet_v2", "faster_rcnn", "ssd", "yolo_v4"), "tf1"),
    "efficientdet_tf2": "tf2",
    **dict.fromkeys(("rtdetr", "dino", "deformable_detr"), "pyt"),
    **dict.fromkeys(("annotations", "augmentation", "analytics"), "data_services"),
}
_STAGES = {"tf1": TF1, "tf2": TF1, "pyt": DETR}
STAGES = {network: _STAGES[kind] for network, kind in KINDS.items() if kind in _STAGES}
STAGES |= {"annotations": ("convert",), "augmentation": ("generate",), "analytics": ("validate", "analyze")}


@dataclass(frozen=True)
class Accepted:
    """NVIDIA's code took the command line and the specs, and went for data or a model."""


@dataclass(frozen=True)
class Refused:
    reason: str


@dataclass(frozen=True)
class Unreachable:
    """No judgement: the sources lack it, or it does not load without closed parts."""

    reason: str


Verdict = Accepted | Refused | Unreachable


def missing() -> str | None:
    """Why nothing can be judged here; None where it can."""
    folder = os.environ.get("REFIT_NVIDIA_SOURCES")
    if not folder:
        return "REFIT_NVIDIA_SOURCES is not set: a folder with checkouts of NVIDIA's sources (see tests/tao/oracle)"
    if not Path(folder).is_dir():
        return f"REFIT_NVIDIA_SOURCES={folder} is no folder"
    if not _python().exists():
        return f"there is no {_python()}: run `bin/setup oracle`"
    return None


def _python() -> Path:
    return Settings.from_env().envs / "oracle" / "bin" / "python"


class Question(NamedTuple):
    """The arguments of `judge`."""

    network: str
    stage: str
    argv: Sequence[str]
    specs: Mapping[str, str]
    deploy: bool = False


def sources() -> Path:
    """The folder of NVIDIA's checkouts."""
    return Path(os.environ["REFIT_NVIDIA_SOURCES"])


def judge(network: str, stage: str, argv: Sequence[str], specs: Mapping[str, str], deploy: bool = False) -> Verdict:
    """What NVIDIA's code says to this command line with these spec files.

    Args:
        network: such as detectnet_v2; a program of data services too.
        stage: such as train.
        argv: the whole line, the program first.
        specs: the text of each spec file, by its name as it stands in `argv`.
        deploy: the stage is run by the deploy image (gen_trt_engine always is).
    """
    return judge_all([Question(network, stage, argv, specs, deploy)])[0]


def judge_all(questions: Sequence[Question]) -> list[Verdict]:
    """`judge` for each; far quicker than one by one."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(_python()), "-I", str(Path(__file__).with_name("inside.py"))],
            input=json.dumps([_asked(question) for question in questions]),
            capture_output=True,
            text=True,
            cwd=folder,
            check=True,
            env={"PATH": os.environ["PATH"], "HOME": folder},
        )
    return [_verdict(question, *said) for question, said in zip(questions, json.loads(done.stdout), strict=True)]


def _asked(question: Question) -> dict[str, object]:
    deploy = question.deploy or question.stage == "gen_trt_engine"
    asked = {**question._asdict(), "sources": str(sources()), "kind": "deploy" if deploy else KINDS[question.network]}
    return asked | {"argv": list(question.argv), "specs": dict(question.specs)}


def _verdict(question: Question, kind: str, reason: str) -> Verdict:
    if question.argv[:1] != [question.network]:
        return Refused(f"the program is {question.argv[:1]}, not {question.network}")
    return {"accepted": lambda _: Accepted(), "refused": Refused, "unreachable": Unreachable}[kind](reason)
