"""Every planted fault: what is wrong, which gate or stage catches it, and the test that plants it; every clean run; and
what a release under load did.

`python -m tests.planted.faults` writes the tables of docs/planted.md.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Row:
    """Of a table. `test`: file::function, or file::function[parameter] where one case of several is meant."""

    test: str

    def exists(self) -> bool:
        """Whether the file has the function, and the parameter's name where one is given."""
        file, _, rest = self.test.partition("::")
        name, _, parameter = rest.rstrip("]").partition("[")
        path = ROOT / "tests" / file
        if not path.exists():
            return False
        text = path.read_text(encoding="utf-8")
        functions = {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)}
        return name in functions and (not parameter or parameter in text)


@dataclass(frozen=True)
class Fault(Row):
    what: str
    caught_by: str
    said: str
    test: str


@dataclass(frozen=True)
class Clean(Row):
    """`anew`: what judges something new in it."""

    what: str
    anew: str
    test: str


HERE, PROVE, LADDER = "planted/test_planted.py", "prove/test_parity.py", "cpu/test_ladder.py"
GATES, WATCH, RELEASE = "refit/test_gates.py", "refit/test_runner_watch.py", "triton/test_release.py"
TAO, CLIMB = "refit/test_runner_tao.py", "tao/test_climb.py"
NAMED = f"{PROVE}::test_a_planted_mistake_is_called_by_its_name"

