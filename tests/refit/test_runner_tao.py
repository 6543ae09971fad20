"""TAO's dialects and lies: a command lies as NVIDIA's containers do, and the runner says what is true.

The twelve lies are those of NVIDIA's sources, in the order in which the tests stand. Status lines are written by
`Logger`, which keeps and repeats figures as TAO's own loggers do.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit.runner import Progress, Stage
from tests.refit.runner_helpers import Bench, Done, python

LOGGER = """
class Logger:
    def __init__(self, name="status.json"):
        self.path, self.kpi, self.categorical, self.graphical = path(name), {}, {}, {}
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
    def write(self, message=None, status="RUNNING", **data):
        record = dict(data, date="11/21/2026", time="9:5:3", status=status, verbosity="INFO")
        if message: record["message"] = message
        for key in ("categorical", "graphical", "kpi"):
            if getattr(self, key): record[key] = getattr(self, key)
        with open(self.path, "a") as f: f.write(json.dumps(record) + "\\n")
def save(name, text="x" * 2000):
    os.makedirs(os.path.dirname(path(name)), exist_ok=True)
    open(path(name), "w").write(text)
"""
MODEL = [{"name": "model", "path": "train/model_epoch_*.pth", "pick": "newest", "min_bytes": 1000}]
HDF5 = [{"name": "model", "path": "weights/model.hdf5", "min_bytes": 1000}]
TF1 = {"status": "SUCCESS", "denied_by": ["Execution status: FAIL"]}  # TF1 ends with SUCCESS ...
FINISHED = {"message": "finished successfully", "denied_by": ["Execution status: FAIL"]}  # ... TF2, PyTorch, deploy not
CLASSES = {"rbc": "RBC", "wbc": "WBC", "platelets": "Platelets"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


def run(bench: Bench, code: str, *, by: str | None = None, **changes: Any) -> Done:
    request = bench.request(LOGGER + textwrap.dedent(code), **changes)
    return bench.run(request, **({"by": by} if by else {}))


# --- the twelve lies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [True, False])
def test_1_tf2_fails_with_exit_code_0(bench: Bench, made: bool) -> None:
    code = f"""
    status = Logger()
    status.write("Starting EfficientDet train.", "STARTED")
    if {made}: save("efficientdet-d0_001.tlt")
    say("Traceback (most recent call last):")
    say("ValueError: Shapes (4, 90) and (4, 4) are incompatible")
    say("2026-11-21 09:05:03 [TAO Toolkit] [WARNING] root 339: Execution status: FAIL")
    """
    outputs = [{"name": "model", "path": "*.tlt", "pick": "newest"}]
    done = run(bench, code, success=FINISHED, outputs=outputs)
    assert (done.code, done.outcome, done.result["exit_code"]) == (1, "toolkit_error", 0)
    assert done.reason == (
        "the command ended with exit code 0, but its log says "
        "'2026-11-21 09:05:03 [TAO Toolkit] [WARNING] root 339: Execution status: FAIL'; "
        "the last message in status.json is 'Starting EfficientDet train.'; a success says /finished successfully/"
        + ("" if made else "; its outputs are not right: model: *.tlt is missing")
        + "; in its log: ValueError: Shapes (4, 90) and (4, 4) are incompatible"
    )


def test_2_a_launcher_that_swallows_the_failure(bench: Bench) -> None:
    done = run(bench, "say('Stopping container.')", success=TF1, outputs=HDF5)
    assert done.outcome == "toolkit_error"
    assert done.reason == (
        "the command ended with exit code 0, but there is no status in status.json, not SUCCESS; "
        "its outputs are not right: model: weights/model.hdf5 is missing"
    )


@pytest.mark.parametrize("mode", ["Train", "Trt_evaluate"])
def test_3_a_success_that_never_says_success_is_believed(bench: Bench, mode: str) -> None:
    code = f"""
    status = Logger("train/status.json")
    status.write("Starting RT-DETR train.", "STARTED")
    save("train/model_epoch_000.pth", "x" * 2000)
    status.write("{mode} finished successfully.")
    """
    done = run(bench, code, success=FINISHED, outputs=MODEL, status="train/status.json")
    assert (done.outcome, list(done.result["outputs"])) == ("succeeded", ["model"])


def test_3_where_success_is_the_rule_its_absence_counts(bench: Bench) -> None:
    code = """
    status = Logger()
    save("weights/model.hdf5")
    status.write("Model saved.")
    """
    done = run(bench, code, success=TF1, outputs=HDF5)
    assert (done.outcome, done.reason) == (
        "toolkit_error",
        "the command ended with exit code 0, but the last status in status.json is RUNNING, not SUCCESS",
    )


@pytest.mark.parametrize(
    ("started", "last"),
    [(True, ""), (False, "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.")],
)
def test_4_only_started_or_no_status_at_all(bench: Bench, started: bool, last: str) -> None:
    code = f"""
    if {started}: Logger("train/status.json").write("Starting RT-DETR train.", "STARTED")
    say("omegaconf.errors.ConfigKeyError: Key 'num_epoch' is not in struct")
    say("    full_key: train.num_epoch")
    say({last!r})
    say("Execution status: FAIL")
    sys.exit(1)
    """
    done = run(bench, code, success=FINISHED, outputs=MODEL, status="train/status.json")
    reason = "omegaconf.errors.ConfigKeyError: Key 'num_epoch' is not in struct (exit code 1)"
    assert (done.outcome, done.reason) == ("toolkit_error", reason)


def test_5_an_interruption_ends_with_exit_code_0_and_pass(bench: Bench) -> None:
    code = """
    status = Logger()
    save("weights/model.hdf5")
    say("2026-11-21 09:05:03 [ERROR] spec_loader: training_config.num_epochs: 0 must be greater than 0")
    status.write("Training was interrupted", "FAILURE")
    say("Execution status: PASS")
    """
    done = run(bench, code, success=TF1, outputs=HDF5)
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", 0)
    assert done.reason == (
        "Training was interrupted; in its log: 2026-11-21 09:05:03 [ERROR] spec_loader: "
        "training_config.num_epochs: 0 must be greater than 0"
    )


def falls_then_finds(epochs: int) -> str:
    """A training that falls after two epochs with its last checkpoint written, and then only finds that."""
    end = epochs - 1
    last = f"train/model_epoch_{end:03}.pth"
    return f"""
    status = Logger("train/status.json")
    status.write("Starting RT-DETR train.", "STARTED")
    if not os.path.exists(path("{last}")):
        for epoch in range(2): status.write("Training loop in progress", epoch=epoch, max_epoch={end}, max_step=8)
        save("{last}")
        sys.exit(1)
    status.write("Train finished successfully.")
    """


def test_6_a_training_that_only_found_its_checkpoint(bench: Bench) -> None:
    """What an attempt of the same key left is its own; under another key it must not be there to be found."""
    code = falls_then_finds(epochs=2)
    rules = {"success": FINISHED, "outputs": MODEL, "status": "train/status.json"}
    assert run(bench, code, **rules).outcome == "toolkit_error"
    same = run(bench, code, **rules)
    assert (same.outcome, same.result["resumed"], same.result["progress"]) == ("succeeded", True, {})
    other = run(bench, code, key="b" * 64, **rules)
    assert (other.outcome, other.result["resumed"]) == ("toolkit_error", False)  # it trained, and fell as the first did
    assert other.result["progress"] == {"epoch": 2, "max_epoch": 2}


def test_6_a_resume_that_trains_nothing_under_the_same_key(bench: Bench) -> None:
    """It came to epoch 2 of 8 when it was ended; what lies there as its last checkpoint is believed by TAO alone."""
    code = falls_then_finds(epochs=8)
    rules = {"success": FINISHED, "outputs": MODEL, "status": "train/status.json", "watch": {"epochs": 1}}
    assert run(bench, code, **rules).outcome == "toolkit_error"
    done = run(bench, code, **rules)
    assert (done.code, done.outcome) == (2, "rejected")
    assert done.reason == (
        "the training trained nothing: it went on from what it found, and tells of no epoch; "
        "it had come to epoch 2 of 8"
    )
    assert "trains from the beginning" in done.result["advice"]
    anew = run(bench, code, **rules)
    assert (anew.outcome, anew.result["resumed"], anew.result["progress"]["epoch"]) == ("toolkit_error", False, 2)


@pytest.mark.parametrize(
    ("old", "wanted", "nothing"),
    [
        ([], 1, "no start before it told of one"),
        ([{"epoch": 8, "max_epoch": 8}], 12, "it had come to epoch 8 of 12"),  # the epochs of the run it goes on with
        ([{"epoch": 8, "max_epoch": 8}], 1, ""),  # killed after its last epoch
        ([{"epoch": 7, "max_epoch": 8}], 1, ""),  # DetectNet_v2, or killed before the line of the last one
        ([{"epoch": 0, "max_epoch": 1}], 1, ""),  # DetectNet_v2 with one epoch
        ([{"epoch": 6, "max_epoch": 8}], 1, "it had come to epoch 6 of 8"),
        ([{"epoch": 6, "max_epoch": 8}], 0, ""),  # no training
    ],
)
def test_when_a_start_without_an_epoch_has_trained_nothing(
    old: list[dict[str, Any]], wanted: int, nothing: str
) -> None:
    progress = progress_of({}, epochs=wanted)
    for record in old:
        progress.add_old(record)
    progress.add({"status": "RUNNING", "message": "Train finished successfully."})
    assert progress.untrained().endswith(nothing) if nothing else not progress.untrained()
    progress.add({"epoch": 8, "max_epoch": 8})
    assert not progress.untrained()


def test_7_an_export_whose_output_must_not_exist(bench: Bench) -> None:
    code = """
    status = Logger()
    try:
        assert not os.path.exists(path("model.onnx")), "Default output file %s already exists" % path("model.onnx")
    except AssertionError as error:
        status.write(str(error), "FAILURE"); sys.exit(255)
    save("model.onnx")
    if not os.path.exists(path("../../again")): open(path("../../again"), "w").close(); os._exit(1)
    status.write("Export finished successfully.", "SUCCESS")
    """
    rules = {"success": TF1, "outputs": [{"name": "model", "path": "model.onnx"}]}
    assert run(bench, code, **rules).outcome == "toolkit_error"
    kept = run(bench, code, **rules)
    assert kept.reason.endswith("model.onnx already exists")
    assert run(bench, code, resume=False, **rules).outcome == "succeeded"


def test_8_a_calibration_cache_that_was_there_already(bench: Bench) -> None:
    code = """
    status = Logger()
    if os.path.exists(path("cal.bin")): say("Using calibration cache file: %s" % path("cal.bin"))
    else: say("Calibrating image 8 / 8"); save("cal.bin")
    save("model.engine")
    status.write("Gen_trt_engine finished successfully." if len(sys.argv) > 2 else "Generating engine")
    """
    rules: dict[str, Any] = {
        "success": {**FINISHED, "denied_by": ["Using calibration cache"]},
        "outputs": [{"name": "engine", "path": "model.engine"}, {"name": "cache", "path": "cal.bin"}],
    }
    assert "'Generating engine'" in run(bench, code, **rules).reason
    request = bench.request(LOGGER + textwrap.dedent(code), **rules)
    request["argv"].append("whole")
    stale = bench.run(request)
    assert stale.outcome == "toolkit_error"
    assert f"but its log says 'Using calibration cache file: {bench.out}/cal.bin'" in stale.reason
    fresh = bench.run({**request, "resume": False})
    assert (fresh.outcome, list(fresh.result["outputs"])) == ("succeeded", ["engine", "cache"])


def test_9_an_override_that_hydra_cannot_read(bench: Bench) -> None:
    code = """
    say("mismatched input '=' expecting <EOF>")
    say("See https://hydra.cc/docs/1.2/advanced/override_grammar/basic for details")
    say("2026-11-21 09:05:03 [TAO Toolkit] [WARNING] root 339: Execution status: FAIL")
    """
    done = run(bench, code, success={"denied_by": ["Execution status: FAIL", "expecting <EOF>"]})
    assert done.outcome == "toolkit_error"
    assert done.reason.startswith("the command ended with exit code 0, but its log says \"mismatched input '='")


def test_10_defaults_instead_of_the_spec(bench: Bench) -> None:
    code = """
    say("WARNING:root:[Multinode] Error overriding configs: [Errno 30] Read-only file system: 'train.yaml'")
    say("WARNING:root:[Multinode] Using default configs.")
    status = Logger("train/status.json")
    save("train/model_epoch_001.pth")
    status.write("Train finished successfully.")
    """
    success = {**FINISHED, "denied_by": [r"\[Multinode\] Error"]}
    done = run(bench, code, success=success, outputs=MODEL, status="train/status.json")
    assert done.outcome == "toolkit_error"
    assert "[Multinode] Error overriding configs: [Errno 30] Read-only file system" in done.reason


def test_11_a_conversion_that_does_nothing(bench: Bench) -> None:
    done = run(
        bench, "say('Unsupported conversion')", outputs=[{"name": "annotations", "path": "coco.json", "format": "json"}]
    )
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", 0)
    assert done.reason.endswith("its outputs are not right: annotations: coco.json is missing")


def test_12_a_pruning_that_prunes_nothing(bench: Bench) -> None:
    code = """
    status = Logger()
    save("pruned.hdf5")
    status.kpi = {"pruning_ratio": RATIO, "size": 42.1, "param_count": 11200000}
    status.write("Pruning ratio (pruned model / original model): %s" % RATIO)
    status.write("Pruning finished successfully.", "SUCCESS")
    """
    rules: dict[str, Any] = {
        "success": TF1,
        "metrics": {"kept": {"kpi": ["pruning_ratio"], "most": 0.98}, "parameters": {"kpi": ["param_count"]}},
    }
    done = run(bench, code.replace("RATIO", "0.99999"), **rules)
    assert (done.code, done.outcome) == (2, "rejected")
    assert done.reason == "kept 99.999 % of the parameters, at most 98 % was wanted: nothing was pruned"
    assert done.result["advice"].startswith("Prune with a larger threshold")
    assert done.result["metrics"]["kept"] == 0.99999
    done = run(bench, code.replace("RATIO", "0.42"), **rules)
    assert (done.outcome, done.result["metrics"]) == ("succeeded", {"kept": 0.42, "parameters": 11200000.0})


# --- metrics ----------------------------------------------------------------------------------------------------------

DETECTNET = """
status.kpi = {"validation cost": 0.001, "mean average precision": 83.2142}
status.categorical = {"average_precision": {"rbc": 80.5, "WBC": 99.0, "platelets": 70.1429}}
status.write("Evaluation metrics generated.")
status.write("Evaluation finished successfully.", "SUCCESS")
"""
DETECTNET_METRICS = {
    "mAP50": {"kpi": ["mean average precision"], "scale": 0.01},
    "AP50": {"classes": ["average_precision"], "scale": 0.01},
}
SSD = """
say("*" * 31)
for name, ap in (("rbc", 0.8), ("wbc", 0.99), ("platelets", 0.7)): say("{:<14}{:<6}{}".format(name, "AP", ap))
say("{:<14}{:<6}{}".format("", "mAP", 0.83))
status.kpi = {"mAP": 0.83}
status.write("Evaluation finished successfully.", "SUCCESS")
"""
SSD_METRICS = {"mAP50": {"kpi": ["mAP"]}, "AP50": {"log": r"^(\S.*?) +AP +([0-9.]+)$"}}
RTDETR = """
status.kpi = {"test_mAP": "0.5123", "test_mAP50": "0.83"}
status.write("Test metrics generated.")
status.write("Evaluate finished successfully.")
"""
RTDETR_METRICS = {"mAP50": {"kpi": ["val_mAP50", "test_mAP50"]}, "mAP": {"kpi": ["val_mAP", "test_mAP"]}}
EFFICIENTDET = """
status.kpi.update({"AP": 0.5, "AP50": 0.83, "AP_RBC": 0.4, "AP_WBC": 0.6, "AP_Platelets": 0.5})
status.write("Evaluate finished successfully.")
"""
EFFICIENTDET_METRICS = {"mAP50": {"kpi": ["AP50"]}, "mAP": {"kpi": ["AP"]}, "AP": {"prefix": "AP_"}}
DEPLOY = """
save("results.json", json.dumps({"AP_rbc": 0.8, "AP_wbc": 0.9, "AP_platelets": 0.7}))
say("                mAP   0.8")
status.write("Trt_evaluate finished successfully.")
"""
DEPLOY_METRICS = {"mAP50": {"mean": "AP50"}, "AP50": {"file": "results.json", "prefix": "AP_"}}
LOG_METRICS = {"mAP50": {"log": r"^ +mAP +([0-9.]+)$"}}
FILE = "save('results.json', json.dumps({'AP50': '83.0', 'AP': 51.0}))"
FILE_METRICS = {"mAP50": {"file": "results.json", "key": "AP50", "scale": 0.01}}


@pytest.mark.parametrize(
    ("code", "metrics", "found"),
    [
        (
            DETECTNET,
            DETECTNET_METRICS,
            {"mAP50": 0.832142, "AP50/RBC": 0.805, "AP50/WBC": 0.99, "AP50/Platelets": 0.701429},
        ),
        (SSD, SSD_METRICS, {"mAP50": 0.83, "AP50/RBC": 0.8, "AP50/WBC": 0.99, "AP50/Platelets": 0.7}),
        (RTDETR, RTDETR_METRICS, {"mAP50": 0.83, "mAP": 0.5123}),
        (
            EFFICIENTDET,
            EFFICIENTDET_METRICS,
            {"mAP50": 0.83, "mAP": 0.5, "AP/RBC": 0.4, "AP/WBC": 0.6, "AP/Platelets": 0.5},
        ),
        (DEPLOY, DEPLOY_METRICS, {"mAP50": 0.8, "AP50/RBC": 0.8, "AP50/WBC": 0.9, "AP50/Platelets": 0.7}),
        (DEPLOY, LOG_METRICS, {"mAP50": 0.8}),
        (FILE, FILE_METRICS, {"mAP50": 0.83}),
    ],
    ids=["detectnet_v2", "ssd", "rtdetr", "efficientdet_tf2", "deploy", "log", "file"],
)
@pytest.mark.parametrize("version", ["3.6", "3.11"])
def test_each_dialect_gives_the_standard_names(
    bench: Bench, code: str, metrics: dict[str, Any], found: dict[str, float], version: str
) -> None:
    code = "status = Logger()\n" + code
    done = run(bench, code, by=python(version), action="evaluate", metrics=metrics, classes=CLASSES)
    assert done.outcome == "succeeded", done.output
    assert done.result["metrics"] == pytest.approx(found)
    assert next(iter(done.result["metrics"])) == "mAP50"


def test_an_evaluation_without_its_metric_is_none(bench: Bench) -> None:
    """What an earlier attempt found does not count, and a figure that is no number is none."""
    code = """
    status = Logger()
    first = not os.path.exists(path("status.json"))
    status.kpi = {"mean average precision": 83.0 if first else float("nan")}
    status.write("Evaluation metrics generated.")
    sys.exit(1 if first else 0)
    """
    several = {"mean": "AP", "log": "mAP: (.*)", "file": "r.json", "key": "m"}
    rules: dict[str, Any] = {"action": "evaluate", "metrics": {**DETECTNET_METRICS, "mAP": several}}
    assert run(bench, code, **rules).outcome == "toolkit_error"
    done = run(bench, code, **rules)
    assert done.outcome == "toolkit_error"
    assert done.reason == (
        "the command ended with exit code 0, but "
        "no mAP50 ('mean average precision' in status.json's kpi); "
        "no AP50 ('average_precision' in its categorical); "
        "no mAP (/mAP: (.*)/ in the log, nor 'm' in r.json, nor the mean of AP/*)"
    )
    assert run(bench, "pass", metrics=DETECTNET_METRICS, action="train", key="c" * 64).outcome == "succeeded"


def test_a_class_that_the_request_does_not_know_is_left_out() -> None:
    progress = progress_of({"AP50": {"classes": ["average_precision"]}}, classes={"red_cell": "Red Cell"})
    progress.add({"categorical": {"average_precision": {"Red_Cell": 0.5, "dontcare": 0.1}}})
    assert progress.metrics == {"AP50/Red Cell": 0.5}


def test_a_limit_holds_for_any_metric(bench: Bench) -> None:
    code = "note(status='RUNNING', kpi={'size': 120.5})"
    done = run(bench, code, metrics={"megabytes": {"kpi": ["size"], "most": 100}})
    assert (done.outcome, done.reason) == ("rejected", "megabytes is 120.5, at most 100 was wanted")


# --- epochs, losses and the watches in TAO's lines --------------------------------------------------------------------


def progress_of(metrics: dict[str, Any], classes: dict[str, str] | None = None, **watch: Any) -> Progress:
    stage = Stage(
        {
            "schema": 1,
            "name": "train",
            "argv": ["x"],
            "paths": {"stage": "/s"},
            "metrics": metrics,
            "classes": classes or {},
        }
    )
    return Progress(watch, stage.metrics)


def keras(epoch: int, loss: str, **kpi: str) -> dict[str, Any]:
    """A line of TF1's TAOStatusLogger (nvidia_tao_tf1/cv/common/callbacks/loggers.py): figures are texts."""
    return {
        "epoch": epoch,
        "max_epoch": 4,
        "time_per_epoch": "0:00:10",
        "eta": "0:00:30",
        "status": "RUNNING",
        "message": "Training loop in progress",
        "graphical": {"loss": loss, "validation_loss": "9.5", "learning_rate": "0.001"},
        **({"kpi": kpi} if kpi else {}),
    }


