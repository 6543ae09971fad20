"""Every planted fault: what is wrong, which gate or stage catches it, and the test that plants it.

`python -m tests.planted.faults` writes the table of docs/planted.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- made: faults -->\n", "<!-- end -->"


@dataclass(frozen=True)
class Fault:
    """`test`: file::function, or file::function[parameter] where one case of several plants it."""

    what: str
    caught_by: str
    said: str
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


HERE, PROVE, LADDER = "planted/test_planted.py", "prove/test_parity.py", "cpu/test_ladder.py"
GATES, WATCH, RELEASE = "refit/test_gates.py", "refit/test_runner_watch.py", "triton/test_release.py"
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
    # what clients get
    Fault("red and blue swapped", "gate_parity", "input.channel_order", f"{NAMED}[order]"),
    Fault("another scale of pixels", "gate_parity", "input.scale", f"{NAMED}[bytes]"),
    Fault("another mean and deviation", "gate_parity", "input.mean, input.std", f"{NAMED}[mean]"),
    Fault("stretched instead of letterboxed", "gate_parity", "input.resize", f"{NAMED}[letterbox]"),
    Fault("the picture in another place of the letterbox", "gate_parity", "input.place", f"{NAMED}[place]"),
    Fault("class numbers off by one", "gate_parity", "classes", f"{NAMED}[shift]"),
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
)


def page() -> Path:
    return ROOT / "docs" / "planted.md"


def table() -> Iterator[str]:
    yield "| fault | caught by | said | planted in |"
    yield "|---|---|---|---|"
    for f in FAULTS:
        yield f"| {f.what} | {f.caught_by} | {f.said} | `{f.test}` |"


if __name__ == "__main__":
    text = page().read_text(encoding="utf-8")
    made = "".join(f"{line}\n" for line in table())
    page().write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: BEGIN + made + END, text, flags=re.DOTALL), encoding="utf-8")