FAULTS = (
    # data
    Fault(
        "labels of the training part shifted",
        "gate_trained",
        "below the floor",
        f"{HERE}::test_labels_of_the_training_part_that_are_wrong[shifted]",
    ),
    Fault(
        "two classes exchanged in the training part",
        "gate_trained",
        "below the floor",
        f"{HERE}::test_labels_of_the_training_part_that_are_wrong[exchanged]",
    ),
    Fault(
        "a picture in train and in val",
        "bind",
        "duplicate_across_splits, both files (a warning; `severity` makes it stop the run)",
        f"{HERE}::test_a_picture_that_trains_and_is_evaluated",
    ),
    Fault(
        "label files with a shifted column",
        "bind",
        "every y2 is 0: a column is shifted",
        "data/test_labels.py::test_kitti_shifted_column_is_named",
    ),
    # training
    Fault(
        "a loss that is no number, or explodes",
        "the runner's watchdog",
        "diverged: the loss",
        f"{WATCH}::test_a_loss_that_is_no_number_is_ended",
    ),
    Fault(
        "mAP 0 in evaluation after evaluation",
        "the runner's watchdog",
        "diverged",
        f"{WATCH}::test_a_metric_that_stays_zero_is_ended",
    ),
    Fault("no progress while the GPU is held", "the runner's watchdog", "stalled", f"{WATCH}::test_a_stall_is_ended"),
    Fault(
        "weights that are no numbers",
        "evaluate or gate_trained",
        "no finite figure",
        f"{HERE}::test_weights_that_are_no_numbers",
    ),
    Fault(
        "a resume from another training's checkpoint",
        "train",
        "starts anew, and says why",
        "cpu/test_train.py::test_a_checkpoint_of_another_training_is_not_used",
    ),
    Fault(
        "a resume that trains nothing: TAO finds the last checkpoint of another training, and says success",
        "the runner",
        "another key's files are moved aside, so that it trains",
        f"{TAO}::test_6_a_training_that_only_found_its_checkpoint",
    ),
    Fault(
        "a resume that trains nothing under the same key: the checkpoint says that all epochs are done",
        "train",
        "nothing was trained: no weight differs",
        f"{HERE}::test_a_resume_that_trains_nothing",
    ),
    Fault(
        "the same with TAO, which says success",
        "the runner",
        "trained nothing; it had come to epoch 2 of 8",
        f"{TAO}::test_6_a_resume_that_trains_nothing_under_the_same_key",
    ),
    # pruning
    Fault(
        "pruned to nothing, or not at all",
        "prune",
        "nothing would be pruned",
        "cpu/test_prune.py::test_pruning_nothing_is_refused",
    ),
    Fault(
        "pruned by a thousandth of a per cent",
        "prune",
        "almost nothing is nothing",
        "cpu/test_search.py::test_almost_nothing_is_nothing",
    ),
    # evaluation
    Fault(
        "other boxes count than before",
        "gate_retrained",
        "evaluated with different thresholds",
        f"{HERE}::test_boxes_that_count_are_others_than_before",
    ),
    Fault(
        "figures of another data set or split",
        "every quality gate",
        "cannot be compared",
        f"{GATES}::test_figures_of_different_evaluations_are_not_compared",
    ),
    Fault(
        "the evaluation set's own boxes or pictures changed",
        "every quality gate",
        "figures of earlier runs cannot be compared; the champion is measured anew",
        f"{GATES}::test_another_evaluation_set_than_before_is_told",
    ),
    Fault(
        "worse in one class or slice only",
        "the gates that compare",
        "the class or slice by name",
        f"{GATES}::test_a_class_or_a_slice_that_lost_is_caught_and_named",
    ),
    Fault(
        "worse than what serves",
        "gate_champion",
        "worse, as far as the images show",
        f"{GATES}::test_a_challenger_loses_only_where_the_images_show_it",
    ),
    # INT8
    Fault(
        "INT8 collapses: one layer with a huge outlier",
        "quantize",
        "climbs to mixed precision, names the layers",
        f"{LADDER}::test_an_outlier_keeps_the_layers_float_that_it_passes_through",
    ),
    Fault(
        "INT8 slower than float32",
        "quantize",
        "is N times as fast as float32",
        f"{LADDER}::test_slower_is_told_and_equal_is_not",
    ),
    Fault(
        "INT8 loses one class",
        "quantize",
        "the class by name",
        f"{LADDER}::test_a_loss_in_one_class_is_enough_to_climb",
    ),
    Fault(
        "calibration on black images", "quantize", "refused", f"{LADDER}::test_calibration_on_black_images_is_refused"
    ),
    Fault(
        "calibration on images that are too dark",
        "quantize",
        "named as the cause",
        f"{LADDER}::test_calibration_on_dark_images_is_told_as_the_cause",
    ),
    Fault(
        "a calibration cache of another model, data set, version or machine",
        "quantize",
        "what differs",
        f"{LADDER}::test_a_cache_of_something_else_is_refused",
    ),
    # TAO's, in runs of the stand-in for its containers
    Fault(
        "TAO: a command that fails and ends with exit code 0",
        "the runner",
        "its log says Execution status: FAIL",
        f"{TAO}::test_1_tf2_fails_with_exit_code_0",
    ),
    Fault(
        "TAO: pruned by a thousandth of a per cent",
        "prune",
        "kept 99.999 % of the parameters",
        "tao/test_prune_search.py::test_a_prune_that_prunes_a_thousandth_of_a_per_cent_is_refused",
    ),
    Fault(
        "TAO: boxes of evaluation that differ before and after pruning",
        "preflight, before anything runs",
        "20 here, and 0 in the other spec",
        "tao/test_faults.py::test_a_class_of_fault_is_found_with_file_line_and_advice",
    ),
    Fault(
        "TAO: a calibration cache that was there already",
        "the runner",
        "its log says Using calibration cache file",
        f"{TAO}::test_8_a_calibration_cache_that_was_there_already",
    ),
    Fault(
        "a calibration cache of another model, images, TensorRT version or GPU, for an engine",
        "build_engine",
        "TensorRT version differs: it was made with 10.8.0.43",
        "engine/test_calibration.py::test_a_cache_of_something_else_is_refused",
    ),
    Fault(
        "TAO: INT8 that loses too much",
        "build_engine",
        "climbs on, and says lost 0.0200 mAP50",
        f"{CLIMB}::test_what_loses_too_much_is_tried_in_other_ways_and_a_killed_climb_goes_on",
    ),
    Fault(
        "TAO: an engine of another export, as of the model before pruning",
        "package",
        "was built from another ONNX file",
        f"{CLIMB}::test_an_engine_of_another_export_or_that_was_changed_is_not_packed",
    ),
    Fault(
        "TAO: an export of the model before pruning",
        "package",
        "as the model before pruning; what was exported or retrained is not the pruned model",
        "tao/test_prune_search.py::test_an_export_of_the_model_before_pruning_is_not_packed",
    ),
    # what clients get
    Fault("red and blue swapped", "gate_parity", "input.channel_order", f"{NAMED}[order]"),
    Fault("another scale of pixels", "gate_parity", "input.scale", f"{NAMED}[bytes]"),
    Fault("another mean and deviation", "gate_parity", "input.mean, input.std", f"{NAMED}[mean]"),
    Fault("stretched instead of letterboxed", "gate_parity", "input.resize", f"{NAMED}[letterbox]"),
    Fault("the picture in another place of the letterbox", "gate_parity", "input.place", f"{NAMED}[place]"),
    Fault("class numbers off by one", "gate_parity", "classes", f"{NAMED}[shift]"),
    Fault("outputs exchanged", "gate_parity", "the outputs coverage and bbox are exchanged", f"{NAMED}[names]"),
    Fault("another stride", "gate_parity", "stride", f"{NAMED}[stride]"),
    Fault(
        "class names in another order, in a real run",
        "gate_parity",
        "class numbers are off by",
        f"{HERE}::test_a_class_list_in_another_order_in_what_is_released",
    ),
    Fault(
        "the export of the model before pruning",
        "gate_parity",
        "does not answer as the model did",
        f"{HERE}::test_an_export_of_the_model_before_pruning",
    ),
    Fault(
        "a model that Triton cannot load",
        "prove",
        "Triton's own reason",
        f"{PROVE}::test_a_model_that_triton_cannot_load_fails_with_tritons_reason",
    ),
    Fault(
        "an ONNX file that was cut",
        "the runner, before the next stage",
        "the file by name",
        f"{HERE}::test_a_file_that_was_cut_on_the_way",
    ),
    Fault(
        "an output name that the model does not have, or a configuration for another input shape",
        "prepare_proof, release",
        "the name or shape, and what the ONNX file has",
        f"{RELEASE}::test_artefacts_that_cannot_be_used",
    ),
    Fault(
        "answers of another model than the one that was evaluated",
        "release",
        "differs from the reference",
        f"{RELEASE}::test_wrong_outputs_are_rejected",
    ),
    # release
    Fault(
        "an engine for another GPU or TensorRT",
        "release",
        "before anything is touched",
        "triton/test_plans.py::test_a_plan_that_does_not_fit_touches_nothing",
    ),
    Fault(
        "a champion that was changed by hand",
        "release, refit_reconcile",
        "somebody changed it; refit reconcile --mend",
        "triton/test_reconcile.py::test_a_champion_that_was_changed_by_hand_stops_a_release",
    ),
    Fault(
        "a version that serves unsigned, where releases are to be signed",
        "refit_reconcile, refit verify",
        "it serves unsigned; start its pipeline again, whose release signs it",
        "triton/test_verify.py::test_a_version_that_serves_unsigned_is_said_and_signed_by_its_next_release",
    ),
    Fault(
        "a version changed in repository and ledger alike, or without its signature",
        "refit verify, a roll back to it",
        "not as signed; there is no signature",
        "triton/test_verify.py::test_a_roll_back_wants_the_signature_of_the_version",
    ),
    Fault(
        "a release record altered to name another model or configuration, before it is mended back to",
        "refit_reconcile",
        "nothing was mended; its sha256 (its config) is not that of the signed card",
        "triton/test_verify.py::test_mending_does_not_believe_a_ledger_that_was_changed",
    ),
)


