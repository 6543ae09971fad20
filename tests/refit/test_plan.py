"""Plans: pure, ordered, and keyed by all that decides a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import cluster
from refit import pipeline as pipelines
from refit import plan as plans
from refit.config import Settings
from refit.specs import parse_yaml
from refit.toolkits.smoke import changed as pipeline_changed
from refit.triton.specs import CanarySpec

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
dataset: {source: inbox/x, classes: [a, b]}
toolkit: cpu
stages:
  augment: {copies: 1}
  train: {epochs: 3}
  prune: {ratio: 0.3}
"""
CHAIN = [
    "augment", "dataset_convert", "train", "evaluate_trained", "gate_trained", "prune", "retrain", "evaluate_retrained",
    "gate_retrained", "export", "quantize", "evaluate_quantized", "gate_quantized", "evaluate_champion",
    "gate_champion", "prepare_proof", "prove", "gate_parity", "release",
]  # fmt: skip


def load(text: str = TEXT) -> Any:
    return pipelines.from_document(parse_yaml(text, "mine.yaml"), "mine")


def profile() -> cluster.Profile:
    return cluster.load("local", Settings.from_env({}))


def bound(**changes: Any) -> plans.Bound:
    values: dict[str, Any] = {
        "run": "r1",
        "workspace": Path("/w/mine"),
        "snapshot": Path("/w/mine/datasets/f"),
        "fingerprint": "f",
        "code": lambda package: "code of " + package,
        "environments": {"tools": "t", "cpu": "c", "triton": "s"},
        "find": lambda stage, key: None,
    }
    return plans.Bound(**{**values, **changes})


def keys(text: str = TEXT, **changes: Any) -> dict[str, str]:
    made = plans.make_plan(load(text), profile(), bound(**changes))
    return {s["name"]: s["key"] for s in made["stages"]}


def changed(text: str = TEXT, **changes: Any) -> set[str]:
    before, after = keys(), keys(text, **changes)
    return {name for name in before if before[name] != after.get(name)}


def test_the_chain_in_order() -> None:
    nodes = plans.skeleton(load())
    assert [n.name for n in nodes] == CHAIN
    seen: set[str] = set()
    for node in nodes:  # each stage comes after what it needs
        assert set(node.upstream) <= seen
        seen.add(node.name)
    assert {n.name for n in nodes if n.group is None} == {"release"}


def test_a_canary_stands_before_approval_and_release_and_a_person_is_asked_once() -> None:
    tried = load(TEXT + "release: {canary: {images: 7, max_slowdown: 3}, watch: true}\napproval: true\n")
    made = plans.make_plan(tried, profile(), bound())
    names = [s["name"] for s in made["stages"]]
    assert names == [*CHAIN[:-1], "canary", "approve", "release", "watch"]
    assert {n.name: n.upstream for n in plans.skeleton(tried)}["approve"][-1] == "canary"
    asked = yaml.safe_load(made["stages"][names.index("canary")]["files"]["canary.yaml"])
    assert (asked["images_asked"], asked["lines"]["max_slowdown"]) == (7, 3)
    assert CanarySpec.model_validate({**asked, "url": "http://t:1", "snapshot": "/s"}).policy == "fail"
    reused = plans.make_plan(tried, profile(), bound(find=lambda stage, key: Path("/there")))
    assert {"canary", "approve"} <= set(reused["off"]), "nothing new: nothing to try"


def test_a_watch_follows_the_release_where_it_is_asked_for_and_goes_with_it() -> None:
    watched = TEXT + "release: {watch: {minutes: 3, max_failed: 0.2}}\n"
    nodes = plans.skeleton(load(watched))
    assert [n.name for n in nodes] == [*CHAIN, "watch"]
    assert (nodes[-1].upstream, nodes[-1].group) == (("release",), None)
    assert changed(watched) == {"release"}
    made = plans.make_plan(load(watched), profile(), bound(off=frozenset({"release", "watch"})))
    assert {"release", "watch"} <= set(made["off"])
    asked = yaml.safe_load(made["stages"][-1]["files"]["watch.yaml"])
    assert (asked["minutes"], asked["lines"]["max_failed"], asked["lines"]["min_requests"]) == (3, 0.2, 100)
    assert yaml.safe_load(made["stages"][-2]["files"]["release.yaml"])["watched"] is True


