"""TLT and TAO specs, with a notebook's mounts file: what is recognised, kept, changed, and named as a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit.tao import networks
from tests.migrate import old
from tests.migrate.conftest import Called

Refit = Callable[..., Called]


def write(folder: Path, **files: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    made = []
    for name, text in files.items():
        path = folder / f"{name}.txt"
        path.write_text(text)
        made.append(path)
    return made


def pipeline(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def line_of(path: Path, word: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if word in line)


def test_good_specs_are_a_pipeline_that_validates(refit: Refit, tmp_path: Path) -> None:
    files = write(
        tmp_path / "old",
        one=old.detectnet(retrain=True, epochs=20, start="/workspace/pruned.tlt"),
        two=old.detectnet(),
        three=old.CONVERT,
    )
    told = refit("import", *files, "--into", "new", "--name", "cars")
    assert told.code == 0, told.text
    made = pipeline(tmp_path / "new" / "cars.yaml")
    assert made["dataset"]["classes"] == ["car", "cyclist", "pedestrian"]
    assert made["dataset"]["class_map"] == {"van": "car", "person_sitting": "pedestrian"}
    assert (made["dataset"]["image_dir"], made["dataset"]["label_dir"]) == ("image_2", "label_2")
    assert made["network"] == {
        "name": "detectnet_v2", "backbone": "resnet18", "input_width": 1248, "input_height": 384,
        "image_extension": "png", "pretrained": {"ngc": "nvidia/tao/pretrained_detectnet_v2:resnet18"},
    }  # fmt: skip
    assert made["stages"]["train"] == {"spec": "cars/train.txt", "epochs": 30}
    assert made["stages"]["retrain"] == {"spec": "cars/retrain.txt", "epochs": 20}
    assert refit("validate", "new/cars.yaml").code == 0
    assert "# our cars, since 2021" in (tmp_path / "new/cars/train.txt").read_text(), "the comments are the user's"


def test_each_value_says_where_it_came_from(refit: Refit, tmp_path: Path) -> None:
    (spec,) = write(tmp_path / "old", spec=old.detectnet())
    assert refit("import", spec, "--into", "new", "--name", "cars").code == 0
    text = (tmp_path / "new/cars.yaml").read_text()
    for key, field in (("epochs", "num_epochs"), ("input_width", "output_image_width")):
        row = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
        assert f"{spec}:{line_of(spec, field)}" in row


def test_what_refit_will_change_is_printed(refit: Refit, tmp_path: Path) -> None:
    (spec,) = write(tmp_path / "old", spec=old.detectnet())
    told = refit("import", spec, "--into", "new", "--name", "cars")
    at = line_of(spec, "tfrecords_path")
    row = next(line for line in told.out.splitlines() if f"cars/train.txt:{at}: " in line)
    assert '"/workspace/tfrecords/*" ->' in row
    assert "{input:dataset_convert_train}/records/" in row


def faulty(tmp_path: Path) -> list[Path]:
    """The FasterRCNN notebook's files, with the faults that they had."""
    return write(
        tmp_path / "old",
        train=old.frcnn(labels=("person", "cat", "dog"), size=(640, 384), extension="jpg", qat=True),
        retrain=old.frcnn(retrain=True, key="another-key-for-nobody", labels=("car", "person", "cyclist")),
    )


def test_specs_that_contradict_each_other_are_written_and_named_by_validate(refit: Refit, tmp_path: Path) -> None:
    train, retrain = faulty(tmp_path)
    told = refit("import", train, retrain, "--into", "new", "--name", "cars")
    assert told.code == 0, told.text
    judged = refit("validate", "new/cars.yaml")
    assert judged.code == 2
    kept = tmp_path / "new/cars/retrain.txt"
    mapping, width = line_of(kept, "target_class_mapping"), line_of(kept, "width: 1248")
    for fault in (
        f"cars/retrain.txt:{width}: model_config.input_image_config.size_height_width.width: the",
        f"cars/retrain.txt:{mapping}: dataset_config.target_class_mapping: class 'cat' of the data set is mapped",
        f"cars/retrain.txt:{mapping}: dataset_config.target_class_mapping: the mapping of classes: ",
    ):
        assert fault in judged.err