def test_tf1_keras_lines() -> None:
    progress = progress_of({"val_mAP50": {"kpi": ["mean average precision", "mAP"]}})
    text = progress.add(keras(1, "12.5", **{"mean average precision": "0.25"}))
    assert text == "epoch 1/4  loss 12.5  eta 0:00:30"
    assert progress.last == {"epoch": 1, "max_epoch": 4, "loss": 12.5}
    assert progress.metrics == {"val_mAP50": 0.25}


def test_tf1_detectnet_lines() -> None:
    """The line comes at the first step of an epoch, so its number says how many are done; the loss is graphical."""
    progress = progress_of({})
    line = {"status": "RUNNING", "graphical": {"loss": 0.02, "learning_rate": "5e-06"}}
    assert progress.add({"epoch": 0, "max_epoch": 4, "eta": "0:00:00", **line}) == "epoch 0/4  loss 0.02  eta 0:00:00"
    progress.add({"message": "Training loop completed.", **line})
    assert progress.last == {"epoch": 0, "max_epoch": 4, "loss": 0.02}


def test_tf2_lines() -> None:
    progress = progress_of({})
    text = progress.add({"epoch": 2, "max_epoch": 4, "eta": "0:01:00.25", "loss": 0.5, "kpi": {"AP50": 0.1}})
    assert text == "epoch 2/4  loss 0.5  eta 0:01:00"
    assert progress.last == {"epoch": 2, "max_epoch": 4, "loss": 0.5}