@pytest.mark.parametrize(
    ("block", "gone"),
    [
        ("augment: false", {"augment"}),
        ("retrain: false", {"retrain", "evaluate_retrained", "gate_retrained"}),
        ("quantize: false", {"quantize", "evaluate_quantized", "gate_quantized"}),
    ],
)
def test_a_stage_that_is_left_out_takes_its_evaluation_and_gate_along(block: str, gone: set[str]) -> None:
    data = yaml.safe_load(TEXT)
    data["stages"].update(yaml.safe_load(block))
    names = [n.name for n in plans.skeleton(load(yaml.safe_dump(data)))]
    assert gone.isdisjoint(names)
    assert set(names) >= set(CHAIN) - gone


def test_keys_are_the_same_in_every_run() -> None:
    assert keys() == keys(run="another", workspace=Path("/elsewhere/mine"), snapshot=Path("/elsewhere/f"))


@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ("epochs: 3", "epochs: 4", "train"),
        ("copies: 1", "copies: 2", "augment"),
        ("ratio: 0.3", "ratio: 0.4", "prune"),
        ("toolkit: cpu", "toolkit: cpu\nseed: 7", "augment"),
    ],
)
def test_a_change_reaches_its_stage_and_what_reads_it_and_nothing_before(old: str, new: str, first: str) -> None:
    got = changed(TEXT.replace(old, new))
    assert first in got
    assert got.isdisjoint(CHAIN[: CHAIN.index(first)])
    assert {"export", "quantize", "evaluate_quantized", "release"} <= got


def test_another_learning_rate_in_retrain_leaves_the_training_alone() -> None:
    got = changed(TEXT + "  retrain: {learning_rate: 0.01}\n")
    assert "retrain" in got
    assert got.isdisjoint({"train", "evaluate_trained", "prune"})


def test_a_gate_alone_is_redone_when_its_limit_changes() -> None:
    assert changed(TEXT + "gates: {quality: {max_drop_pruned: 0.5}}\n") == {"gate_retrained"}


def test_the_limit_of_int8_decides_which_rung_wins() -> None:
    text = "gates: {quality: {max_drop_quantized: 0.5}}\n"
    got = changed(TEXT + text)
    assert got == set(CHAIN[CHAIN.index("quantize") :]) - {"evaluate_champion"}
    unjudged = TEXT + "  quantize: {ladder: []}\n"
    assert {name for name, key in keys(unjudged).items() if key != keys(unjudged + text)[name]} == {"gate_quantized"}


def test_data_environment_and_code_are_part_of_the_key() -> None:
    assert changed(fingerprint="other") == set(CHAIN)
    assert changed(environments={"tools": "t", "cpu": "new lock", "triton": "s"}) == set(CHAIN)
    only_gates: Callable[[str], str] = lambda p: "new" if p == "refit/gates" else "code of " + p  # noqa: E731
    assert changed(code=only_gates) == {
        "gate_trained", "gate_retrained", "gate_quantized", "gate_champion", "gate_parity",
    }  # fmt: skip


def test_gpus_are_part_of_the_key_and_memory_is_not() -> None:
    assert "train" in changed(TEXT + "resources: {stages: {train: {gpus: 2}}}\n")
    assert changed(TEXT + "resources: {default: {memory_gib: 9}}\n") == set()


def test_what_is_reused_is_read_from_where_it_lies() -> None:
    old = Path("/w/mine/runs/r0/03-train")
    made = plans.make_plan(load(), profile(), bound(find=lambda stage, key: old if stage.name == "train" else None))
    stages = {s["name"]: s for s in made["stages"]}
    assert made["reused"] == {"train": str(old)}
    assert stages["prune"]["inputs"]["train"] == str(old)
    assert stages["prune"]["inputs"]["dataset_convert"] == "/w/mine/runs/r1/02-dataset_convert"
    assert stages["train"]["paths"]["stage"] == "/w/mine/runs/r1/03-train"  # should it be cleared by hand
    assert "train" not in [s["name"] for s in plans.tasks(made)]


