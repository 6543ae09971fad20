"""The stand-ins for TAO's containers: every program and task runs under the real runner, and they lie when told to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx.reference import ReferenceEvaluator

from tests.refit.runner_helpers import Bench, Done
from tests.tao.standin.__main__ import IMAGES
from tests.tao.standin.files import Model, read_plan

CLASSES = ("RBC", "WBC")
PICTURE = b"\xff\xd8 a picture \xff\xd9"
KITTI = "{} 0.00 0 0.00 1.00 2.00 30.00 40.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00\n"
TF1 = {"status": "SUCCESS", "denied_by": ["Execution status: FAIL"]}
FINISHED = {"message": "finished successfully", "denied_by": ["Execution status: FAIL"]}
CONVERT = """
kitti_config {{ root_directory_path: "{data}/{split}" image_dir_name: "images" label_dir_name: "labels"
  image_extension: ".jpg" partition_mode: "random" num_partitions: 2 num_shards: 2 val_split: 0 }}
image_directory_path: "{data}/{split}"
"""
MAPPING = "".join(f'target_class_mapping {{{{ key: "{c}" value: "{c}" }}}} ' for c in CLASSES)
SOURCES = 'tfrecords_path: "{train}/part-fold*" image_directory_path: "{data}/train"'
VALIDATION = 'tfrecords_path: "{val}/part-fold*" image_directory_path: "{data}/val"'
FIELDS = {
    "detectnet_v2": """
        dataset_config {{ data_sources {{ SOURCES }} validation_data_source {{ VALIDATION }} MAPPING }}
        cost_function_config {{ target_classes {{ name: "RBC" }} target_classes {{ name: "WBC" }} }}
        augmentation_config {{ preprocessing {{ output_image_width: 96 output_image_height: 64 }} }}
        evaluation_config {{ validation_period_during_training: 2 first_validation_epoch: 2 }}
        model_config {{ pretrained_model_file: "{start}" load_graph: {pruned} arch: "resnet" num_layers: 18 }}
        training_config {{ num_epochs: {epochs} checkpoint_interval: 2 enable_qat: {qat} }}
        inferencer_config {{ image_width: 96 }}
    """,
    "faster_rcnn": """
        dataset_config {{ data_sources {{ SOURCES }} validation_data_source {{ VALIDATION }} MAPPING }}
        augmentation_config {{ preprocessing {{ output_image_width: 192 output_image_height: 160 }} }}
        model_config {{ arch: "resnet:18" }}
        training_config {{ {start_field}: "{start}" num_epochs: {epochs} checkpoint_interval: 1 }}
        inference_config {{ images_dir: "{data}/val/images" detection_image_output_dir: "{out}/images_annotated"
          labels_dump_dir: "{out}/labels" rcnn_nms_max_boxes: 10 }}
    """,
    "ssd": """
        dataset_config {{ data_sources {{ SOURCES }} MAPPING
          validation_data_sources {{
            label_directory_path: "{data}/val/labels" image_directory_path: "{data}/val/images" }} }}
        augmentation_config {{ output_width: 96 output_height: 64 output_channel: 3 }}
        ssd_config {{ arch: "resnet" nlayers: 18 }} nms_config {{ top_k: 10 }}
        training_config {{ num_epochs: {epochs} }}
    """,
    "yolo_v4": """
        dataset_config {{ data_sources {{ SOURCES }} validation_data_sources {{ VALIDATION }} MAPPING }}
        augmentation_config {{ output_width: 96 output_height: 64 }}
        yolov4_config {{ arch: "cspdarknet" nlayers: 19 }} nms_config {{ top_k: 10 }}
        training_config {{ {start_field}: "{start}" num_epochs: {epochs} }}
    """,
}
FIELDS = {
    name: text.replace("SOURCES", SOURCES).replace("VALIDATION", VALIDATION).replace("MAPPING", MAPPING)
    for name, text in FIELDS.items()
}
START = {"faster_rcnn": ("pretrained_weights", "retrain_pruned_model")}
CHECKPOINTS = {
    "detectnet_v2": "weights/model.hdf5",
    "faster_rcnn": "frcnn_resnet_18.epoch_*.hdf5",
    "ssd": "weights/ssd_resnet18_epoch_*.hdf5",
    "yolo_v4": "weights/yolov4_cspdarknet19_epoch_*.hdf5",
    "efficientdet_tf2": "efficientdet-d0_*.tlt",
}
PERCENT = {"mAP50": {"kpi": ["mean average precision"], "scale": 0.01}, "AP50": {"classes": ["average_precision"]}}
FRACTION = {"mAP50": {"kpi": ["mAP"]}, "AP50": {"log": r"^(\S.*?) +AP +([0-9.]+)$"}}
# Input, and the outputs with their types and shapes per image, as NVIDIA's exporters name them.
TENSORS: dict[str, tuple[str, dict[str, tuple[str, tuple[int, ...]]]]] = {
    "detectnet_v2": (
        "input_1:0",
        {"output_bbox/BiasAdd:0": ("float32", (8, 4, 6)), "output_cov/Sigmoid:0": ("float32", (2, 4, 6))},
    ),
    "faster_rcnn": ("input_image", {"nms_out": ("float32", (1, 10, 7)), "nms_out_1": ("float32", (1, 1, 1))}),
    "ssd": ("Input", {"NMS": ("float32", (1, 10, 7)), "NMS_1": ("float32", (1, 1, 1))}),
    "yolo_v4": (
        "Input",
        {
            "BatchedNMS": ("int32", (1,)),
            "BatchedNMS_1": ("float32", (10, 4)),
            "BatchedNMS_2": ("float32", (10,)),
            "BatchedNMS_3": ("float32", (10,)),
        },
    ),
    "efficientdet_tf2": (
        "input",
        {
            "num_detections": ("int32", (1,)),
            "detection_boxes": ("float32", (10, 4)),
            "detection_scores": ("float32", (10,)),
            "detection_classes": ("int32", (10,)),
        },
    ),
    "rtdetr": ("inputs", {"pred_logits": ("float32", (10, 2)), "pred_boxes": ("float32", (10, 4))}),
    "dino": ("inputs", {"pred_logits": ("float32", (10, 3)), "pred_boxes": ("float32", (10, 4))}),
}
TENSORS["deformable_detr"] = TENSORS["dino"]


class Container:
    """Runs stages one after the other, each in a folder of its own. `data` holds six pictures a split."""

    def __init__(self, root: Path, programs: Path) -> None:
        self.root, self.data = root, root / "data"
        self.env = {"PATH": f"{programs}:{os.environ['PATH']}"}
        self.stages: dict[str, Path] = {}
        for split in ("train", "val"):
            for folder in ("images", "labels"):
                (self.data / split / folder).mkdir(parents=True)
            coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
            for i in range(6):
                (self.data / split / "images" / f"{i}.jpg").write_bytes(PICTURE)
                (self.data / split / "labels" / f"{i}.txt").write_text("".join(KITTI.format(c) for c in CLASSES))
                coco["images"].append({"id": i, "file_name": f"{i}.jpg", "width": 96, "height": 64})
                coco["annotations"] += [
                    {"id": 2 * i + c, "image_id": i, "category_id": c, "bbox": [1, 2, 29, 38]} for c in (0, 1)
                ]
            for first in (0, 1):
                coco["categories"] = [{"id": first + i, "name": name} for i, name in enumerate(CLASSES)]
                moved = [{**a, "category_id": a["category_id"] + first} for a in coco["annotations"]]
                (self.data / f"{split}{first}.json").write_text(json.dumps({**coco, "annotations": moved}))
        (self.data / "classmap.txt").write_text("\n".join(CLASSES))
        (self.data / "labels.yaml").write_text(yaml.safe_dump(dict(enumerate(CLASSES, 1))))

    def out(self, name: str) -> Path:
        return self.stages[name] / "out"

    def run(
        self,
        name: str,
        argv: list[str],
        outputs: list[str],
        *,
        spec: str = "",
        env: dict[str, str] | None = None,
        **more: Any,
    ) -> Done:
        """`{spec}` in argv is the spec's path."""
        with Bench(self.root) as bench:
            bench.folder = bench.run_dir / name
            self.stages[name] = bench.folder
            request = bench.request(
                name=name,
                argv=[word.replace("{spec}", "{specs}/spec") for word in argv],
                files={"spec": spec} if spec else {},
                paths={"workspace": str(self.root), "run": str(bench.run_dir), "stage": str(bench.folder)},
                outputs=[
                    {"name": str(i), "path": path, "pick": "newest"} | _kind(path) for i, path in enumerate(outputs)
                ],
                classes={name.lower(): name for name in CLASSES},
                resume=False,
                **more,
            )
            return bench.run(request, env={**self.env, **(env or {})})

    def good(self, name: str, argv: list[str], outputs: list[str], **more: Any) -> dict[str, Any]:
        """The result of a stage that must succeed."""
        done = self.run(name, argv, outputs, **more)
        assert done.outcome == "succeeded", done.output
        return dict(done.result)

    def output(self, name: str, pattern: str) -> str:
        return str(max(self.out(name).glob(pattern)))

    def tf1_spec(self, program: str, **changes: Any) -> str:
        fields = START.get(program, ("pretrain_model_path", "pruned_model_path"))
        values = {
            "data": self.data,
            "train": self.out("convert_train") / "records" if "convert_train" in self.stages else "none",
            "val": self.out("convert_val") / "records" if "convert_val" in self.stages else "none",
            "start": "",
            "pruned": "false",
            "epochs": 2,
            "qat": "false",
            "out": "none",
            **changes,
        }
        values["start_field"] = fields[values["pruned"] == "true"]
        return FIELDS[program].format(**values)

    def convert(self, program: str) -> None:
        for split in ("train", "val"):
            argv = [program, "dataset_convert", "-d", "{spec}", "-o", "{out}/records/part", "-r", "{out}"]
            spec = CONVERT.format(data=self.data, split=split)
            self.good(f"convert_{split}", argv, ["records"], spec=spec, success=TF1)

    def tf1_train(self, program: str, name: str = "train", **spec: Any) -> dict[str, Any]:
        argv = [program, "train", "-e", "{spec}", "-r", "{out}", "--gpus", "1"]
        argv += ["-m", spec["start"]] if program == "ssd" and "start" in spec else []
        text = self.tf1_spec(program, **spec)
        found = {"mAP50": {"kpi": ["mean average precision"], "scale": 0.01 if program == "detectnet_v2" else 1}}
        return self.good(name, argv, [CHECKPOINTS[program]], spec=text, success=TF1, metrics=found)