def test_import_names_both_places_of_a_contradiction(refit: Refit, tmp_path: Path) -> None:
    """Also of what Refit will set in both specs, where validate sees no difference: the extension and the key."""
    train, retrain = faulty(tmp_path)
    told = refit("import", train, retrain, "--into", "new", "--name", "cars")
    for what, field in (("the images' extension: png; and jpg", "image_extension"), ("the input's width", " width:")):
        assert f"{retrain}:{line_of(retrain, field)}: " in told.out
        row = next(line for line in told.out.splitlines() if what in line)
        assert f"{train}:{line_of(train, field)}" in row
    assert f"{train}:2, {retrain}:2: 2 different keys" in told.out


def test_boxes_that_count_before_and_after_pruning(refit: Refit, tmp_path: Path) -> None:
    files = write(
        tmp_path / "old",
        train=old.detectnet(box=(5, 5)),
        retrain=old.detectnet(retrain=True, box=(20, 10), start="/workspace/pruned.tlt"),
    )
    told = refit("import", *files, "--into", "new", "--name", "cars")
    assert told.code == 0
    assert "car of at least 20x10" in told.out
    assert "car of at least 5x5" in told.out
    at = line_of(tmp_path / "new/cars/retrain.txt", "minimum_height: 10")
    judged = refit("validate", "new/cars.yaml")
    place = "evaluation_config.evaluation_box_config[car].value.minimum_height"
    assert f"cars/retrain.txt:{at}: {place}: the boxes that count" in judged.err


@pytest.mark.parametrize(
    ("on", "blocks"),
    [
        ((True, True), ("train", "retrain")),
        ((False, False), ()),
        ((False, True), ("retrain",)),
        ((True, False), ("train",)),
    ],
)
def test_each_training_is_quantization_aware_as_its_spec_says(
    refit: Refit, tmp_path: Path, on: tuple[bool, bool], blocks: tuple[str, ...]
) -> None:
    files = write(tmp_path / "old", a=old.frcnn(qat=on[0]), b=old.frcnn(retrain=True, qat=on[1]))
    told = refit("import", *files, "--into", "new", "--name", "cars")
    made = pipeline(tmp_path / "new/cars.yaml")
    assert tuple(b for b in ("train", "retrain") if made["stages"][b].get("qat")) == blocks
    assert made["stages"]["build_engine"].get("int8") == ("qat" if on[1] else None)
    assert ("quantization-aware training is on" in told.out) == bool(blocks), "a regular spec with QAT on is told"
    assert refit("validate", "new/cars.yaml").code == 0


@pytest.mark.parametrize(
    ("network", "old_text", "new_text"),
    [
        ("ssd", "ssd_config {", "dssd_config {\n  pred_num_channels: 512"),
        ("yolo_v4", 'arch: "cspdarknet"\n  nlayers: 53', 'arch: "cspdarknet_tiny_3l"'),
    ],
)
def test_dssd_and_tiny_yolo_are_imported_as_what_they_are_variants_of(
    refit: Refit, tmp_path: Path, network: str, old_text: str, new_text: str
) -> None:
    text = networks.template(networks.folder(network), "train.txt")
    assert old_text in text
    classes = "".join(f'  target_class_mapping {{ key: "{name}" value: "{name}" }}\n' for name in ("car", "person"))
    text = text.replace(old_text, new_text).replace("dataset_config {", f"dataset_config {{\n{classes}", 1)
    (tmp_path / "train.txt").write_text(text)
    told = refit("import", tmp_path / "train.txt", "--into", "new", "--name", "cars")
    assert told.code == 0, told.text
    made = pipeline(tmp_path / "new/cars.yaml")
    assert made["network"]["name"] == network
    assert "backbone" not in made["network"]
    assert refit("validate", "new/cars.yaml").code == 0


