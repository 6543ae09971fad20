"""The search for a size of TAO's: one pod prunes, retrains shortly and evaluates size after size."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit import pipeline as pipelines
from refit.cluster import Profile, load
from refit.config import Settings
from refit.specs import parse_yaml
from refit.tao import climb, networks
from refit.toolkits.tao import TOOLKIT, TaoChain
from refit.toolkits.tao.search import PLACEHOLDER
from tests.refit.runner_helpers import Bench
from tests.tao.test_checkpoints import Run, shapes
from tests.tao.test_preflight import found as faults
from tests.tao.test_preflight import pipeline, prunes

__all__ = ["shapes"]
PIPELINE = """\
dataset: {{source: inbox/cars, classes: [cross, ring, triangle], format: kitti}}
toolkit: tao
network: {{name: {network}, image_extension: png{key}}}
stages:
  prepare: {{convert: png}}
  train: {{epochs: 4, batch_size: 4}}
  evaluate: {batch}
  prune: {{threshold: 0.1, search: {{ratio: 0.38, max_drop: 0.01, epochs: 4}}}}
gates: {{smoke: false}}
resources: {{default: {{gpus: 1}}}}
"""
SECRETS = {"REFIT_SECRET_TAO_KEY": "a-key-of-tests"}


@pytest.fixture
def profile() -> Profile:
    return load("kubernetes", Settings.from_env({}))


def planned(bench: Bench, programs: Path, shapes: Path, network: str) -> Run:
    key, batch = (", key_secret: TAO_KEY", "{}") if networks.load(network).encrypted else ("", "{batch_size: 4}")
    return Run(bench, programs, shapes, PIPELINE.format(network=network, key=key, batch=batch))


def report(run: Run) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(run.text("prune", "out/search.json"))
    return made


@pytest.mark.parametrize("network", ["detectnet_v2", "efficientdet_tf2"])
def test_the_threshold_of_the_wanted_size_is_found_and_the_retraining_goes_on_from_it(
    bench: Bench, programs: Path, shapes: Path, network: str
) -> None:
    """The stand-in keeps 1 - 2 * threshold; a killed search makes nothing twice."""
    run = planned(bench, programs, shapes, network)
    done = run.until("prune", **SECRETS)
    assert done.outcome == "succeeded", done.output
    found = report(run)
    assert found["prunings"] == {"0.1": 0.8, "0.325": 0.35, "0.55": 0.1}
    assert [(t["ratio"], t["threshold"], t["passed"]) for t in found["tries"]] == [(0.38, 0.325, True)]
    assert done.result["metrics"] == {"kept": 0.35, "parameters": pytest.approx(0.35 * 112_000)}
    assert done.result["summary"] == {"wanted": 0.38, "chosen": 0.38, "kept": 0.35, "threshold": 0.325, "tries": 1}
    assert "a-key-of-tests" not in run.text("prune", "request.json")
    folder = Path(run.stages["prune"]["paths"]["stage"])
    model = folder / "out" / done.result["outputs"]["model"]["path"]
    assert model.samefile(folder / "out" / "tries" / "0.325" / "prune" / "out" / model.name)
    (folder / "result.json").unlink()  # as if it had been killed before its end
    model.unlink()
    shutil.rmtree(folder / "out" / "tries" / "0.325" / "evaluate")
    again = run.stage("prune", **SECRETS)
    assert again.outcome == "succeeded", again.output
    assert again.output.count("an earlier result with the same key is whole: reused") == 4, (
        "three prunings, a retraining"
    )
    if network == "detectnet_v2":
        goes_on = run.stage("retrain", **SECRETS)
        assert goes_on.outcome == "succeeded", goes_on.reason


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, programs: Path, shapes: Path) -> Iterator[Run]:
    """A run to its training, which will prune without a search."""
    text = PIPELINE.format(network="detectnet_v2", key=", key_secret: TAO_KEY", batch="{}")
    text = re.sub(r"threshold: 0.1, search: \{.*?\}", "threshold: 0.3", text)
    with Bench(tmp_path_factory.mktemp("trained")) as bench:
        run = Run(bench, programs, shapes, text.replace("gates:", "  build_engine: false\ngates:") + "release: false\n")
        for name in (n for n, s in run.stages.items() if s["action"] in ("prepare", "dataset_convert", "train")):
            done = run.stage(name, **SECRETS)
            assert done.outcome == "succeeded", done.reason
        yield run


def test_a_prune_that_prunes_a_thousandth_of_a_per_cent_is_refused(trained: Run) -> None:
    done = trained.stage("prune", REFIT_STANDIN_LIE="12", REFIT_STANDIN_LIE_TASK="prune", **SECRETS)
    assert done.outcome == "rejected"
    assert done.reason == "kept 99.999 % of the parameters, at most 98 % was wanted: nothing was pruned"


def test_an_export_of_the_model_before_pruning_is_not_packed(trained: Run) -> None:
    """As by a spec of the user's own that names the first training's checkpoint."""
    for name in ("prune", "retrain", "export", "package"):
        done = trained.stage(name, **SECRETS)
        assert done.outcome == "succeeded", f"{name}: {done.reason}"
    export, train = trained.stages["export"], trained.stages["train"]
    export["inputs"]["retrain"], export["input_keys"]["retrain"] = train["paths"]["stage"], train["key"]
    assert trained.stage("export", REFIT_AGAIN="1", **SECRETS).outcome == "succeeded"
    done = trained.stage("package", REFIT_AGAIN="1", **SECRETS)
    assert done.outcome == "bad_data"
    assert (
        "has 112,000 weights, as the model before pruning (112,000 parameters), of which prune left 44,8" in done.reason
    )
    assert "what was exported or retrained is not the pruned model" in done.reason


RUNNER = """
import json, os, sys
request = json.load(open(sys.argv[2]))
name, folder, threshold = request["name"], request["paths"]["stage"], float(request["threshold"])
kept = max(0.1, 1 - 2 * threshold)
says = {"prune": {"kept": kept}, "retrain": {}, "evaluate": {"mAP50": 0.8 - 0.1 * (1 - kept)}}[name]
os.makedirs(folder + "/out", exist_ok=True)
open(folder + "/out/model", "w").write(str(kept))
outcome = os.environ["OUTCOME"] if name == os.environ.get("FAILS") else "succeeded"
json.dump({"outcome": outcome, "reason": "no memory", "metrics": says}, open(folder + "/result.json", "w"))
sys.exit(143 if name == os.environ.get("STOPPED") else 0)
"""


@pytest.mark.parametrize(
    ("changes", "env", "code", "tried", "chosen"),
    [
        ({"max_drop": 0.08}, {}, 0, [0.2938], 0.2938),
        # The middle between what lost too much and what did not, the smallest that passed wins.
        ({"max_drop": 0.04}, {}, 0, [0.2938, 0.6312, 0.4344, 0.5188], 0.6312),
        ({"max_drop": 0.04, "tries": 1}, {}, 4, [0.2938], None),
        ({"max_drop": 0.0, "tries": 32}, {}, 4, None, None),
        ({"ratio": 0.05}, {}, 2, None, None),
        ({}, {"FAILS": "retrain", "OUTCOME": "toolkit_error"}, 1, [], None),
        ({}, {"FAILS": "retrain", "OUTCOME": "out_of_memory"}, 65, [], None),
        ({}, {"STOPPED": "retrain"}, 143, None, None),
    ],
)
def test_the_smallest_size_that_loses_little_wins(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    env: dict[str, str],
    code: int,
    tried: list[float] | None,
    chosen: float | None,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    limits = {"max_drop": changes.pop("max_drop", 0.08), "max_drop_class": None, "floor": None}
    requests = {name: {"name": name, "threshold": "HERE"} for name in ("prune", "retrain", "evaluate")}
    spec = {"metric": "mAP50", "placeholder": "HERE", "threshold": 0.1, "ratio": 0.3, "tries": 4, "max_kept": 0.98}
    whole = {**spec, **changes, "limits": limits, "requests": requests}
    for name, value in (("spec", whole), ("before", {"metrics": {"mAP50": 0.8}})):
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "runner").write_text(RUNNER)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert climb.main([*(str(tmp_path / name) for name in ("runner", "spec", "before")), str(out)]) == code
    assert (out / "model").exists() is (code == 0)
    if code in (2, 143):
        assert not (out / "search.json").exists()
        return
    found = json.loads((out / "search.json").read_text())
    sizes = [round(t["kept"], 4) for t in found["tries"]]
    assert tried is None or sizes == tried
    assert len(set(sizes)) == len(sizes)
    assert max(sizes, default=0) <= 0.98
    assert (round(found["kept"], 4) if found["kept"] else None) == chosen
    assert not chosen or float((out / "model").read_text()) == found["kept"]


@pytest.mark.parametrize("network", [network for network in networks.known() if prunes(network)])
def test_each_network_that_prunes_can_search(profile: Profile, network: str) -> None:
    assert faults(pipeline(network, "  prune: {search: {}}\n"), profile) == []
    made = pipelines.from_document(parse_yaml(pipeline(network, "  prune: {search: {}}\n"), "x"), "x")
    (stage,) = (s for s in TaoChain(made, profile).stages() if s.name == "prune")
    requests = json.loads(stage.files["search.json"])["requests"]
    assert PLACEHOLDER in json.dumps(requests["prune"])
    assert "'REFIT" not in json.dumps(requests), "a word in quotes would stay one"
    (smoked,) = (s for s in TOOLKIT.stages(made, profile) if s.name == "smoke_prune")
    assert "search.json" not in smoked.files, "nothing is judged there"


@pytest.mark.parametrize(
    ("stages", "more", "said"),
    [
        ("  prune: {search: {}}\n  retrain: false\n", {}, "stages.prune.search: each size is judged after a short"),
        ("  prune: {search: {ratio: 0.99}}\n", {}, "search.ratio: more than max_kept (0.98) counts as not pruned"),
        ("  prune: {search: {epoch: 1}}\n", {}, "stages.prune.search.epoch: unknown key; did you mean 'epochs'?"),
        (
            "  prune: {search: {}}\n", {"resources": "{default: {gpus: 1}, stages: {prune: {gpus: 1}}}"},
            "resources.stages.prune: where prune searches it trains",
        ),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be(profile: Profile, stages: str, more: dict[str, str], said: str) -> None:
    (told,) = faults(pipeline(more=stages, **more), profile)
    assert said in told


def test_a_threshold_that_is_set_beside_the_search(profile: Profile) -> None:
    text = pipeline("efficientdet_tf2", "  prune: {search: {}, set: {prune.threshold: 0.3}}\n")
    (told,) = faults(text, profile)
    assert told.endswith("set.prune.threshold: the search chooses the threshold; leave one of them out")