def _kind(path: str) -> dict[str, str]:
    if path == "records":
        return {"kind": "dir", "format": "tfrecord"}
    if path in {"images", "images_annotated", "labels"}:
        return {"kind": "dir"}
    return {"format": {"onnx": "onnx", "json": "json"}.get(path.rpartition(".")[2], "any")}


@pytest.fixture
def container(tmp_path: Path, programs: Path) -> Container:
    return Container(tmp_path, programs)


def check_model(path: str, program: str) -> None:
    """Tensors by name, type and shape; a batch of two; other pictures, other answers."""
    name, wanted = TENSORS[program]
    model = onnx.load(path)
    assert [i.name for i in model.graph.input] == [name]
    shape = [d.dim_value or d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape[0] == "N"
    dark = np.zeros((1, *shape[1:]), dtype=np.float32)
    batch = np.concatenate([dark, dark + 1])
    names = [output.name for output in model.graph.output]
    outputs = dict(zip(names, ReferenceEvaluator(model).run(None, {name: batch}), strict=True))
    assert {k: (str(v.dtype), v.shape[1:]) for k, v in outputs.items()} == wanted
    assert all(len(v) == 2 for v in outputs.values())
    assert any((v[0] != v[1]).any() for v in outputs.values())


@pytest.mark.parametrize("program", IMAGES["tf1"])
def test_a_tf1_network_from_its_data_to_its_engine(container: Container, program: str) -> None:
    container.convert(program)
    trained = container.tf1_train(program)
    best = container.output("train", CHECKPOINTS[program])
    assert trained["metrics"]["mAP50"] > 0.8
    assert trained["progress"] == {
        "epoch": 1 if program == "detectnet_v2" else 2,
        "max_epoch": 2,
        "loss": pytest.approx(2.6),
    }
    metrics = PERCENT if program == "detectnet_v2" else FRACTION

    def evaluate(name: str, model: str) -> float:
        argv = [program, "evaluate", "-e", "{spec}", "-m", model, "-r", "{out}"]
        spec = container.tf1_spec(program)
        done = container.good(name, argv, [], spec=spec, success=TF1, metrics=metrics, action="evaluate")
        assert {"mAP50", "AP50/RBC", "AP50/WBC"} == set(done["metrics"])
        return float(done["metrics"]["mAP50"])

    assert evaluate("evaluate", best) == pytest.approx(trained["metrics"]["mAP50"], abs=1e-6)
    argv = [
        program,
        "prune",
        "-m",
        best,
        "-o",
        "{out}/model.hdf5",
        "--results_dir",
        "{out}",
        "-eq",
        "union",
        "-pth",
        "0.2",
    ]
    more = ["-e", "{spec}"] if program == "yolo_v4" else []
    kept = {"kept": {"kpi": ["pruning_ratio"], "most": 0.98}, "parameters": {"kpi": ["param_count"], "scale": 1e6}}
    spec = container.tf1_spec(program)
    pruned = container.good("prune", argv + more, ["model.hdf5"], spec=spec, success=TF1, metrics=kept)
    assert pruned["metrics"] == {"kept": 0.6, "parameters": pytest.approx(6.72e4)}
    smaller = container.output("prune", "model.hdf5")
    assert evaluate("evaluate_pruned", smaller) < 0.6
    container.tf1_train(program, "retrain", start=smaller, pruned="true", epochs=3)
    final = container.output("retrain", CHECKPOINTS[program])
    assert evaluate("evaluate_retrained", final) > evaluate("evaluate_again", best)

    argv = [
        program,
        "export",
        "-m",
        final,
        "-o",
        "{out}/model.onnx",
        "-e",
        "{spec}",
        "--results_dir",
        "{out}",
        "--gen_ds_config",
    ]
    container.good("export", argv, ["model.onnx", "labels.txt", "nvinfer_config.txt"], spec=spec, success=TF1)
    model = container.output("export", "model.onnx")
    check_model(model, program)
    labels = (container.out("export") / "labels.txt").read_text().split()
    assert (
        labels
        == {
            "detectnet_v2": ["RBC", "WBC"],
            "faster_rcnn": ["RBC", "WBC", "background"],
            "ssd": ["background", "rbc", "wbc"],
            "yolo_v4": ["rbc", "wbc"],
        }[program]
    )

    argv = [program, "gen_trt_engine", "-m", model, "-e", "{spec}", "-r", "{out}", "--engine_file", "{out}/model.plan"]
    argv += [
        "--data_type",
        "int8",
        "--cal_image_dir",
        str(container.data / "train" / "images"),
        "--max_batch_size",
        "4",
    ]
    argv += ["--cal_cache_file", "{out}/cal.bin", "--batch_size", "2", "--batches", "2", "--opt_batch_size", "2"]
    container.good("build_engine", argv, ["model.plan", "cal.bin"], spec=spec, success=FINISHED)
    plan = container.output("build_engine", "model.plan")
    assert (read_plan(plan)["calibrated"], read_plan(plan)["profile"]) == (4, [1, 2, 4])
    assert Path(plan).read_bytes()[:28] == b"ftrt" + bytes(20) + bytes([10, 8, 0, 43])

    argv = [
        program,
        "evaluate",
        "-e",
        "{spec}",
        "-m",
        plan,
        "-r",
        "{out}",
        "-i",
        str(container.data / "val" / "images"),
    ]
    argv += ["-l", str(container.data / "val" / "labels")]
    metrics = {"AP50": {"file": "results.json", "prefix": "AP_"}, "mAP50": {"mean": "AP50"}}
    done = container.good(
        "evaluate_engine", argv, ["results.json"], spec=spec, success=FINISHED, metrics=metrics, action="evaluate"
    )
    assert set(done["metrics"]) == {"mAP50", "AP50/RBC", "AP50/WBC"}

    spec = container.tf1_spec(program, out=container.root / "runs" / "r1" / "inference" / "out")
    argv = [program, "inference", "-e", "{spec}", "-m", final, "-r", "{out}"]
    argv += [] if program == "faster_rcnn" else ["-i", str(container.data / "val" / "images")]
    container.good("inference", argv, ["images_annotated", "labels"], spec=spec, success=TF1)
    assert len(list((container.out("inference") / "images_annotated").iterdir())) == 6


def test_qat_needs_its_scales(container: Container) -> None:
    container.convert("detectnet_v2")
    container.tf1_train("detectnet_v2", qat="true")
    spec = container.tf1_spec("detectnet_v2", qat="true")
    argv = ["detectnet_v2", "export", "-m", container.output("train", "weights/*.hdf5"), "-o", "{out}/model.onnx"]
    container.good(
        "export", [*argv, "--cal_json_file", "{out}/cal.json", "--results_dir", "{out}"], ["cal.json"], success=TF1
    )
    argv = [
        "detectnet_v2",
        "gen_trt_engine",
        "-m",
        container.output("export", "model.onnx"),
        "-e",
        "{spec}",
        "-r",
        "{out}",
    ]
    argv += ["--engine_file", "{out}/model.plan", "--data_type", "int8"]
    done = container.run("without", argv, ["model.plan"], spec=spec, success=FINISHED)
    assert (done.outcome, done.reason) == (
        "toolkit_error",
        "the model was trained with QAT: --cal_json_file or --force_ptq",
    )
    scales = container.output("export", "cal.json")
    container.good("with", [*argv, "--cal_json_file", scales], ["model.plan"], spec=spec, success=FINISHED)


def coco_spec(container: Container, program: str, **blocks: dict[str, Any]) -> str:
    first = 0 if program == "rtdetr" else 1
    data, out = container.data, "{out}"
    source = {s: {"image_dir": f"{data}/{s}/images", "json_file": f"{data}/{s}{first}.json"} for s in ("train", "val")}
    val = source["val"] if program == "rtdetr" else [source["val"]]
    spec: dict[str, Any] = {
        "results_dir": out,
        "dataset": {
            "train_data_sources": [source["train"]],
            "val_data_sources": val,
            "test_data_sources": source["val"],
            "infer_data_sources": {"image_dir": [f"{data}/val/images"], "classmap": f"{data}/classmap.txt"},
            "quant_calibration_data_sources": source["train"],
            "num_classes": 2 + first,
        },
        "model": {"num_queries": 10},
        "train": {"num_epochs": 2, "results_dir": out},
        "evaluate": {"results_dir": out},
        "export": {"results_dir": out, "onnx_file": f"{out}/model.onnx", "input_width": 64, "input_height": 64},
        "inference": {"results_dir": out},
        "quantize": {"results_dir": out},
        "gen_trt_engine": {"results_dir": out, "trt_engine": f"{out}/model.plan"},
    }
    if program == "efficientdet_tf2":
        spec["dataset"] = {
            "train_tfrecords": [f"{container.out('convert_train')}/records/train-*"],
            "val_tfrecords": [f"{container.out('convert_val')}/records/val-*"],
            "val_json_file": f"{data}/val1.json",
            "val_dirs": [f"{data}/val/images"],
            "num_classes": 3,
        }
        spec["model"] = {"name": "efficientdet-d0", "input_width": 128, "input_height": 128}
        intervals = {"checkpoint_interval": 1, "validation_interval": 1, "lr_schedule": {"warmup_epoch": 1}}
        spec["train"] |= intervals
        spec["evaluate"] |= {"num_samples": 6, "max_detections_per_image": 10, "label_map": f"{data}/labels.yaml"}
        spec["inference"] |= {"image_dir": f"{data}/val/images"}
    for name, block in blocks.items():
        spec.setdefault(name, {}).update(block)
    return str(yaml.safe_dump(spec))


INT8 = {"cal_cache_file": "{out}/cal.bin", "cal_batch_size": 2, "cal_batches": 2}


def build(container: Container, program: str, model: str) -> None:
    folder = str(container.data / "train" / "images")
    folders: Any = folder if program == "efficientdet_tf2" else [folder]
    tensorrt = {"data_type": "INT8", "max_batch_size": 4, "calibration": {**INT8, "cal_image_dir": folders}}
    spec = coco_spec(container, program, gen_trt_engine={"onnx_file": model, "tensorrt": tensorrt})
    argv = [program, "gen_trt_engine", "-e", "{spec}"]
    container.good("build_engine", argv, ["model.plan", "cal.bin"], spec=spec, success=FINISHED)
    plan = container.output("build_engine", "model.plan")
    assert read_plan(plan)["calibrated"] == 4
    spec = coco_spec(container, program, evaluate={"trt_engine": plan})
    metrics = {"mAP50": {"file": "results.json", "key": "AP50"}, "mAP": {"file": "results.json", "key": "AP"}}
    rules = {"success": FINISHED, "metrics": metrics, "action": "evaluate"}
    done = container.good(
        "evaluate_engine", [program, "evaluate", "-e", "{spec}"], ["results.json"], spec=spec, **rules
    )
    assert done["metrics"]["mAP50"] > 0.8


def test_efficientdet_tf2_from_its_data_to_its_engine(container: Container) -> None:
    program = "efficientdet_tf2"
    for split in ("train", "val"):
        convert = {
            "image_dir": f"{container.data}/{split}/images",
            "annotations_file": f"{container.data}/{split}1.json",
            "num_shards": 2,
            "tag": split,
            "results_dir": "{out}/records",
        }
        spec = yaml.safe_dump({"results_dir": "{out}", "dataset_convert": convert})
        argv = [program, "dataset_convert", "-e", "{spec}"]
        container.good(f"convert_{split}", argv, ["records"], spec=spec, success=FINISHED, status="records/status.json")
        assert (container.out(f"convert_{split}") / "records" / f"{split}-00000-of-00002.tfrecord").exists()
    metrics = {"mAP50": {"kpi": ["AP50"]}, "mAP": {"kpi": ["AP"]}, "AP": {"prefix": "AP_"}}
    train = [program, "train", "-e", "{spec}"]
    done = container.good(
        "train", train, [CHECKPOINTS[program]], spec=coco_spec(container, program), success=FINISHED, metrics=metrics
    )
    assert done["progress"] == {"epoch": 2, "max_epoch": 2, "loss": 2.6}
    first = container.output("train", "*_002.tlt")

    spec = coco_spec(container, program, evaluate={"checkpoint": first})
    argv = [program, "evaluate", "-e", "{spec}"]
    done = container.good("evaluate", argv, [], spec=spec, success=FINISHED, metrics=metrics, action="evaluate")
    assert set(done["metrics"]) == {"mAP50", "mAP", "AP/RBC", "AP/WBC"}

    prune = {"checkpoint": first, "threshold": 0.2, "equalization_criterion": "union", "results_dir": "{out}"}
    spec = coco_spec(container, program, prune=prune)
    kept = {"kept": {"kpi": ["pruning_ratio"], "most": 0.98}}
    argv = [program, "prune", "-e", "{spec}"]
    container.good("prune", argv, ["model_th=0.2_eq=union.tlt"], spec=spec, success=FINISHED, metrics=kept)
    pruned = container.output("prune", "*.tlt")
    spec = coco_spec(container, program, train={"pruned_model_path": pruned, "num_epochs": 3})
    container.good("retrain", train, [CHECKPOINTS[program]], spec=spec, success=FINISHED)
    final = container.output("retrain", "*_003.tlt")
    assert Model.read(final, program).kept == 0.6

    # The pruned model's name holds "=", which hydra does not read in an override: it exits with 0 all the same.
    done = container.run("lie", [*train, f"train.pruned_model_path={pruned}"], [], spec=spec, success=FINISHED)
    assert "Execution status: FAIL" in done.reason

    spec = coco_spec(container, program, export={"checkpoint": final})
    container.good("export", [program, "export", "-e", "{spec}"], ["model.onnx"], spec=spec, success=FINISHED)
    model = container.output("export", "model.onnx")
    check_model(model, program)
    build(container, program, model)
    spec = coco_spec(container, program, inference={"checkpoint": final})
    container.good(
        "inference", [program, "inference", "-e", "{spec}"], ["labels", "0.jpg"], spec=spec, success=FINISHED
    )


@pytest.mark.parametrize("program", IMAGES["pyt"])
def test_a_pytorch_network_from_its_data_to_its_engine(container: Container, program: str) -> None:
    metrics = {"mAP50": {"kpi": ["val_mAP50", "test_mAP50"]}, "mAP": {"kpi": ["val_mAP", "test_mAP"]}}
    rules = {"success": FINISHED, "metrics": metrics}
    argv = [program, "train", "-e", "{spec}"]
    outputs = ["model_epoch_*.pth", "experiment.yaml"]
    done = container.good("train", argv, outputs, spec=coco_spec(container, program), **rules)
    assert done["progress"] == {"epoch": 2, "max_epoch": 2, "loss": 2.6}
    assert done["metrics"]["mAP50"] > 0.8
    model = container.output("train", "model_epoch_001*.pth")

    spec = coco_spec(container, program, evaluate={"checkpoint": model})
    container.good("evaluate", [program, "evaluate", "-e", "{spec}"], [], spec=spec, action="evaluate", **rules)
    if program == "rtdetr":
        quantize = coco_spec(container, program, quantize={"model_path": model, "backend": "torchao"})
        argv = [program, "quantize", "-e", "{spec}"]
        container.good("quantize", argv, ["quantized_model_torchao.pth"], spec=quantize, success=FINISHED)
    if program != "deformable_detr":
        distill = coco_spec(
            container, program, distill={"pretrained_teacher_model_path": model, "results_dir": "{out}"}
        )
        container.good("distill", [program, "distill", "-e", "{spec}"], ["model_epoch_*.pth"], spec=distill, **rules)

    spec = coco_spec(container, program, export={"checkpoint": model, "serialize_nvdsinfer": True})
    argv = [program, "export", "-e", "{spec}"]
    outputs = ["model.onnx", "labels.txt", "nvdsinfer_config.yaml"]
    container.good("export", argv, outputs, spec=spec, success=FINISHED)
    exported = container.output("export", "model.onnx")
    check_model(exported, program)
    build(container, program, exported)
    spec = coco_spec(container, program, inference={"checkpoint": model})
    argv = [program, "inference", "-e", "{spec}"]
    container.good("inference", argv, ["images_annotated", "labels"], spec=spec, success=FINISHED)


def test_pytorch_goes_on_from_its_last_checkpoint_and_then_does_nothing(container: Container) -> None:
    spec = coco_spec(container, "rtdetr").replace("{out}", str(container.root / "results"))
    argv = ["rtdetr", "train", "-e", "{spec}"]
    status = container.root / "results" / "status.json"
    container.run("first", argv, [], spec=spec)
    container.run("second", argv, [], spec=spec)
    epochs = [json.loads(line).get("epoch") for line in status.read_text().splitlines()]
    assert [e for e in epochs if e is not None] == [0, 1]


def test_data_services(container: Container) -> None:
    spec = {
        "results_dir": "{out}",
        "data": {
            "image_dir": f"{container.data}/train/images",
            "ann_path": f"{container.data}/train/labels",
            "dataset_type": "kitti",
        },
    }
    argv = ["augmentation", "generate", "-e", "{spec}"]
    container.good("augment", argv, ["images", "labels"], spec=yaml.safe_dump(spec), success=FINISHED)
    spec = {
        "results_dir": "{out}",
        "data": {"input_format": "COCO", "output_format": "KITTI"},
        "coco": {"ann_file": f"{container.data}/train1.json"},
    }
    argv = ["annotations", "convert", "-e", "{spec}"]
    container.good("convert", argv, ["0.txt"], spec=yaml.safe_dump(spec), success=FINISHED)
    line = (container.out("convert") / "0.txt").read_text().splitlines()[0]
    assert line == "RBC 0.00 0 0.00 1.00 2.00 30.00 40.00 0 0 0 0 0 0 0"
    spec["data"] = {"input_format": "COCO", "output_format": "YOLO"}
    done = container.run("odd", argv, ["0.txt"], spec=yaml.safe_dump(spec), success=FINISHED)
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", 0)


# --- what TAO falls over --------------------------------------------------------------------------------------------


def test_training_without_records_or_with_a_missing_model(container: Container) -> None:
    argv = ["ssd", "train", "-e", "{spec}", "-r", "{out}"]
    done = container.run("none", argv, [], spec=container.tf1_spec("ssd"), success=TF1)
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", 255)
    assert done.reason == "No TFRecords with images found in none/part-fold*"
    container.convert("ssd")
    spec = container.tf1_spec("ssd")
    done = container.run("model", [*argv, "-m", "/none.hdf5"], [], spec=spec, success=TF1)
    assert done.reason == "pretrained model /none.hdf5 does not exist"
    bad = container.root / "bad.hdf5"
    bad.write_bytes(b"cut off")
    done = container.run("bad", [*argv, "-m", str(bad)], [], spec=spec, success=TF1)
    assert done.reason.startswith("Unable to open file (file signature not found)")


def test_a_spec_that_detectnet_refuses_ends_as_a_success(container: Container) -> None:
    spec = container.tf1_spec("detectnet_v2").replace("output_image_width: 96", "output_image_width: 100")
    done = container.run("train", ["detectnet_v2", "train", "-e", "{spec}", "-r", "{out}"], [], spec=spec, success=TF1)
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", 0)
    assert done.reason == (
        "Training was interrupted; in its log: [ERROR] 100 x 64: multiples of 16, at least 16, are wanted"
    )


def test_words_that_the_entry_point_cannot_carry(container: Container) -> None:
    argv = ["ssd", "prune", "-m", "a", "-o", "b", "-k", "a$b"]
    done = container.run("key", argv, [], status=None, success={"denied_by": ["Execution status: FAIL"]})
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", 255)
    done = container.run("unknown", ["ssd", "prune", "-m", "a", "-o", "b", "-r", "c"], [])
    assert "unrecognized arguments: -r c" in done.reason


def test_category_ids_that_do_not_fit(container: Container) -> None:
    argv = ["rtdetr", "train", "-e", "{spec}"]
    spec = coco_spec(container, "rtdetr").replace("train0.json", "train1.json")
    done = container.run("train", argv, [], spec=spec, success=FINISHED)
    assert (done.outcome, done.reason) == (
        "toolkit_error",
        "RuntimeError: CUDA error: device-side assert triggered (exit code 1)",
    )
    statuses = [
        json.loads(line)["status"] for line in (container.out("train") / "status.json").read_text().splitlines()
    ]
    assert statuses == ["STARTED"]


def test_too_few_calibration_images(container: Container) -> None:
    shutil.copy(container.data / "train0.json", container.data / "model.onnx")
    (container.data / "model.onnx").write_bytes(b"\x08\x08\x3a\x02\x0a\x00")  # ir_version and an empty graph
    tensorrt = {
        "data_type": "int8",
        "calibration": {**INT8, "cal_image_dir": [f"{container.data}/train/images"], "cal_batches": 4},
    }
    spec = coco_spec(
        container, "dino", gen_trt_engine={"onnx_file": f"{container.data}/model.onnx", "tensorrt": tensorrt}
    )
    done = container.run(
        "build", ["dino", "gen_trt_engine", "-e", "{spec}"], ["model.plan"], spec=spec, success=FINISHED
    )
    assert done.reason == f"calibration needs 8 images, {container.data}/train/images has 6"


def test_nvidia_smi(container: Container) -> None:
    words = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    assert container.run("a", words, [], status=None).result["log_tail"][-1] == "Tesla T4, 7.5"
    env = {"REFIT_STANDIN_GPU": "NVIDIA A100, 8.0"}
    assert container.run("b", words, [], status=None, env=env).result["log_tail"][-1] == "NVIDIA A100, 8.0"


def test_an_image_without_the_network(container: Container) -> None:
    argv = ["rtdetr", "train", "-e", "{spec}"]
    done = container.run("train", argv, [], spec=coco_spec(container, "rtdetr"), env={"REFIT_STANDIN_IMAGE": "tf1"})
    assert "rtdetr: command not found" in done.reason


# --- lies -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Container:
    container = Container(tmp_path_factory.mktemp("lies"), programs)
    container.convert("detectnet_v2")
    container.tf1_train("detectnet_v2")
    return container


@pytest.mark.parametrize(
    ("lie", "code", "reason"),
    [
        (1, 0, "its log says 'Execution status: FAIL'"),
        (2, 0, "there is no status in status.json, not SUCCESS"),
        (3, 0, "the last status in status.json is RUNNING, not SUCCESS"),
        (4, 1, "RuntimeError: CUDA error: device-side assert triggered (exit code 1)"),
        (5, 0, "Training was interrupted"),
        (6, 0, "weights/model.hdf5 is missing"),
        (9, 255, "mismatched input '=' expecting <EOF> (exit code 255)"),
        (10, 0, "its log says 'WARNING:root:[Multinode] Error overriding configs"),
    ],
)
def test_a_training_that_lies(trained: Container, lie: int, code: int, reason: str) -> None:
    argv = ["detectnet_v2", "train", "-e", "{spec}", "-r", "{out}"]
    success = {**TF1, "denied_by": ["Execution status: FAIL", r"\[Multinode\] Error"]}
    env = {"REFIT_STANDIN_LIE": str(lie)}
    done = trained.run(
        f"lie{lie}", argv, ["weights/model.hdf5"], spec=trained.tf1_spec("detectnet_v2"), success=success, env=env
    )
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", code), done.output
    assert reason in done.reason


def test_the_lies_of_other_tasks(trained: Container) -> None:
    model = trained.output("train", "weights/model.hdf5")
    spec = trained.tf1_spec("detectnet_v2")
    argv = ["detectnet_v2", "export", "-m", model, "-o", "{out}/model.onnx", "--results_dir", "{out}"]
    done = trained.run("lie7", argv, ["model.onnx"], success=TF1, env={"REFIT_STANDIN_LIE": "7"})
    assert done.reason.endswith("model.onnx already exists")
    other = {"REFIT_STANDIN_LIE": "7", "REFIT_STANDIN_LIE_TASK": "train"}
    trained.good("export", argv, ["model.onnx"], success=TF1, env=other)
    argv = ["detectnet_v2", "prune", "-m", model, "-o", "{out}/model.hdf5", "--results_dir", "{out}"]
    metrics = {"kept": {"kpi": ["pruning_ratio"], "most": 0.98}}
    done = trained.run("lie12", argv, [], success=TF1, metrics=metrics, env={"REFIT_STANDIN_LIE": "12"})
    assert (done.outcome, done.result["metrics"]) == ("rejected", {"kept": 0.99999})
    argv = [
        "detectnet_v2",
        "gen_trt_engine",
        "-m",
        trained.output("export", "model.onnx"),
        "-e",
        "{spec}",
        "-r",
        "{out}",
    ]
    argv += ["--data_type", "int8", "--cal_cache_file", "{out}/cal.bin", "--engine_file", "{out}/model.plan"]
    success = {**FINISHED, "denied_by": ["Using calibration cache"]}
    done = trained.run("lie8", argv, ["model.plan"], spec=spec, success=success, env={"REFIT_STANDIN_LIE": "8"})
    assert "its log says 'Using calibration cache file" in done.reason