@pytest.mark.parametrize("network", networks.known())
def test_the_network_is_told_by_content(refit: Refit, tmp_path: Path, network: str) -> None:
    facts = networks.load(network)
    text = networks.template(networks.folder(network), facts.specs["train"].file)
    spec = tmp_path / "some-file.txt"
    spec.write_text(text)
    told = refit("import", spec, "--into", "new", "--name", "x", "--classes", "car,person")
    if network in ("dino", "deformable_detr") and told.code:
        assert "--network" in told.err, "their specs may be the same; then it asks"
        told = refit("import", spec, "--into", "new", "--name", "x", "--classes", "car,person", "--network", network)
    assert told.code == 0, told.text
    made = pipeline(tmp_path / "new/x.yaml")
    assert made["network"]["name"] == network
    assert made["dataset"]["classes"] == ["car", "person"]


def test_a_label_that_only_other_labels_lead_to_is_mapped_too(refit: Refit, tmp_path: Path) -> None:
    """Refit writes labels with the classes' names: a spec that only has pedestrian -> person must know 'person' too."""
    (spec,) = write(tmp_path / "old", spec=old.detectnet(labels={"car": "car", "pedestrian": "person"}))
    assert refit("import", spec, "--into", "new", "--name", "cars").code == 0
    assert pipeline(tmp_path / "new/cars.yaml")["dataset"]["class_map"] == {"pedestrian": "person"}
    assert f"{spec}:{line_of(spec, 'target_class_mapping')} " in (tmp_path / "new/cars.yaml").read_text()
    text = (tmp_path / "new/cars/train.txt").read_text()
    assert 'target_class_mapping { key: "person" value: "person" }' in text
    assert "# our cars" in text
    assert refit("validate", "new/cars.yaml").code == 0


def test_names_in_the_label_files(refit: Refit, tmp_path: Path) -> None:
    """TAO lowers the case of labels and skips those that it does not know; Refit is told so."""
    host = tmp_path / "host"
    labels = host / "data/training/label_2"
    labels.mkdir(parents=True)
    row = " 0.0 0 0.0 1 1 50 50 0 0 0 0 0 0 0\n"
    (labels / "1.txt").write_text("Car" + row + "Tram" + row + "DontCare" + row)
    mounts = tmp_path / "mounts.json"
    mounts.write_text(json.dumps({"Mounts": [{"source": str(host), "destination": "/workspace"}]}))
    files = write(tmp_path / "old", spec=old.detectnet(), convert=old.CONVERT)
    told = refit("import", *files, mounts, "--into", "new", "--name", "cars")
    made = pipeline(tmp_path / "new/cars.yaml")["dataset"]
    assert made["source"] == str(host / "data/training")
    assert made["class_map"] == {"van": "car", "person_sitting": "pedestrian", "Car": "car", "Tram": None}
    assert "'Tram' (1 objects) is in no mapping" in told.out


def test_offline_augmentation(refit: Refit, tmp_path: Path) -> None:
    files = write(tmp_path / "old", spec=old.detectnet(), augment=old.AUGMENT)
    told = refit("import", *files, "--into", "new", "--name", "cars")
    assert told.code == 0, told.text
    assert pipeline(tmp_path / "new/cars.yaml")["stages"]["augment"] == {
        "rotate_degrees": 10.0, "hflip": True, "hue_degrees": 5.0, "saturation": 1.0, "blur_size": 5, "blur_std": 1.5,
    }  # fmt: skip
    assert f"{files[1]}:4: spatial_config.shear_config.shear_ratio_x: is not carried over" in told.out
    assert refit("validate", "new/cars.yaml").code == 0


