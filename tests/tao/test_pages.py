"""The pages of the networks are what network.yaml says, and what they say of a parameter happens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from refit import pipeline as pipelines
from refit.cli import network_schema
from refit.specs import parse_yaml
from refit.tao import networks, pages
from refit.toolkits.chain import NO_PROFILE
from refit.toolkits.tao import TaoChain, TaoPipeline

# Another value than any template's or default, for each parameter.
ANOTHER: dict[str, Any] = {
    "seed": 7,
    "dataset.classes": ["ship"],
    "resources.stages.train": {"gpus": 2},
    "network.channels": 1,
    "network.image_extension": "png",
    "network.key_secret": "TAO_KEY",
    "network.pretrained": {"path": "weights", "weights": "backbone"},
    "stages.dataset_convert.shards": 3,
    "stages.augment": True,
    "stages.train.epochs": 31,
    "stages.train.batch_size": 5,
    "stages.train.learning_rate": 0.0123,
    "stages.train.min_learning_rate": 0.0000123,
    "stages.train.warmup": 0.123,
    "stages.train.annealing": 0.456,
    "stages.train.regularizer": "NO_REG",
    "stages.train.weight_decay": 0.00123,
    "stages.train.optimizer": "another",
    "stages.train.freeze_blocks": [0, 1, 2],
    "stages.train.class_weights": {"car": 3.5},
    "stages.train.anchors": [[1.5, 2.5]],
    "stages.train.checkpoint_every": 7,
    "stages.train.evaluate_every": 7,
    "stages.train.workers": 3,
    "stages.train.amp": True,
    "stages.train.qat": True,
    "stages.distill": {"teacher": "/workspace/large.pth", "teacher_backbone": "resnet_101"},
    "stages.evaluate.batch_size": 3,
    "stages.evaluate.iou": 0.61,
    "stages.evaluate.min_width": 11,
    "stages.evaluate.min_height": 12,
    "stages.evaluate.score_threshold": 0.123,
    "stages.prune.threshold": 0.23,
    "stages.prune.equalization": "intersection",
    "stages.prune.granularity": 4,
    "stages.prune.min_filters": 9,
    "stages.prune.normalizer": "L2",
    "stages.export.opset": 13,
    "stages.quantize": True,
    "stages.quantize.backend": "torchao",
    "stages.inference.batch_size": 3,
    "stages.inference.score_threshold": 0.321,
    "stages.build_engine.precision": "fp16",
    "stages.build_engine.calibration_batches": 13,
    "stages.build_engine.calibration_batch_size": 3,
    "stages.build_engine.opt_batch_size": 3,
    "stages.build_engine.max_batch_size": 32,
    "stages.build_engine.workspace_gib": 5,
}
WHOLE_MODEL = "`train.pretrained_model_path`"  # weights of a backbone go elsewhere
AUGMENTATION = "stages.train.augmentation."


def chain(network: str, overrides: Mapping[str, Any]) -> TaoChain:
    """A chain with every stage that the network has, on the newest release."""
    facts = networks.load(network)
    blocks = ", ".join(f"{block}: {{}}" for block in ("prune", "inference") if block in facts.stages)
    release = [r for r, it in networks.releases().releases.items() if facts.family in it.images][-1]
    text = f"""\
toolkit: tao
dataset: {{source: inbox/x, classes: [car, bus]}}
network: {{name: {network}, release: "{release}"}}
stages: {{{blocks}}}
resources: {{default: {{gpus: 1}}}}
"""
    pipeline = pipelines.from_document(parse_yaml(text, "x.yaml"), "x", dict(overrides))
    assert isinstance(pipeline, TaoPipeline)
    return TaoChain(pipeline, NO_PROFILE)


def another(network: str, key: str) -> dict[str, Any]:
    """The parameter at another value, as overrides of a pipeline."""
    if key == "network.backbone":
        first, *others = networks.load(network).backbones.items()
        return {key: next(n for n, facts in others if all(v != first[1][k] for k, v in facts.items() if k != "ngc"))}
    if key in ("network.input_width", "network.input_height"):
        return {key: 1024}
    if key == "stages.train.freeze_bn":
        return {key: network != "faster_rcnn"}
    if key.startswith(AUGMENTATION):
        return {key: 0.625}
    if key == "stages.quantize.backend":
        return {"stages.quantize": {"backend": ANOTHER[key]}}
    for whole in (key, key.rpartition(".")[0]):
        if whole in ANOTHER:
            return {whole: ANOTHER[whole]}
    raise AssertionError(f"{key}: give it another value here")


def state(made: TaoChain) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, set[tuple[str, ...]]]]:
    """(spec, path) -> stage -> value; action -> its command lines."""
    specs: dict[tuple[str, str], dict[str, Any]] = {}
    for stage, _, rendered in made.specs():
        for path, scalar in rendered.tree.leaves():
            specs.setdefault((rendered.name, path), {})[stage] = scalar.value
    argv: dict[str, set[tuple[str, ...]]] = {}
    for s in made.stages():
        argv.setdefault(s.action, set()).add(tuple(s.argv))
    return specs, argv


def below(specs: dict[tuple[str, str], dict[str, Any]], spec: str, path: str) -> dict[str, dict[str, Any]]:
    """What a spec has at a path, by its leaves."""
    return {p: v for (name, p), v in specs.items() if name == spec and re.match(rf"{re.escape(path)}(\W|$)", p)}


@pytest.mark.parametrize("network", networks.known())
def test_a_page_is_what_the_network_says(network: str) -> None:
    text = pages.page(network).read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- made: (.+?) -->", text)) == set(pages.PARTS)
    assert pages.filled(network, text) == text, "run: PYTHONPATH=. python -m refit.tao.pages (tools environment)"


@pytest.mark.parametrize("network", networks.known())
def test_a_parameter_acts_where_its_page_says(network: str) -> None:
    specs, argv = state(chain(network, {}))
    silent = []
    for key, places in pages.parameters(networks.load(network)).items():
        overrides = another(network, key)
        changed_specs, changed_argv = state(chain(network, overrides))
        for place in places:
            if place == WHOLE_MODEL:
                overrides = {key: {**overrides[key], "weights": "model"}}
                changed_specs, changed_argv = state(chain(network, overrides))
            path, flag_of, spec = re.fullmatch(r"`(.+?)`(?: of (\w+))?(?: \((\w+)\))?", place).groups()  # type: ignore[union-attr]
            if flag_of:
                lines = argv[flag_of] ^ changed_argv[flag_of]
                acts = any(path in line for line in lines)
            else:
                acts = below(specs, spec or "train", path) != below(changed_specs, spec or "train", path)
            if not acts:
                silent.append(f"{key}: {place}")
    assert silent == []


def test_the_published_schema_of_a_network_is_the_model() -> None:
    published = networks.FOLDER / "network.schema.json"
    text = published.read_text(encoding="utf-8")
    assert text.strip() == network_schema(), "run: bin/refit schema --network > specs/network.schema.json"
    for name in networks.known():
        first = (networks.folder(name) / networks.FILE).read_text(encoding="utf-8").splitlines()[0]
        named = networks.folder(name) / first.partition("$schema=")[2]
        assert named.resolve() == published
    stages = json.loads(text)["properties"]["stages"]["additionalProperties"]
    assert stages == {"anyOf": [{"$ref": "#/$defs/StageFact"}, {"type": "null"}]}, "null takes out the family's"