def test_pytorch_lines_count_from_0_and_their_loss_comes_after() -> None:
    progress = progress_of({})
    epoch = {"step": 4, "max_epoch": 3, "max_step": 16, "eta": "0:00:30", "message": "Training loop in progress"}
    progress.add({"kpi": {"val_mAP50": "0.1", "val_loss": 3.0}, "message": "Eval metrics generated."})
    assert progress.add({"epoch": 0, "kpi": {"val_mAP50": "0.1", "val_loss": 3.0}, **epoch}) == "epoch 1/4  eta 0:00:30"
    progress.add({"kpi": {"train_loss": 2.5}, "message": "Train metrics generated."})
    assert progress.last == {"epoch": 1, "max_epoch": 4, "loss": 2.5}


def test_pytorch_that_resumes_repeats_no_epoch() -> None:
    progress = progress_of({})
    for epoch in range(3):
        progress.add_old({"epoch": epoch, "max_epoch": 7, "max_step": 32})
    progress.add({"epoch": 3, "max_epoch": 7, "max_step": 32})
    assert progress.last == {"epoch": 4, "max_epoch": 8, "resumed_after": 3, "repeated_epochs": 0}


def test_a_repeated_loss_is_one_report() -> None:
    progress = progress_of({}, loss_factor=50)
    for loss in ("1.0", "99.0"):
        for _ in range(4):
            progress.add({"graphical": {"loss": loss}})
    assert progress.trouble == ""
    for loss in ("98.0", "97.0"):
        progress.add({"graphical": {"loss": loss}})
    assert progress.trouble == "the loss is 97 in 3 reports in a row, more than 50 times its smallest (1)"
    progress = progress_of({})
    progress.add({"kpi": {"train_loss": float("nan")}})
    assert progress.trouble == "the loss became nan"


