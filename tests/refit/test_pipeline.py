"""The pipeline file: what is accepted, and the error that each mistake gets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refit import pipeline as pipelines
from refit.cli import pipeline_schema
from refit.specs import SpecError, parse_yaml

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = "dataset:\n  source: inbox/x\n  classes: [a, b]\ntoolkit: cpu\n"


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def errors(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        pipelines.load(path, path.name)
    return str(caught.value)


def test_a_spec_lies_with_the_pipeline_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, specs = tmp_path / "pipelines", tmp_path / "specs"
    for place in (folder, specs):
        place.mkdir()
        (place / "own.txt").write_text("a: 1\n")
    (folder / "..data").mkdir()  # as Kubernetes mounts a ConfigMap
    (folder / "..data" / "mapped.txt").write_text("b: 2\n")
    (folder / "mapped.txt").symlink_to("..data/mapped.txt")
    (folder / "link.txt").symlink_to(specs / "own.txt")
    (folder / "large.txt").write_bytes(b"#" * (2 << 20))
    (folder / "latin.txt").write_bytes(b"\xe9")
    os.mkfifo(folder / "pipe.txt")

    def read(name: str) -> dict[str, str]:
        return pipelines.attachments(parse_yaml(f"stages: {{train: {{spec: {name}}}}}", "mine.yaml"), folder)

    assert read("own.txt") == {"own.txt": "a: 1\n"}
    assert read("mapped.txt") == {"mapped.txt": "b: 2\n"}
    outside = ("../specs/own.txt", "link.txt", str(specs / "own.txt"), "/proc/self/environ", "/dev/zero", "../none")
    for name in outside:
        with pytest.raises(SpecError, match=r"^mine.yaml:1: stages.train.spec: .*: it lies outside of .* REFIT_SPECS$"):
            read(name)
    for name, why in (("large.txt", "it has 2 MiB, a spec at most 1"), ("pipe.txt", "no file"), ("latin.txt", "UTF-8")):
        with pytest.raises(SpecError, match=why):
            read(name)
    with pytest.raises(SpecError, match=r"No such file or directory; did you mean 'own.txt'"):
        read("owm.txt")
    monkeypatch.setenv("REFIT_SPECS", str(specs))
    for name in outside[:3]:
        assert read(name) == {name: "a: 1\n"}


@pytest.mark.parametrize("path", pipelines.files(ROOT / "specs" / "pipelines"), ids=lambda p: p.name)
def test_the_examples_are_good(path: Path) -> None:
    assert pipelines.load(path).name == path.stem


def test_a_minimal_file_makes_the_whole_chain(tmp_path: Path) -> None:
    made = pipelines.load(write(tmp_path, MINIMAL))
    assert (made.name, made.runtime, made.schedule) == ("mine", "local", None)
    assert made.stages.augment is None
    assert made.stages.prune
    assert made.stages.retrain
    assert made.stages.quantize
    assert made.release


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("stages: {trian: {}}\n", "mine.yaml:5: stages.trian: unknown key; did you mean 'train'?"),
        ("stages:\n  train:\n    epochs: many\n", "mine.yaml:7: stages.train.epochs: Input should be a valid integer"),
        (
            "stages:\n  prune: {ratio: 1.5}\n",
            "mine.yaml:6: stages.prune.ratio: Input should be less than 1 (it is 1.5)",
        ),
        ("schedule: on_arival\n", "mine.yaml:5: schedule: 'on_arival' is no schedule; use on_arrival"),
        (
            "network: {input_width: 330}\n",
            "mine.yaml:5: network.input_width: Input should be a multiple of 16 (it is 330)",
        ),
        (
            "stages:\n  prune: false\n  retrain: {epochs: 2}\n",
            "mine.yaml:7: stages.retrain: there is nothing to retrain",
        ),
        ("stages:\n  evaluate: {splits: [vall]}\n", "stages.evaluate.splits[0]: the data set has no split 'vall'"),
        ("resources: {stages: {tran: {cpus: 1}}}\n", "this pipeline has no such stage; did you mean 'train'?"),
        ("release: {model: a/b}\n", "mine.yaml:5: release.model: String should match pattern"),
        ("release: {triton: {url: 'http://user:pw@host', repository: m}}\n", "release.triton.url"),
        ("name: other\n", "mine.yaml:5: name: is 'other' but the file is mine.yaml"),
        (
            "resources: {default: {gpu_type: a100}}\n",
            "mine.yaml:5: resources.default.gpu_type: the local runtime has no",
        ),
        (
            "resources: {stages: {train: {gpu_type: a100}}}\n",
            "resources.stages.train.gpu_type: the local runtime has no kinds of GPU; leave it out",
        ),
        ("resources: {default: {nodes: 2}}\n", "mine.yaml:5: resources.default.nodes: 2 is not a choice; use 1"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, extra: str, expected: str) -> None:
    assert expected in errors(write(tmp_path, MINIMAL + extra))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL.replace("cpu", "tao") + "runtime: local\n", "TAO runs in NVIDIA's containers only"),
        (MINIMAL.replace("cpu", "tao"), "network: is missing"),
        (MINIMAL.replace("cpu", "cpuu"), "'cpuu' is not a choice; use cpu, tao; did you mean 'cpu'?"),
        (MINIMAL.replace("toolkit: cpu\n", ""), "toolkit: is missing"),
        (MINIMAL.replace("[a, b]", "[a, a]"), "classes holds a twice"),
        (MINIMAL.replace("[a, b]", "[a, b]\n  class_map: {Van: car}"), "class_map leads to car"),
        (MINIMAL.replace("[a, b]", "[a]\n  split: {lists: {train: t.txt}}"), "lists needs an entry for val"),
    ],
)
def test_a_mistake_in_the_base_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in errors(write(tmp_path, text))


def test_a_name_that_cannot_be_one(tmp_path: Path) -> None:
    assert "cannot be a pipeline's name" in errors(write(tmp_path, MINIMAL, "My Model.yaml"))


@pytest.mark.parametrize("stage", ["prune", "quantize", "augment"])
def test_a_stage_is_left_out_by_false_and_on_by_an_empty_block(tmp_path: Path, stage: str) -> None:
    off = pipelines.load(write(tmp_path, MINIMAL + f"stages: {{{stage}: false}}\n"))
    assert getattr(off.stages, stage) is None
    on = pipelines.load(write(tmp_path, MINIMAL + f"stages:\n  {stage}:\n"))
    assert getattr(on.stages, stage) is not None


def test_retrain_is_as_train_but_for_what_it_names(tmp_path: Path) -> None:
    text = MINIMAL + "stages:\n  train: {epochs: 50, batch_size: 3, learning_rate: 0.1}\n  retrain: {epochs: 4}\n"
    stages = pipelines.load(write(tmp_path, text)).stages
    assert (stages.retrain.epochs, stages.retrain.batch_size, stages.retrain.learning_rate) == (4, 3, 0.001)


def test_a_fault_in_train_is_told_once(tmp_path: Path) -> None:
    text = MINIMAL + "stages:\n  train:\n    batch_size: eight\n    epoch: 3\n  retrain: {epochs: 4}\n"
    assert [line.split(": ")[:2] for line in errors(write(tmp_path, text)).splitlines()] == [
        ["mine.yaml:7", "stages.train.batch_size"],
        ["mine.yaml:8", "stages.train.epoch"],
    ]


def test_without_prune_there_is_no_retrain(tmp_path: Path) -> None:
    stages = pipelines.load(write(tmp_path, MINIMAL + "stages: {prune: false, train: {epochs: 2}}\n")).stages
    assert stages.retrain is None


def test_the_profile_is_named_as_the_runtime_unless_another_is(tmp_path: Path) -> None:
    kubernetes = MINIMAL + "runtime: kubernetes\n"
    assert pipelines.load(write(tmp_path, MINIMAL)).profile == "local"
    assert pipelines.load(write(tmp_path, kubernetes)).profile == "kubernetes"
    assert pipelines.load(write(tmp_path, kubernetes + "cluster: workstation\n")).profile == "workstation"


def test_overrides_are_judged_like_the_file(tmp_path: Path) -> None:
    doc = pipelines.read_document(write(tmp_path, MINIMAL), "mine.yaml")
    assert pipelines.from_document(doc, "mine", {"stages.train.epochs": 3}).stages.train.epochs == 3
    with pytest.raises(
        SpecError, match=r"params of this run: stages\.train\.epochs: Input should be greater than or equal to 1"
    ):
        pipelines.from_document(doc, "mine", {"stages.train.epochs": 0})
    assert "stages" not in doc.data  # the document itself is unchanged


def test_the_published_schema_is_the_model(tmp_path: Path) -> None:
    published = (ROOT / "specs" / "pipeline.schema.json").read_text()
    assert published.strip() == pipeline_schema(), "run: bin/refit schema > specs/pipeline.schema.json"
    schema = json.loads(published)
    for name in ("CpuPipeline", "TaoPipeline"):
        assert schema["$defs"][name]["additionalProperties"] is False
        assert schema["$defs"][name]["properties"]["schedule"]["description"]
    assert schema["discriminator"]["propertyName"] == "toolkit"


def test_a_param_goes_into_a_block_that_the_file_turns_on_by_true() -> None:
    doc = parse_yaml(MINIMAL + "stages: {prune: true}\n", "mine.yaml")
    assert pipelines.from_document(doc, "mine", {"stages.prune.ratio": 0.5}).stages.prune.ratio == 0.5
