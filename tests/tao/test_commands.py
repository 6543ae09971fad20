"""Every command line and spec that Refit makes, before NVIDIA's own parsers and spec loaders.

`python -m tests.tao.test_commands` prints the table: network, stage, variant, what they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from refit import pipeline as pipelines
from refit.cluster import KubernetesProfile, load
from refit.config import Settings
from refit.specs import parse_yaml
from refit.tao import networks
from refit.toolkits.base import Stage, spec_text
from refit.toolkits.tao import TaoChain
from tests.tao.oracle import Accepted, Unreachable, judge, missing

DATASET = {"splits": {"train": 1000, "val": 100}}
TAO_ACTIONS = {"retrain": "train", "build_engine": "gen_trt_engine", "evaluate_engine": "evaluate"}
PRUNED = "prune: {threshold: 0.2, equalization: intersection, granularity: 4, min_filters: 8, normalizer: L2}"
ALL = {
    "plain": "",
    "fp16": "  build_engine: {precision: fp16, workspace_gib: 4, max_batch_size: 16}\n",
    "onnx": "  build_engine: false\n",
    "trained": "  train: {epochs: 40, batch_size: 4, learning_rate: 0.001, checkpoint_every: 5}\n"
    "  evaluate: {batch_size: 2}\n",
}
VARIANTS = {
    "tf1": {
        **ALL,
        "pruned": f"  {PRUNED}\n",
        "qat": f"  {PRUNED}\n  train: {{qat: true}}\n",
        "many": "  train: {amp: true, regularizer: L2, weight_decay: 0.00001, freeze_blocks: [0, 1], freeze_bn: true}\n"
        "  export: {opset: 13}\n"
        "  augment: {rotate_degrees: 10, hflip: true, hue_degrees: 5, blur_size: 5, blur_std: 1.5}\n",
    },
    "tf2": {
        **ALL,
        "pruned": f"  {PRUNED}\n",
        "many": "  train: {amp: true, freeze_bn: true, freeze_blocks: [0], evaluate_every: 2}\n",
    },
    "pyt": {
        **ALL,
        "many": "  train: {amp: true, workers: 2, optimizer: SGD, weight_decay: 0.001, evaluate_every: 2}\n"
        "  export: {opset: 16}\n  augment: {vflip: true}\n",
    },
}
EXTRA = {
    "rtdetr": {
        "quantized": "  quantize: {backend: modelopt.onnx}\n",
        "torchao": "  quantize: {backend: torchao}\n",
        "distilled": "  distill: {epochs: 5, teacher: /workspace/teacher.pth, teacher_backbone: resnet_101}\n",
    }
}


class Case(NamedTuple):
    network: str
    variant: str
    stage: str


def chain(network: str, variant: str) -> Iterator[Stage]:
    """The stages of TAO's of a pipeline of that network."""
    facts = networks.load(network)
    stages = {**VARIANTS[facts.family], **EXTRA.get(network, {})}[variant] + "  inference: true\n"
    key = "key_secret: TAO_KEY" if facts.encrypted and variant == "many" else "pretrained: {path: /inbox/weights}"
    gray = ", channels: 1" if variant == "trained" and 1 in facts.input.channels else ""
    text = (
        "dataset: {source: inbox/x, format: kitti, classes: [car, person]}\ntoolkit: tao\nruntime: kubernetes\n"
        f"network: {{name: {network}, {key}{gray}}}\nresources: {{default: {{gpus: 2}}}}\nstages:\n{stages}"
    )
    doc = parse_yaml(text, f"{network}.yaml")
    profile = load("kubernetes", Settings.from_env({}))
    assert isinstance(profile, KubernetesProfile)
    made = TaoChain(pipelines.from_document(doc, network), profile, DATASET)
    yield from (s for s in made.stages() if s.environment.startswith("tao_"))


def cases() -> Iterator[Case]:
    for network in networks.known():
        for variant in {**VARIANTS[networks.load(network).family], **EXTRA.get(network, {})}:
            for stage in chain(network, variant):
                yield Case(network, variant, stage.name)


def said(case: Case) -> object:
    """NVIDIA's verdict."""
    stage = next(s for s in chain(case.network, case.variant) if s.name == case.stage)
    action = TAO_ACTIONS.get(stage.action, stage.action)
    network, action = ("augmentation", "generate") if action == "augment" else (case.network, action)
    specs = {f"/specs/{name}": _placed(spec_text(spec)) for name, spec in stage.files.items()}
    line = stage.argv[stage.argv.index(network) :]  # without what notes the GPU
    argv = [_placed(word) for word in line]
    return judge(network, action, argv, specs, deploy=stage.environment == "tao_deploy")


def _placed(text: str) -> str:
    """The text with the runner's tokens replaced."""
    text = text.replace("{specs}", "/specs").replace("{out}", "/workspace/run/out")
    text = re.sub(r"\{input:(\w+)\.weights\}", r"/workspace/run/\1/weights.hdf5", text)
    endings = {"export": "onnx", "quantize": "onnx", "build_engine": "plan"}

    def model(match: re.Match[str]) -> str:
        return f"/workspace/run/{match[1]}/model.{endings.get(match[1], 'pth')}"

    text = re.sub(r"\{input:(\w+)\.model\}", model, text)
    return re.sub(r"\{input:(\w+)\}", r"/workspace/run/\1", text).replace("{secret:TAO_KEY}", "key")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("case", [] if missing() else list(cases()), ids="-".join)
def test_nvidias_parsers_take_what_refit_makes(case: Case) -> None:
    verdict = said(case)
    if isinstance(verdict, Unreachable):
        pytest.skip(f"unreachable: {verdict.reason}")
    assert verdict == Accepted()


def test_every_network_has_variants_of_every_stage() -> None:
    """The table is not empty where the oracle is absent."""
    seen = {(c.network, c.stage) for c in cases()}
    for network in networks.known():
        assert {"train", "export", "build_engine"} <= {stage for n, stage in seen if n == network}


if __name__ == "__main__":
    from collections import Counter
    from concurrent.futures import ThreadPoolExecutor

    count: Counter[str] = Counter()
    with ThreadPoolExecutor(2) as pool:
        todo = list(cases())
        for case, verdict in zip(todo, pool.map(said, todo), strict=True):
            count[type(verdict).__name__] += 1
            if verdict != Accepted():
                print(*case, verdict)
    print(dict(count))