SELF = "planted/test_clean.py"
CALIBRATED = f"{SELF}::test_another_calibration_takes_the_champions_place_and_the_champion_its_own_again"

CLEAN = (
    Clean(
        "the run that faults are planted in: KITTI, three classes, pruned, INT8",
        "gates trained, retrained, quantized, parity",
        f"{SELF}::test_the_run_that_faults_are_planted_in",
    ),
    Clean(
        "every file touched, nothing changed",
        "bind; all else is reused",
        f"{SELF}::test_files_that_were_touched",
    ),
    Clean(
        "other pictures for the proof",
        "gate parity",
        f"{SELF}::test_other_pictures_for_the_proof",
    ),
    Clean(
        "INT8 by percentiles, without a ladder",
        "gate quantized",
        f"{SELF}::test_int8_by_percentiles_without_a_ladder",
    ),
    Clean(
        "the same run again, released as the first model",
        "release",
        f"{SELF}::test_the_same_run_again_is_released",
    ),
    Clean(
        "a float32 model against an INT8 champion",
        "gate champion",
        f"{SELF}::test_a_float_model_against_an_int8_champion",
    ),
    Clean(
        "another calibration, tried beside the champion and released in its place",
        "gates quantized, champion, parity; canary, release",
        CALIBRATED,
    ),
    Clean(
        "the run of what serves again, after a roll back to it",
        "bind: what it made serves, all is reused",
        CALIBRATED,
    ),
    Clean(
        "grey PNG of one class as VOC, another seed",
        "gate trained",
        f"{SELF}::test_grey_pictures_of_one_class_as_voc",
    ),
    Clean(
        "pictures in a letterbox, two classes, as COCO, another seed, not pruned, float32",
        "gates trained, parity",
        f"{SELF}::test_pictures_in_a_letterbox_of_two_classes_as_coco",
    ),
)