@pytest.mark.parametrize(
    ("kpi", "metric"),
    [({"mean average precision": 0.0}, {"scale": 0.01, "kpi": ["mean average precision"]}), ({"mAP50": "0"}, None)],
)
def test_the_zero_watch_counts_evaluations_and_no_repetitions(kpi: dict[str, Any], metric: dict[str, Any]) -> None:
    progress = progress_of({"mAP50": metric} if metric else {}, zero_metric="mAP50", zero_evaluations=3)
    for epoch in range(3):
        assert progress.trouble == ""
        progress.add({"kpi": kpi, "message": "Evaluation metrics generated."})
        if epoch < 2:
            progress.add({"epoch": 2 * epoch, "kpi": kpi})
            progress.add({"epoch": 2 * epoch + 1, "kpi": kpi})
    assert progress.trouble == "mAP50 is still 0 after 3 evaluations"


def test_the_zero_watch_counts_epoch_lines_where_these_report() -> None:
    """Keras: the epoch's line itself carries the figure; the last one is repeated when training is over."""
    progress = progress_of({"mAP50": {"kpi": ["mAP"]}}, zero_metric="mAP50", zero_evaluations=3)
    progress.add({"epoch": 1, "kpi": {"mAP": "0.0"}})
    progress.add({"epoch": 2, "kpi": {"mAP": "0.0"}})
    progress.add({"message": "Training loop complete.", "kpi": {"mAP": "0.0"}})
    assert progress.trouble == ""
    progress.add({"epoch": 3, "kpi": {"mAP": "0.0"}})
    assert progress.trouble == "mAP50 is still 0 after 3 evaluations"


