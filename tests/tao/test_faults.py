"""The twenty classes of fault that are found before any pod starts, as `refit validate` tells them; and docs/tao.md
says the same. Without `--data` but for those that only the data can show."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from refit.cli import BAD_INPUT, GOOD, main
from refit.cluster import Profile, load
from refit.config import Settings
from refit.tao import networks
from tests.data.helpers import kitti_line, kitti_set
from tests.tao.test_preflight import line_of, own, pipeline

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tao.md"
PRUNED = "  prune: true\n  retrain: {spec: b.txt}\n"
OBJECTS = (kitti_line("car"), kitti_line("person", 30, 6, 50, 40))
Edit = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """`said`: the class as issue 4 and docs/tao.md name it. `edits`: of the spec that Refit would make (`second`: of
    the retraining's). `more`: lines of the stages. `place`: the words of the line that is told, in the file that is."""

    said: str
    network: str
    file: str
    place: str
    message: str
    edits: tuple[Edit, ...] = ()
    second: tuple[Edit, ...] | None = None
    more: str = ""
    change: Callable[[str], str] = str
    data: bool = False


def _named(line: str) -> Callable[[str], str]:
    """A line more in the block `network`."""
    return lambda text: re.sub(r"(  name: \w+\n)", rf"\1  {line}\n", text)


WIDTH = "output_image_width: 960"
BOXES = ("minimum_height: 0", "minimum_height: 20")
PLACE = "/workspace/cars/old.hdf5"
CASES = [
    Case("misspelt key", "detectnet_v2", "a.txt", "num_epoch:", "did you mean 'num_epochs'?",
         edits=(("num_epochs:", "num_epoch:"),)),
    Case("wrong type", "rtdetr", "a.yaml", "many", "must be a whole number, not 'many'",
         edits=(("num_queries: 300", "num_queries: many"),)),
    Case("out of range", "detectnet_v2", "a.txt", "interval: -1", "must be between 0 and 4294967295, it is -1",
         edits=(("checkpoint_interval: 10", "checkpoint_interval: -1"),)),
    Case("bad choice", "rtdetr", "a.yaml", "optimizer: Adam", "'Adam' is not a choice; use AdamW",
         edits=(("optimizer: AdamW", "optimizer: Adam"),)),
    Case("key differs between specs", "faster_rcnn", "b.txt", "enc_key", "an encryption key stands here in plain text",
         edits=(("random_seed: 42", 'random_seed: 42\nenc_key: "one"'),), more=PRUNED,
         second=(("random_seed: 42", 'random_seed: 42\nenc_key: "two"'),)),
    Case("classes differ", "detectnet_v2", "a.txt", "target_classes {", "has nothing for class 'person'",
         edits=(('name: "person"', 'name: "human"'),)),
    Case("class mapped to nothing", "ssd", "a.txt", "target_class_mapping", "is mapped to nothing",
         edits=(('value: "car"', 'value: ""'),)),
    Case("num_classes against ids", "rtdetr", "cars.yaml", "num_classes", "2 classes with ids from 0 make 2",
         more="    set: {dataset.num_classes: 80}\n"),
    Case("size differs between specs", "detectnet_v2", "b.txt", "width: 640", "640 here, and 960 in ",
         edits=((WIDTH, WIDTH),), more=PRUNED, second=((WIDTH, "output_image_width: 640"),)),
    Case("size against the stride", "yolo_v4", "cars.yaml", "input_height", "400 is no multiple of 32",
         change=_named("input_height: 400")),
    Case("size against the data", "detectnet_v2", "a.txt", WIDTH, "the width is 960, and the images have",
         edits=(("    enable_auto_resize: true\n", ""),), data=True),
    Case("channels", "rtdetr", "cars.yaml", "channels", "rtdetr takes images of 3 channels, not 1",
         change=_named("channels: 1")),
    Case("extension", "detectnet_v2", "cars.yaml", "image_extension", "is 'png', and the data set has",
         change=_named("image_extension: png"), data=True),
    Case("evaluation boxes differ", "detectnet_v2", "b.txt", BOXES[1], "20 here, and 0 in ",
         edits=((WIDTH, WIDTH),), more=PRUNED, second=(BOXES,)),
    Case("pruned model not named in retrain", "detectnet_v2", "cars.yaml", PLACE, "must begin with the pruned model",
         more=f"  prune: true\n  retrain: {{set: {{model_config.pretrained_model_file: {PLACE}}}}}\n"),
    Case("QAT half on", "detectnet_v2", "a.txt", "enable_qat", "quantization-aware training is on here and off in",
         edits=(("enable_qat: false", "enable_qat: true"),)),
    Case("validation that never comes", "detectnet_v2", "a.txt", "during_training: 50", "it would never come",
         edits=(("during_training: 10", "during_training: 50"),)),
    Case("batch against images x GPUs", "detectnet_v2", "cars.yaml", "batch_size", "x 2 GPUs is more than the",
         change=lambda text: text.replace("batch_size: 4", "batch_size: 64").replace("gpus: 1", "gpus: 2"), data=True),
    Case("output exists", "rtdetr", "cars.yaml", "onnx_file", "is there already, and would be overwritten or refused",
         more="  export: {set: {export.onnx_file: HERE/cars.yaml}}\n"),
    Case("YAML for protobuf or the reverse", "detectnet_v2", "a.txt", "- image_dir", "is this YAML?"),
]  # fmt: skip


@pytest.fixture
def profile() -> Profile:
    return load("kubernetes", Settings.from_env({}))


def write(case: Case, folder: Path, profile: Profile) -> Path:
    """The pipeline file and its specs, in a folder."""
    more = case.more.replace("HERE", str(folder))
    if case.said.startswith("YAML for"):
        (folder / case.file).write_text(own("rtdetr", profile))
        more = f"    spec: {case.file}\n"
    if case.edits:
        name = "a.txt" if networks.load(case.network).format == "prototxt" else "a.yaml"
        (folder / name).write_text(own(case.network, profile, *case.edits))
        more = f"    spec: {name}\n{more}"
    if case.second is not None:
        (folder / "b.txt").write_text(own(case.network, profile, *case.second, stage="retrain"))
    file = folder / "cars.yaml"
    file.write_text(case.change(pipeline(case.network, more)))
    return file


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.said)
def test_a_class_of_fault_is_found_with_file_line_and_advice(
    case: Case, tmp_path: Path, profile: Profile, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(case, tmp_path, profile)
    data = ["--data", str(kitti_set(tmp_path / "data", 120, OBJECTS))] if case.data else []
    code = main(["validate", file.name, *data])
    said = capsys.readouterr().err
    assert code == BAD_INPUT, said
    line = line_of((tmp_path / case.file).read_text(), case.place)
    assert any(f"{case.file}:{line}: " in row and case.message in row for row in said.splitlines()), said
    if case.data:  # and nothing else is wrong with the file
        assert main(["validate", file.name]) == GOOD
    if "key" in case.said and case.network == "faster_rcnn":
        assert '"one"' not in said


def test_the_twenty_classes_stand_in_the_docs() -> None:
    rows = dict(re.findall(r"^\| ([^|`]+?) \| (?:validate|validate --data, bind) \| (.*) \|$", DOCS.read_text(), re.M))
    assert len(CASES) == 20
    for case in CASES:
        words = re.sub(r"'[^']*'|\b[\w./:]*\d[\w./:]*|/\S+", "*", case.message)
        shown = re.sub(r"'[^']*'|\b[\w./:]*\d[\w./:]*|/\S+", "*", rows[case.said])
        assert words in shown, f"{case.said}: the message is no longer as docs/tao.md has it"
