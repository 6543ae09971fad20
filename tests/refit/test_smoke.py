"""The smoke run: the toolkit's own stages with less to do, before the training, and none that judges figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from refit import pipeline as pipelines
from refit import toolkits
from refit.cluster import load
from refit.config import Settings
from refit.data import subset
from refit.data.snapshot import open_snapshot, read_annotations
from refit.plan import Bound, make_plan
from refit.specs import parse_yaml
from refit.status import StatusWriter
from refit.toolkits.base import Stage

CPU = """
dataset: {source: inbox/x, classes: [a, b]}
toolkit: cpu
stages: {train: {epochs: 30, batch_size: 8}, quantize: {images: 100}}
"""
TAO = """
dataset: {source: inbox/x, classes: [a, b], format: kitti}
toolkit: tao
network: {name: detectnet_v2}
stages: {train: {epochs: 80, batch_size: 4}, prune: true}
resources: {default: {gpus: 2}}
"""
ON, OFF = "gates: {smoke: true}\n", "gates: {smoke: false}\n"


def stages(text: str) -> dict[str, Stage]:
    pipeline = pipelines.from_document(parse_yaml(text, "mine.yaml"), "mine")
    profile = load(pipeline.profile, Settings.from_env({}))
    return {s.name: s for s in toolkits.get(pipeline.toolkit).stages(pipeline, profile)}


@pytest.mark.parametrize("text", [CPU, TAO])
def test_every_stage_to_triton_is_tried_before_the_training(text: str) -> None:
    plain, made = stages(text + OFF), stages(text + ON)
    assert not any(name.startswith("smoke_") for name in plain)
    judging = {name for name, s in plain.items() if s.action in ("gate", "release")} - {"gate_parity"}
    tried = {f"smoke_{name}" for name in plain if name not in judging and "champion" not in name}
    assert {name for name in made if name.startswith("smoke_")} == tried | {"smoke_data"}
    place = {name: at for at, name in enumerate(made)}
    assert all(place[u] < place[s.name] for s in made.values() for u in s.upstream)
    assert "smoke_gate_parity" in made["train"].after
    assert {name: s.files for name, s in made.items() if name in plain}.keys() == plain.keys()


@pytest.mark.parametrize("text", [CPU, TAO])
def test_it_reads_nothing_of_the_long_run(text: str) -> None:
    for name, stage in stages(text + ON).items():
        if name.startswith("smoke_"):
            said = json.dumps([stage.argv, dict(stage.env), {k: str(v) for k, v in stage.files.items()}])
            assert all(u.startswith("smoke_") for u in stage.upstream), name
            assert "{snapshot}" not in said or name == "smoke_data"
            assert "{input:" not in said.replace("{input:smoke_", "")


def test_it_trains_one_epoch_on_two_batches_of_each_gpu() -> None:
    made = stages(TAO + ON)
    assert "num_epochs: 1\n" in str(made["smoke_train"].files["train.txt"])
    assert "num_epochs: 80\n" in str(made["train"].files["train.txt"])
    assert made["smoke_data"].files["subset.yaml"] == {"snapshot": "{snapshot}", "images": 16, "train": 16}
    assert made["smoke_train"].resources == made["train"].resources
    assert "--batches 1 " in " ".join(made["smoke_build_engine"].argv) + " "


def test_it_is_on_where_a_training_takes_hours() -> None:
    assert list(stages(TAO)) == list(stages(TAO + ON))
    assert list(stages(CPU)) == list(stages(CPU + OFF))


@pytest.mark.parametrize("more", ["batch_size: 40", "set: {training_config.batch_size_per_gpu: 40}"])
def test_every_split_has_a_batch_of_the_training_as_taos_evaluations_need(more: str) -> None:
    """tao_deploy counts whole batches, and refuses to evaluate none."""
    made = stages(TAO.replace("batch_size: 4", more))
    assert made["smoke_data"].files["subset.yaml"] == {"snapshot": "{snapshot}", "images": 40, "train": 160}


def keys(text: str, fingerprint: str, kind: str = ".jpg") -> dict[str, str]:
    pipeline = pipelines.from_document(parse_yaml(text, "mine.yaml"), "mine")
    about = {
        "classes": pipeline.dataset.classes,
        "splits": {"train": 900, "val": 90},
        "images": {"extensions": {kind: 990}},
    }
    bound = Bound(
        run="r1", workspace=Path("/w"), snapshot=Path("/w/s"), fingerprint=fingerprint, code=lambda package: "",
        environments=dict.fromkeys(("tools", "cpu", "triton"), ""), find=lambda stage, key: None, dataset=about,
    )  # fmt: skip
    plan = make_plan(pipeline, load(pipeline.profile, Settings.from_env({})), bound)
    return {request["name"]: request["key"] for request in plan["stages"]}


@pytest.mark.parametrize("text", [CPU + ON, TAO])
def test_other_images_alone_do_not_make_it_run_again(text: str) -> None:
    before, after = keys(text, "f"), keys(text, "g")
    same = {name for name in before if before[name] == after[name]}
    assert same == {name for name in before if name.startswith("smoke_")}
    for other in (keys(text.replace("[a, b]", "[a, b, c]"), "f"), keys(text, "f", kind=".png")):
        assert before["smoke_train"] != other["smoke_train"], "that is another kind of data"


def test_its_gate_asks_only_whether_triton_answers() -> None:
    spec = yaml.safe_load(str(stages(TAO + ON)["smoke_gate_parity"].files["parity.yaml"]))
    assert (spec["agreement"], spec["max_drop"], spec["figures"], spec["references"]) == (0, 1, {}, {})
    assert "most" not in json.dumps(stages(TAO + ON)["smoke_prune"].metrics)


def test_a_subset_has_every_class_and_is_a_snapshot(tmp_path: Path) -> None:
    source = tmp_path / "snapshot"
    (source / "images").mkdir(parents=True)
    rows = []
    for at in range(40):
        cls = "rare" if at == 33 else "common"
        box = {"class": cls, "x1": 1, "y1": 1, "x2": 5, "y2": 5}
        row = {
            "file": f"{at:02}.png",
            "width": 8,
            "height": 8,
            "split": "train" if at < 36 else "val",
            "objects": [box],
        }
        rows.append(row)
        (source / "images" / row["file"]).write_bytes(b"%d" % at)
    (source / "annotations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    about = {"schema": 2, "fingerprint": "f", "classes": ["common", "rare"], "splits": {"train": 36, "val": 4}}
    (source / "dataset.json").write_text(json.dumps({**about, "objects": {"common": 39, "rare": 1}, "issues": {}}))
    out = tmp_path / "out"
    subset.run(subset.SubsetSpec(snapshot=source, images=3, train=8), out, StatusWriter(out))
    found = open_snapshot(out)
    assert found.splits == {"train": 8, "val": 3}
    assert found.objects["rare"] == 1
    assert all((out / "images" / row["file"]).is_file() for row in read_annotations(out))