def test_a_plan_is_json_and_holds_no_secret_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_SECRET_TRITON_CONTROL_KEY", "hunter2hunter2")
    text = json.dumps(plans.make_plan(load(), profile(), bound()))
    assert "TRITON_CONTROL_KEY" in text
    assert "hunter2" not in text


def test_params_have_ranges_choices_and_the_files_values() -> None:
    fields = {f.key: f for f in plans.params(load())}
    assert fields["train_epochs"].default == 3
    assert fields["train_epochs"].schema["minimum"] == 1
    assert fields["quantize_method"].schema["enum"] == ["percentile", "entropy", "minmax"]
    assert fields["gate_floor"].schema["type"] == ["null", "number"]
    assert {f.section for f in fields.values()} >= {"Data", "Train", "INT8", "Gates", "This run"}


def test_conf_becomes_overrides() -> None:
    assert plans.overrides(load(), {"train_epochs": 9, "reuse": False}) == (
        {"stages.train.epochs": 9},
        {"reuse": False},
    )
    assert plans.overrides(load(), {"train_epochs": 3}) == ({}, {})  # the form sends what nobody changed, too


@pytest.mark.parametrize(
    ("file", "asked", "same"),
    [
        ("s3://labels/plates", "s3://labels/other", True),
        ("s3://labels/plates", "https://mine.example/x.zip", False),
        ("s3://labels/plates", "gs://mine/x", False),
        ("s3://labels/plates", "inbox", False),
        ("https://lab.example/a.zip", "https://lab.example/b.zip", True),
        ("https://lab.example/a.zip", "https://lab.example.mine.example/a.zip", False),
        ("https://lab.example/a.zip", "https://lab.example:444/a.zip", False),
        ("https://lab.example/a.zip", "http://lab.example/a.zip", False),
        ("abfs://sets@theirs.dfs.core.windows.net/a", "abfs://sets@mine.dfs.core.windows.net/a", False),
    ],
)
def test_another_server_is_asked_without_the_login(file: str, asked: str, same: bool) -> None:
    pipeline = pipeline_changed(load(), {"dataset.source": file, "dataset.connection": "lab"})
    without = {} if same else {"dataset.connection": None}
    assert plans.overrides(pipeline, {"dataset_source": asked}) == ({"dataset.source": asked, **without}, {})


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"train_epoch": 3}, "'train_epoch'; did you mean 'train_epochs'"),
        ({"stages.train.epochs": 3}, "'stages.train.epochs'; its name here is 'train_epochs'"),
        ({"reuse": "no"}, "reuse is 'no'; use true or false"),
    ],
)
def test_conf_that_cannot_be_used_is_refused(conf: dict[str, Any], message: str) -> None:
    with pytest.raises(plans.ConfError, match=message):
        plans.overrides(load(), conf)


def test_run_folders_are_plain_names_and_differ() -> None:
    ids = ["manual__2026-11-20T19:10:00+00:00", "manual__2026-11-20T19-10-00-00-00", "../../x", "..", "a/b", "a-b"]
    folders = [plans.run_folder(i) for i in ids]
    assert len(set(folders)) == len(ids)
    assert all(f == Path(f).name and not f.startswith(".") for f in folders)


def test_the_bind_request_keeps_braces_of_the_users_text_from_the_runner() -> None:
    text = TEXT + 'description: "{out} {secret:KEY} \\"quoted\\" {x}"\n'
    request = plans.bind_request(
        Path("specs/pipelines/mine.yaml"), text, "r 1", {"note": "{stage}"}, Settings.from_env({}), nonce="n"
    )
    body = request["files"]["bind.yaml"]
    assert "{out}" not in body
    assert "{stage}" not in body
    read = yaml.safe_load(body)
    assert read["text"] == text
    assert read["conf"] == {"note": "{stage}"}
    assert (
        request["key"]
        != plans.bind_request(Path("specs/pipelines/mine.yaml"), text, "r 1", {}, Settings.from_env({}), nonce="n")[
            "key"
        ]
    )
