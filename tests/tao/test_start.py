"""start_from with TAO: where each network's spec or command line names the model, and what each refuses."""

from __future__ import annotations

from typing import Any

import pytest

from refit import pipeline as pipelines
from refit.cluster import KubernetesProfile, load
from refit.config import Settings
from refit.specs import SpecError, parse_yaml
from refit.tao import networks
from refit.tao.tree import parse
from refit.toolkits import tao
from refit.toolkits.base import Stage, spec_text
from refit.toolkits.smoke import changed
from refit.toolkits.tao import TaoChain

PIPELINE = """\
dataset: {source: inbox/cars, classes: [car], format: kitti}
toolkit: tao
network: {name: NETWORK}
resources: {default: {gpus: 1}}
stages:
  train: {epochs: 20}
"""
PRUNED = "  prune: true\n"
# The path of the spec that names the model to begin with; SSD takes it on the command line.
PLACES = {
    "detectnet_v2": "model_config.pretrained_model_file",
    "faster_rcnn": "training_config.pretrained_weights",
    "yolo_v4": "training_config.pretrain_model_path",
    "rtdetr": "train.pretrained_model_path",
    "dino": "train.pretrained_model_path",
    "deformable_detr": "train.pretrained_model_path",
}


@pytest.fixture
def profile() -> KubernetesProfile:
    made = load("kubernetes", Settings.from_env({}))
    assert isinstance(made, KubernetesProfile)
    return made


def read(network: str, value: str | None = None, more: str = "", **keys: str) -> Any:
    named = ", ".join([network, *(f"{k}: {v}" for k, v in keys.items())])
    text = PIPELINE.replace("NETWORK", named) + more
    return pipelines.from_document(parse_yaml(text, "cars.yaml"), "cars", {"stages.train.start_from": value})


def stages(pipeline: Any, profile: KubernetesProfile, taken: str | None) -> dict[str, Stage]:
    """The stages when bind has found what the training begins with."""
    made = changed(pipeline, {"stages.train.start_from": taken})
    return {s.name: s for s in TaoChain(made, profile).stages()}


def value(stage: Stage, network: str, path: str) -> object:
    (text,) = stage.files.values()
    return parse(spec_text(text), networks.load(network).format, "spec").value(path)


@pytest.mark.parametrize("network", [n for n in networks.known() if networks.load(n).begins])
def test_the_model_stands_where_the_network_looks_for_it(profile: KubernetesProfile, network: str) -> None:
    ending = networks.load(network).begins[0]
    pruned = PRUNED if "prune" in networks.load(network).stages else ""
    pipeline = read(network, f"mine{ending}", pruned)
    assert not list(tao.TOOLKIT.preflight(pipeline, profile, None))
    made = stages(pipeline, profile, f"taken:{'a' * 64}/model{ending}")
    path = f"{{workspace}}/starts/{'a' * 64}/model{ending}"
    train = made["train"]
    if network == "ssd":
        assert train.argv[train.argv.index("-m") + 1] == path
    else:
        assert value(train, network, PLACES[network]) == path
    assert "pretrained" not in made
    others = [s for s in made.values() if path in f"{s.argv} {dict(s.files)}"]
    assert [s.name for s in others] == ["train"], "a retraining begins with the pruned model"
    if train.resumes not in (True, False):  # one that is told goes on from its own checkpoint
        assert path not in str(dict(train.resumes))  # type: ignore[arg-type]


@pytest.mark.parametrize("network", networks.known())
def test_a_training_that_is_gone_on_with_has_no_beginning(profile: KubernetesProfile, network: str) -> None:
    pipeline = read(network, "resume:r1")
    made = stages(pipeline, profile, f"session:{'b' * 64}")
    plain = stages(pipeline, profile, None)
    assert made["train"].session == "b" * 64
    assert made["evaluate_trained"].session is None
    assert (made["train"].argv, dict(made["train"].files)) == (plain["train"].argv, dict(plain["train"].files))
    assert made["train"].resumes, "it could not be gone on with"


@pytest.mark.parametrize(
    ("network", "value", "keys", "message"),
    [
        ("rtdetr", "mine.onnx", {}, "mine.onnx is an exported graph, which its training cannot read; rtdetr"),
        ("rtdetr", "mine.hdf5", {}, "is a Keras model, which its training cannot read; rtdetr begins with .pth"),
        ("ssd", "mine.pth", {}, "is weights of PyTorch, which its training cannot read; ssd begins with .hdf5 or .tlt"),
        ("ssd", "mine.tlt", {}, "mine.tlt is encrypted: name the secret with its key, network.key_secret"),
        ("efficientdet_tf2", "mine.tlt", {}, "efficientdet_tf2 begins with no file of one's own, with run:RUN or with"),
        ("ssd", "zoo.tar.gz", {}, "zoo.tar.gz is an archive. One of TensorFlow's model zoo"),
        ("ssd", "mine.hdf5", {"pretrained": "true"}, "begins with a whole model, and network.pretrained with a"),
    ],
)  # fmt: skip
def test_what_a_network_cannot_begin_with(network: str, value: str, keys: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError) as error:
        read(network, value, **keys)
    assert message in str(error.value)


def test_an_encrypted_model_needs_the_secret_with_its_key(profile: KubernetesProfile) -> None:
    pipeline = read("detectnet_v2", "mine.tlt", key_secret="TAO_KEY")
    train = stages(pipeline, profile, f"taken:{'a' * 64}/model.tlt")["train"]
    assert train.secrets == ("TAO_KEY",)
    assert "{secret:TAO_KEY}" in train.argv


def test_what_may_have_seen_the_evaluation_is_doubted(profile: KubernetesProfile) -> None:
    text = PIPELINE.replace("NETWORK", "rtdetr").replace("format: kitti", "format: kitti, split: {evaluation: fresh}")
    document = parse_yaml(text, "cars.yaml")
    pipeline = pipelines.from_document(document, "cars", {"stages.train.start_from": "champion"})
    doubts = [d for d in tao.TOOLKIT.doubts(pipeline, profile) if isinstance(d, tuple)]
    assert any("may have been trained on images that are evaluated on now" in message for _, message in doubts)