# --- requests that say it wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"success": {"denied_by": ["("]}}, "request: success.denied_by: '(' is no regular expression: "),
        ({"success": {"denied_by": [3]}}, "request: success.denied_by: 3 is no regular expression: "),
        ({"success": {"status": "SUCCESS"}, "status": None}, "request: success.status and success.message need status"),
        ({"metrics": {"m": 3}}, "request: metrics.m must be object, it is 3"),
        ({"metrics": {"m": {"kpi": [3]}}}, "request: metrics.m.kpi must be texts, they are [3]"),
        ({"metrics": {"m": {}}}, "request: metrics.m.kpi, classes, log, file, prefix or mean must say where to look"),
        ({"metrics": {"m": {"log": "no group"}}}, "request: metrics.m.log must have a group"),
        ({"metrics": {"m": {"file": "a.json"}}}, "request: metrics.m.key or prefix must say what in a.json is meant"),
        ({"metrics": {"m": {"file": "../a.json", "key": "k"}}}, "request: metrics.m.file must be a relative path"),
        ({"classes": ["a"]}, "request: classes must be object, it is ['a']"),
    ],
)
def test_a_wrong_rule_is_named(bench: Bench, changes: dict[str, Any], reason: str) -> None:
    done = bench.run(bench.request("pass", **changes))
    assert done.code == 2
    assert f"error: bad_spec: {reason}" in done.output