def page() -> Path:
    return ROOT / "docs" / "planted.md"


def tables() -> Mapping[str, list[str]]:
    """The lines of each table of the page, by its name there."""
    faults = [f"| {f.what} | {f.caught_by} | {f.said} | `{f.test}` |" for f in FAULTS]
    clean = [f"| {i} | {c.what} | {c.anew} | `{c.test}` |" for i, c in enumerate(CLEAN, 1)]
    return {
        "faults": ["| fault | caught by | said | planted in |", "|---|---|---|---|", *faults],
        "clean": ["| | clean run | judged anew | run in |", "|---|---|---|---|", *clean],
        "load": ["| a release under load | |", "|---|---|", *_under_load()],
    }


def _under_load() -> list[str]:
    """What benchmarks/release.py found last."""
    found = json.loads((ROOT / "benchmarks" / "results" / "release.json").read_text(encoding="utf-8"))
    load = found["under_load"]
    plain = [name for name in load["played"] if " killed at " not in name]
    killed: dict[str, list[str]] = {}
    for what, _, step in (name.partition(" killed at ") for name in load["played"] if " killed at " in name):
        killed.setdefault(what, []).append(step)
    rows = {
        "played": ", ".join(plain),
        **{f"a {what} killed after each step": ", ".join(steps) for what, steps in killed.items()},
        "requests, of four clients without a pause": f"{load['requests']:,}",
        "failed": load["failed"],
        "answered by a version that was not meant to serve": load["of_versions_not_meant"],
        "swap, from the load request to the verified inference": f"{found['swap_in_loads']} times Triton's own load",
        "way back within the watch": f"{found['back_until_first_answer_most']} s to the first answer, at most",
    }
    return [f"| {name} | {value} |" for name, value in rows.items()]


if __name__ == "__main__":
    text = page().read_text(encoding="utf-8")
    for name, lines in tables().items():
        begin, made = f"<!-- made: {name} -->\n", "".join(f"{line}\n" for line in lines)
        text = re.sub(f"{begin}.*?<!-- end -->", f"{begin}{made}<!-- end -->", text, flags=re.DOTALL)
    page().write_text(text, encoding="utf-8")