def test_an_inference_spec_whose_default_serves_the_other_classes(refit: Refit, tmp_path: Path) -> None:
    files = write(tmp_path / "old", spec=old.detectnet(), infer=old.INFERENCE)
    assert refit("import", *files, "--into", "new", "--name", "cars").code == 0
    assert pipeline(tmp_path / "new/cars.yaml")["stages"]["inference"] == {"spec": "cars/inference.txt"}
    judged = refit("validate", "new/cars.yaml")
    assert judged.code == 0, judged.err


def test_mounts_map_the_paths_of_specs(refit: Refit, tmp_path: Path) -> None:
    (spec,) = write(tmp_path / "old", spec=old.frcnn())
    mounts = tmp_path / "tlt_mounts.json"
    mounts.write_text(old.MOUNTS.replace("HOST", "/srv/tlt").replace("SECRET", old.KEY))
    told = refit("import", mounts, spec, "--into", "new", "--name", "cars")
    assert told.code == 0
    text = (tmp_path / "new/cars/train.txt").read_text()
    assert "/workspace/" not in text
    assert 'image_directory_path: "/srv/tlt/data/training"' in text
    assert pipeline(tmp_path / "new/cars.yaml")["dataset"]["source"] == "/srv/tlt/data/training"
    assert "Envs: CUDA_VISIBLE_DEVICES=0" in told.out
    assert "Envs: KEY=(taken out: a secret)" in told.out
    assert "DockerOptions.user=1000:1000" in (tmp_path / "new/cars.yaml").read_text()
    judged = refit("validate", "new/cars.yaml")
    assert judged.code == 0, "no stage is left with a model's old place: " + judged.err


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ('"destination": "/workspace/tlt-experiments"}', "Mounts[0].destination: 'tlt' is no absolute path"),
        ('"source": "HOST", ', "Mounts[0]: needs source and destination"),
    ],
)
def test_a_mounts_file_with_faults(refit: Refit, tmp_path: Path, edit: str, told: str) -> None:
    mounts = tmp_path / "mounts.json"
    mounts.write_text(old.MOUNTS.replace(edit, '"destination": "tlt"}' if "destination" in edit else "", 1))
    (spec,) = write(tmp_path / "old", spec=old.frcnn())
    called = refit("import", mounts, spec, "--into", "new")
    assert called.code == 2
    assert f"{mounts}: {told}" in called.err


# --- fields that went away --------------------------------------------------------------------------------------------

SSD = networks.template(networks.folder("ssd"), "train.txt")


def test_fields_that_went_to_another_place(refit: Refit, tmp_path: Path) -> None:
    """SSD of TLT 2.0 had DetectNet_v2's augmentation and data set."""
    begin, end = SSD.index("augmentation_config {"), SSD.index("}\n", SSD.index("augmentation_config {")) + 2
    text = SSD[:begin] + (
        "augmentation_config {\n  preprocessing {\n    output_image_width: 320\n    output_image_height: 288\n"
        "    output_image_channel: 3\n  }\n  spatial_augmentation { hflip_probability: 0.25 zoom_min: 1.0 }\n}\n"
    ) + SSD[end:]  # fmt: skip
    text = text.replace("dataset_config {\n", 'dataset_config {\n  image_extension: "png"\n  validation_fold: 0\n')
    (spec,) = write(tmp_path / "old", spec=text)
    told = refit("import", spec, "--into", "new", "--name", "cars", "--classes", "car,person")
    assert told.code == 0, told.text
    at = line_of(spec, "preprocessing")
    assert f"{spec}:{at}: augmentation_config.preprocessing: left out: " in told.out
    assert f"{spec}:{line_of(spec, 'validation_fold')}: dataset_config.validation_fold: left out" in told.out
    kept = (tmp_path / "new/cars/train.txt").read_text()
    for now in ("output_width: 320", "output_height: 288", "random_flip: 0.25"):
        assert now in kept
    judged = refit("validate", "new/cars.yaml")
    assert "unknown key" not in judged.text


