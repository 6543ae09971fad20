"""A spec in either format: read with lines, looked up, changed, written, and what changed."""

import pytest

from refit.specs import SpecError
from refit.tao.tree import Word, changes, parse

PROTOTXT = """\
# a comment
random_seed: 42
dataset_config {
  data_sources { tfrecords_path: "a/*" }
  data_sources: <
    tfrecords_path: 'b/*'
  >
  target_class_mapping { key: "Heavy Truck" value: "car" }
  target_class_mapping { key: "person" value: "person" }
  validation_fold: 0
}
training_config {
  regularizer { type: L1; weight: 3.00000002618e-09 }
  enable_qat: false, visualizer { name: "two " "parts" }
  freeze_blocks: [0, 1]
}
"""
YAML = """\
train:
  num_epochs: 10
  optim: {lr: 1e-4, name: "1e-4"}
dataset:
  sources:
    - image_dir: /a
      json_file: a.json
    - image_dir: /b
"""


def test_a_prototxt_is_read_with_its_lines() -> None:
    tree = parse(PROTOTXT, "prototxt", "train.txt")
    assert tree.value("random_seed") == 42
    assert tree.values("dataset_config.data_sources.tfrecords_path") == ["a/*", "b/*"]
    assert tree.value("dataset_config.data_sources[1].tfrecords_path") == "b/*"
    assert tree.value("dataset_config.target_class_mapping[Heavy Truck].value") == "car"
    assert tree.keys("dataset_config.target_class_mapping") == ["Heavy Truck", "person"]
    assert tree.value("training_config.visualizer.name") == "two parts"
    assert tree.values("training_config.freeze_blocks") == [0, 1]
    assert tree.line("dataset_config.data_sources[1].tfrecords_path") == 6
    assert tree.line("training_config.regularizer.nothing") == 13
    assert tree.value("training_config.nothing", "x") == "x"
    assert not tree.has("training_config.nothing")


def test_what_is_written_reads_the_same() -> None:
    tree = parse(PROTOTXT, "prototxt", "train.txt")
    again = parse(tree.text(), "prototxt", "again.txt")
    assert changes(tree, again) == []
    assert "weight: 3.00000002618e-09" in tree.text(), "a number keeps its digits"
    assert "type: L1\n" in tree.text(), "an enum is no string"
    yaml = parse(YAML, "yaml", "t.yaml")
    assert changes(yaml, parse(yaml.text(), "yaml", "t.yaml")) == []


def test_a_value_is_changed_in_its_place_and_told_with_its_line() -> None:
    before, after = (parse(PROTOTXT, "prototxt", "train.txt") for _ in range(2))
    after.put("training_config.regularizer.type", "L2")
    after.put("dataset_config.target_class_mapping[person].value", "walker")
    after.put("training_config.num_epochs", 80)
    after.put("dataset_config.data_sources", [{"tfrecords_path": 'c"/*'}])
    after.drop("dataset_config.validation_fold")
    assert changes(before, after) == [
        'train.txt:4: dataset_config.data_sources[0].tfrecords_path: "a/*" -> left out',
        'train.txt:6: dataset_config.data_sources[1].tfrecords_path: "b/*" -> left out',
        'train.txt:9: dataset_config.target_class_mapping[person].value: "person" -> "walker"',
        "train.txt:10: dataset_config.validation_fold: 0 -> left out",
        "train.txt:13: training_config.regularizer.type: L1 -> L2",
        'train.txt: dataset_config.data_sources.tfrecords_path: added: "c\\"/*"',
        "train.txt: training_config.num_epochs: added: 80",
    ]
    names = [name for name, _ in after.root.fields]
    assert names == ["random_seed", "dataset_config", "training_config"]


def test_blocks_on_the_way_and_enums_can_be_made() -> None:
    tree = parse("random_seed: 1\n", "prototxt", "a.txt")
    tree.put("training_config.optimizer.adam.epsilon", 1e-8)
    tree.put("training_config.precision", Word("FLOAT16"))
    tree.put("boxes", [{"key": "car", "value": {"min": 3}}, {"key": "dog", "value": {"min": 4}}])
    assert tree.value("boxes[dog].value.min") == 4
    assert "precision: FLOAT16" in tree.text()
    assert parse(tree.text(), "prototxt", "b").value("training_config.optimizer.adam.epsilon") == 1e-8


def test_yaml_reads_numbers_as_omegaconf_does() -> None:
    tree = parse(YAML, "yaml", "train.yaml")
    assert tree.value("train.optim") == {"lr": 1e-4, "name": "1e-4"}
    assert tree.line("dataset.sources[1].image_dir") == 8
    tree.put("dataset.sources[0].image_dir", "/c")
    tree.put("dataset.batch_size", 4)
    tree.put("train.gpu_ids", [0, 1])
    assert tree.plain()["dataset"] == {
        "sources": [{"image_dir": "/c", "json_file": "a.json"}, {"image_dir": "/b"}],
        "batch_size": 4,
    }
    assert tree.value("train.gpu_ids") == [0, 1]


def test_a_choice_that_is_not_there_is_an_error() -> None:
    tree = parse(PROTOTXT, "prototxt", "train.txt")
    with pytest.raises(KeyError, match=r"there is no target_class_mapping\[cat\]"):
        tree.put("dataset_config.target_class_mapping[cat].value", "x")
    with pytest.raises(
        KeyError, match=r"there is no target_class_mapping\[7\]; there is Heavy Truck, person; to add one"
    ):
        tree.put("dataset_config.target_class_mapping[7]", {"key": "x"})


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("a {\n b: 1\n", "prototxt", r"x:3: .*a } is missing \(opened on line 1\)"),
        ("a: 1\n}\n", "prototxt", "x:2: .*'}' closes nothing"),
        ("a {\n b: }\n", "prototxt", "x:2: .*b: a value is expected"),
        ("a {\n b ?\n}", "prototxt", r"x:2: .*cannot be read as protobuf text at '\?'"),
        ("a:\n  b: 1\n", "prototxt", "x:2: .*is this YAML?"),
        ("- a\n", "prototxt", "x:1: "),
        ("", "prototxt", "x:1: .*the spec is empty"),
        (PROTOTXT, "yaml", "protobuf text, and YAML is expected"),
        ("a: 1\na: 2\n", "yaml", "x:2: a: given twice"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(text: str, form: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(text, form, "x")  # type: ignore[arg-type]