# --- words that reach a shell -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["abc$HOME", "key; touch x", "two words", "it's-one", "st*r-key", "k\u00e9y-of-tao", "line\n"]
)
@pytest.mark.parametrize("environment", ["tao_tf1", "tao"])  # of a pipeline's stage, of operators/tao.py
def test_a_key_that_a_shell_would_change_is_refused(bench: Bench, key: str, environment: str) -> None:
    request = bench.request(LOGGER + "save('ran')", secrets=["TAO_KEY"], environment=environment)
    request["argv"] += ["-k", "{secret:TAO_KEY}"]
    done = bench.run(request, env={"REFIT_SECRET_TAO_KEY": key, "LC_ALL": "C.UTF-8"})
    assert (done.code, done.outcome) == (2, "bad_spec")
    assert done.reason.startswith("argv[6]: secret TAO_KEY (not shown) is empty or has characters other than A-Z")
    assert key not in done.output + json.dumps(done.result)
    assert not (bench.out / "ran").exists()


@pytest.mark.parametrize(("environment", "key"), [("tao_tf1", "aB3_./=:+,@%-"), ("tools", "abc$HOME; x")])
def test_a_key_that_arrives_as_it_is(bench: Bench, environment: str, key: str) -> None:
    code = "open(path('told'), 'w').write(str(len(sys.argv[3])))"
    request = bench.request(code, secrets=["TAO_KEY"], environment=environment, status=None)
    request["argv"] += ["-k", "{secret:TAO_KEY}"]
    assert bench.run(request, env={"REFIT_SECRET_TAO_KEY": key}).outcome == "succeeded"
    assert (bench.out / "told").read_text() == str(len(key))


def test_a_key_in_the_environment_reaches_no_shell(bench: Bench) -> None:
    code = "open(path('told'), 'w').write(str(len(os.environ['KEY'])))"
    request = bench.request(code, secrets=["K"], env={"KEY": "{secret:K}"}, environment="tao_pyt", status=None)
    assert bench.run(request, env={"REFIT_SECRET_K": "two words"}).outcome == "succeeded"
    assert (bench.out / "told").read_text() == "9"