def test_a_misspelt_field_is_no_field_that_went_away(refit: Refit, tmp_path: Path) -> None:
    (spec,) = write(tmp_path / "old", spec=old.detectnet().replace("num_epochs:", "num_epoch:"))
    assert refit("import", spec, "--into", "new", "--name", "cars").code == 0
    kept = tmp_path / "new/cars/train.txt"
    judged = refit("validate", "new/cars.yaml")
    assert f"cars/train.txt:{line_of(kept, 'num_epoch:')}: training_config.num_epoch: unknown key" in judged.err


# --- what cannot be imported ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"frames": [{"path": "a.jpg", "boxes": []}]}', "Drip's metadata.json: import reads specs; this is data"),
        ('{"classes": [{"title": "car"}]}', "Supervisely's meta.json: import reads specs"),
        ('{"objects": [], "size": {}}', "an annotation of Supervisely: import reads specs"),
        ('{"images": [], "annotations": []}', "check its folder (`refit dataset check FOLDER`)"),
        ('{"dbscan_eps": 0.3}', "the cluster parameters of tlt-infer"),
        ('{"a": 1}', "JSON that import does not know"),
        ("yolov3_config {\n  arch: \"resnet\"\n}\n", "YOLOv3, which Refit does not train"),
        ("train_config {\n  batch_size: 12\n}\nmodel {\n}\n", "TensorFlow's Object Detection API"),
        ("network_config {\n  feature_extractor: \"resnet:50\"\n}\n", "network_config is of TLT 1.0's FasterRCNN"),
        ("item {\n  id: 1\n  name: \"car\"\n}\n", "a label map of TensorFlow: its names, for --classes: car"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,1,1,car,0,0,1,1\n", "the CSV of TensorFlow's Object"),
        ('{"cells": [], "nbformat": 4}', "a notebook: name the specs"),
        ("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(11)), "more than 20 aliases"),
        ("some: thing\n", "no spec that import knows"),
        ("model_config {\n  arch: \"resnet\"\n", "ends inside a block"),
    ],
)  # fmt: skip
def test_what_import_cannot_read_is_said(refit: Refit, tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "file.txt"
    file.write_text(text)
    called = refit("import", file, "--into", "new")
    assert called.code == 2
    assert called.err.startswith(f"error: {file}")
    assert told in called.err
    assert not (tmp_path / "new").exists()


def test_two_trainings_are_asked_about(refit: Refit, tmp_path: Path) -> None:
    one, two = write(tmp_path / "old", one=old.detectnet(), two=old.detectnet())
    called = refit("import", one, two, "--into", "new")
    assert called.code == 2
    assert f"train={one} retrain={two}" in called.err
    assert refit("import", f"train={one}", f"retrain={two}", "--into", "new", "--name", "cars").code == 0
    assert refit("import", f"trian={one}", "--into", "new").err == (
        f"error: trian={one}: 'trian' is no role of a spec; did you mean 'train'?\n"
    )


def test_specs_of_two_networks(refit: Refit, tmp_path: Path) -> None:
    files = write(tmp_path / "old", one=old.detectnet(), two=old.frcnn(retrain=True))
    called = refit("import", *files, "--into", "new")
    assert called.code == 2
    assert "of several networks (detectnet_v2, faster_rcnn)" in called.err


def test_classes_that_no_file_names(refit: Refit, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(networks.template(networks.folder("rtdetr"), "experiment.yaml"))
    called = refit("import", spec, "--into", "new")
    assert called.code == 2
    assert "--classes" in called.err
    assert not (tmp_path / "new").exists()


def test_a_folder_of_specs_may_hold_other_files(refit: Refit, tmp_path: Path) -> None:
    folder = tmp_path / "specs"
    write(folder, train=old.detectnet(), convert=old.CONVERT, readme="How we train our cars.\n")
    told = refit("import", folder, "--into", "new", "--name", "cars")
    assert told.code == 0, told.text
    assert f"note: left aside: {folder / 'readme.txt'}:1: " in told.out
    assert sorted(p.name for p in (tmp_path / "new/cars").iterdir()) == ["dataset_convert.txt", "train.txt"]


def test_a_file_that_is_nested_without_end(refit: Refit, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("a {" * 5000)
    told = refit("import", file, "--into", "new")
    assert told.code == 2
    assert "nested too deeply" in told.err


def test_a_folder_with_a_spec_for_each_command(refit: Refit, tmp_path: Path) -> None:
    """TAO 5's notebooks have one for each; the training's is read by all in Refit. ??? stands for weights to come."""
    folder = tmp_path / "specs"
    folder.mkdir()
    text = networks.template(networks.folder("dino"), "experiment.yaml")
    assert "model:\n" in text
    (folder / "train.yaml").write_text(text.replace("model:\n", "model:\n  pretrained_backbone_path: ???\n", 1))
    (folder / "evaluate.yaml").write_text(
        "evaluate:\n  checkpoint: /results/dino_model_latest.pth\ndataset:\n  workers: 8\n"
    )
    told = refit("import", folder, "--into", "new", "--name", "x", "--classes", "car", "--network", "dino")
    assert told.code == 0, told.text
    assert f"left aside: {folder / 'evaluate.yaml'}: is a spec of evaluate alone" in told.out
    assert "model.pretrained_backbone_path: left out: it names no weights" in told.out
    assert refit("validate", "new/x.yaml").code == 0


def test_specs_of_several_models_are_not_mixed(refit: Refit, tmp_path: Path) -> None:
    """NVIDIA's folders hold a spec for each backbone, or for each command."""
    one, two = write(tmp_path / "old", one=old.detectnet(), two=old.detectnet(epochs=20))
    told = refit("import", tmp_path / "old", "--into", "new")
    assert told.code == 2
    assert f"{two} and {one} are both of the role train; " in told.err
    assert f"say train={one} retrain={two}, or give the files of one model" in told.err
    text = networks.template(networks.folder("rtdetr"), "experiment.yaml")
    (tmp_path / "whole.yaml").write_text(text)
    told = refit("import", tmp_path / "whole.yaml", f"train={tmp_path / 'whole.yaml'}", "--network", "rtdetr")
    assert told.code == 2
    assert "are both of the role train; give the files of one model" in told.err, "it has no retraining"


def test_where_coco_annotations_go_is_told(refit: Refit, tmp_path: Path) -> None:
    spec = tmp_path / "train.yaml"
    spec.write_text(networks.template(networks.folder("rtdetr"), "experiment.yaml"))
    told = refit("import", spec, "--into", "new", "--name", "x", "--classes", "car", "--network", "rtdetr")
    assert told.code == 0, told.text
    line = line_of(spec, "json_file")
    where = f"{spec}:{line}: dataset.train_data_sources[0].json_file"
    assert f"note: {where}: the data are COCO annotations: put them and their images into dataset.source" in told.out


def test_a_place_that_each_command_sets_is_told_once(refit: Refit, tmp_path: Path) -> None:
    spec = tmp_path / "train.yaml"
    text = networks.template(networks.folder("rtdetr"), "experiment.yaml")
    spec.write_text(text.replace("evaluate:\n", "evaluate:\n  checkpoint: model.pth\n", 1))
    told = refit("import", spec, "--into", "new", "--name", "x", "--classes", "car", "--network", "rtdetr")
    assert told.code == 0, told.text
    told_of = [line for line in told.out.splitlines() if "evaluate.checkpoint: " in line and "x/train.yaml" in line]
    assert len(told_of) == 1
    assert "{input:train.model}" in told_of[0], "not that the training does without it"
