"""Every command line and spec of the example pipelines, and of variants of every network, before NVIDIA's parsers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from refit import pipeline as pipelines
from refit import toolkits
from refit.config import Settings
from refit.pipeline import Pipeline
from refit.specs import parse_yaml
from refit.toolkits.base import Stage, spec_text
from refit.toolkits.chain import NO_PROFILE
from tests.tao.oracle import KINDS, Accepted, Question, Unreachable, Verdict, judge_all, missing

# What the examples leave at its default, of every network.
VARIANT = """\
runtime: kubernetes
dataset: {{source: inbox/cars, classes: [car, person]}}
toolkit: tao
network: {{name: {network}{key}}}
stages: {stages}
resources: {{default: {{gpus: 1}}}}
release: false
"""
TF1 = ("detectnet_v2", "faster_rcnn", "ssd", "yolo_v4")
TRAIN = "epochs: 20, batch_size: 4, learning_rate: 0.001"
VARIANTS = {
    "augmented": (
        (*TF1, "efficientdet_tf2", "rtdetr", "dino", "deformable_detr"),
        "{{augment: {{hflip: true, rotate_degrees: 5}}, train: {{{train}, checkpoint_every: 5}},"
        " inference: {{}}, build_engine: {{precision: fp16}}}}",
    ),
    "unpruned": ((*TF1, "efficientdet_tf2"), "{{prune: off, train: {{{train}, amp: true}}}}"),
    "qat": (TF1, "{{train: {{{train}, qat: true}}}}"),
    "gray": (
        TF1,
        "{{prune: {{normalizer: L2, equalization: intersection}}, build_engine: off, export: {{opset: 13}},"
        " train: {{{train}, regularizer: L2, weight_decay: 0.00001, freeze_blocks: [0, 1], freeze_bn: true}}}}",
    ),
    "quantized": (
        ("rtdetr", "dino", "deformable_detr"),
        "{{train: {{{train}}}, quantize: {{}}, build_engine: {{int8: qdq}}}}",
    ),
    "torchao": (("rtdetr",), "{{train: {{{train}}}, quantize: {{backend: torchao}}, build_engine: {{int8: qdq}}}}"),
    "distilled": (("rtdetr", "dino"), "{{distill: {{{train}, teacher: teacher.pth}}}}"),
}

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def _pipelines() -> Iterator[tuple[str, Pipeline]]:
    for file in sorted((Settings.from_env({}).repository / "specs" / "examples").glob("*.yaml")):
        yield file.stem, pipelines.load(file)
    for variant, (networks, stages) in VARIANTS.items():
        for network in networks:
            key = ", key_secret: TAO_KEY" if network in TF1 else ""
            key += ", channels: 1" if variant == "gray" else ""
            key += ", release: 7.1.0" if variant == "quantized" and network != "rtdetr" else ""
            text = VARIANT.format(network=network, key=key, stages=stages.format(train=TRAIN))
            name = f"{network}-{variant}".replace("_", "-")
            yield name, pipelines.from_document(parse_yaml(text, f"{name}.yaml"), name)


def _questions() -> Iterator[tuple[str, Question]]:
    for name, pipeline in _pipelines():
        stages = toolkits.get(pipeline.toolkit).stages(pipeline, NO_PROFILE)
        outputs = {f"{stage.name}.{o.name}": re.sub(r"\*+", "010", o.path) for stage in stages for o in stage.outputs}
        for stage in stages:
            if stage.environment.startswith("tao_"):
                yield f"{name}-{stage.name}", _question(stage, outputs)
            if not isinstance(stage.resumes, bool):  # how a killed training goes on
                told = replace(stage, argv=tuple(stage.resumes["argv"]), files=stage.resumes["files"])
                checkpoint = re.sub(r"\*+", "3", str(stage.resumes["path"]))
                tokens = {"checkpoint": f"/job/out/{checkpoint}", "next_epoch": "4"}
                yield f"{name}-{stage.name}-resumed", _question(told, outputs, tokens)


def _question(stage: Stage, outputs: dict[str, str], tokens: Mapping[str, str] | None = None) -> Question:
    """The stage as the runner would start it, with folders of no machine for its tokens."""

    def place(token: re.Match[str]) -> str:
        kind, name = token[1], token[2] or ""
        if tokens and kind in tokens:
            return tokens[kind]
        folder = f"/job/{kind}/{name.partition('.')[0]}".rstrip("/")
        return f"{folder}/{outputs[name]}" if name in outputs else folder

    def filled(text: str) -> str:
        return re.sub(r"\{(\w+)(?::([\w.]+))?\}", place, text)

    program = next(i for i, word in enumerate(stage.argv) if word in KINDS)  # behind what notes the GPU
    argv = [filled(word) for word in stage.argv[program:]]
    specs = {filled(f"{{specs}}/{name}"): filled(spec_text(text)) for name, text in stage.files.items()}
    deploy = (stage.image or "").endswith("-deploy")
    return Question(argv[0], argv[1], argv, {name: text for name, text in specs.items() if name in argv}, deploy)


CASES = {} if missing() else dict(_questions())


@functools.cache
def _verdicts() -> dict[str, Verdict]:
    return dict(zip(CASES, judge_all(list(CASES.values())), strict=True))


@pytest.mark.parametrize("name", list(CASES))
def test_nvidias_code_takes_the_stage(name: str) -> None:
    verdict = _verdicts()[name]
    if isinstance(verdict, Unreachable) and " has no stage " in verdict.reason:
        pytest.skip(verdict.reason)
    assert verdict == Accepted()
