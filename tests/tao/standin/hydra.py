"""The programs that read YAML: efficientdet_tf2; rtdetr, dino, deformable_detr; augmentation, annotations.

nvidia_tao_tf2/common/entrypoint/entrypoint.py, nvidia_tao_pytorch/core/entrypoint.py, nvidia_tao_ds/core/entrypoint.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tests.tao.standin import files
from tests.tao.standin.files import Coco, Model
from tests.tao.standin.status import Status, times

TF2 = ("efficientdet_tf2",)
PYTORCH = ("rtdetr", "dino", "deformable_detr")
DATA_SERVICES = ("augmentation", "annotations")
TASKS = {
    "efficientdet_tf2": ("dataset_convert", "train", "evaluate", "prune", "export", "inference"),
    "rtdetr": ("train", "evaluate", "export", "inference", "quantize", "distill"),
    "dino": ("train", "evaluate", "export", "inference", "distill"),
    "deformable_detr": ("train", "evaluate", "export", "inference"),
    "augmentation": ("generate",),
    "annotations": ("convert",),
}
LATEST = {"rtdetr": "rtdetr_model", "dino": "dino_model", "deformable_detr": "dd_model"}


class OverrideError(Exception):
    """hydra could not read the command line."""


def parse(program: str, task: str, words: list[str]) -> tuple[str, dict[str, Any]]:
    """The spec's path, and the spec with the overrides of the command line."""
    parser = argparse.ArgumentParser(prog=f"{program} {task}", allow_abbrev=False)
    parser.add_argument("-e", "--experiment_spec_file", required=True)
    known, rest = parser.parse_known_args(words)
    path = known.experiment_spec_file
    if not os.path.isabs(path) and program not in PYTORCH:
        raise OverrideError(f"Primary config directory not found: {os.path.dirname(path)}")
    if not os.path.exists(path):
        raise SystemExit(f"ERROR: The indicated experiment spec file `{path}` doesn't exist!")
    try:
        spec = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise OverrideError(f"yaml: {error}") from None
    if not isinstance(spec, dict):
        raise OverrideError(f"{path} is no YAML mapping: {str(spec)[:40]!r}")
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals or "=" in value:
            raise OverrideError(f"mismatched input '=' expecting <EOF>\nSee https://hydra.cc for {word!r}")
        place = spec
        *parents, last = key.split(".")
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = yaml.safe_load(value)
    return path, spec


class Config:
    """A spec, asked by dotted paths; `???` counts as missing."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def get(self, path: str, default: Any = None) -> Any:
        value: Any = self.spec
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return default if value is None or value == "???" else value

    def need(self, path: str) -> Any:
        value = self.get(path)
        if value in (None, ""):
            raise ValueError(f"Missing mandatory value: {path}")
        return value

    def results(self, task: str, folder: str) -> Path:
        """update_results_dir: the task's own, else a folder below the common one."""
        own = self.get(f"{task}.results_dir")
        if own:
            return Path(own)
        return Path(self.need("results_dir")) / folder


class Task:
    """One start; `lie` is the number of the lie that it shall tell."""

    def __init__(self, program: str, task: str, words: list[str], lie: int) -> None:
        self.program, self.task, self.lie = program, task, lie
        _, spec = parse(program, task, words)
        self.config = Config(spec)
        common = program in DATA_SERVICES
        self.out = Path(self.config.need("results_dir")) if common else self.config.results(task, task)
        self.status = Status(self.out / "status.json")
        if program in PYTORCH:
            (self.out / "experiment.yaml").write_text(yaml.safe_dump(spec))

    def run(self) -> None:
        self.status.write(f"Starting {self.program} {self.task}.", "STARTED")
        getattr(self, f"_{self.task}")()
        self.status.write(f"{self.task.replace('_', ' ').capitalize()} finished successfully.")

    # -- training --

    def _dataset_convert(self) -> None:
        get = self.config.get
        coco = Coco.read(self.config.need("dataset_convert.annotations_file"), get("dataset_convert.image_dir", ""))
        shards = int(get("dataset_convert.num_shards", 256))
        tag = get("dataset_convert.tag") or Path(get("dataset_convert.annotations_file")).stem
        self.out.mkdir(parents=True, exist_ok=True)
        records = [{"file": path.name, "objects": count} for path, count in coco.found]
        for shard in range(shards):
            files.write_records(self.out / f"{tag}-{shard:05d}-of-{shards:05d}.tfrecord", records[shard::shards])
        empty = {r["file"]: "no objects" for r in records if not r["objects"]}
        if empty:
            (self.out / f"{tag}_warnings.json").write_text(json.dumps(empty))
        total: Counter[str] = sum((count for _, count in coco.found), Counter())
        self.status.categorical = {"num_objects": total}

    def _train(self) -> None:
        (self._train_tf2 if self.program in TF2 else self._train_pytorch)()

    def _distill(self) -> None:
        self.config.need("distill.pretrained_teacher_model_path")
        self._train_pytorch()

    def _epochs(self) -> int:
        return int(self.config.get("train.num_epochs", 10))

    def _train_tf2(self) -> None:
        self._check_tf2()
        get = self.config.get
        pruned, started = get("train.pruned_model_path", ""), get("train.checkpoint", "")
        model = self._model_of_tf2()
        if pruned:
            before = Model.read(pruned, self.program)
            model = replace(model, kept=before.kept)
        elif started and not os.path.exists(started):
            raise FileNotFoundError(f"train.checkpoint {started} does not exist")
        if self.lie == 6:
            return
        seconds = float(os.environ.get("REFIT_STANDIN_EPOCH_SECONDS") or 0)
        epochs, interval = self._epochs(), int(get("train.checkpoint_interval", 1))
        for epoch in range(1, epochs + 1):
            time.sleep(seconds)
            model = model.after(epoch)
            more = {"loss": model.loss(), "learning_rate": 0.01}
            self.status.write(epoch=epoch, max_epoch=epochs, **times(seconds, epochs - epoch), **more)
            if epoch % int(get("train.validation_interval", 1)) == 0:
                self._found_tf2(model)
                self.status.write()
            if epoch % interval == 0 or epoch == epochs:
                model.write(self.out / f"{get('model.name', 'efficientdet-d0')}_{epoch:03d}.tlt")

    def _check_tf2(self) -> None:
        """spec_checker of cv/efficientdet/utils/config_utils.py, which train, evaluate, export and inference call."""
        get, epochs = self.config.get, self._epochs()
        for name in ("checkpoint_interval", "validation_interval"):
            assert 0 < int(get(f"train.{name}", 10)) <= epochs, f"{name} must be positive and not above num_epochs"
        assert int(get("train.lr_schedule.warmup_epoch", 5)) <= epochs, "num_epochs >= warmup_epoch"
        assert int(get("evaluate.start_eval_epoch", 1)) <= epochs, "num_epochs >= start_eval_epoch"
        assert int(get("evaluate.num_samples", 5000)) >= int(get("evaluate.batch_size", 1)) > 0, "num_samples"
        assert get("dataset.train_tfrecords"), "train_tfrecords must be specified."
        assert get("dataset.val_tfrecords"), "val_tfrecords must be specified."
        assert int(get("dataset.num_classes", 0)) > 1, "num_classes > 1"

    def _model_of_tf2(self) -> Model:
        get = self.config.get
        records = [r for p in get("dataset.train_tfrecords", []) for r in files.read_records(str(p))]
        for pattern in get("dataset.val_tfrecords", []):
            files.read_records(str(pattern))
        names = json.loads(Path(self.config.need("dataset.val_json_file")).read_text())["categories"]
        classes = tuple(c["name"] for c in sorted(names, key=lambda c: c["id"]))
        if int(get("dataset.num_classes")) < len(classes) + 1:
            raise ValueError(f"num_classes is {get('dataset.num_classes')}, {len(classes)} classes and a background")
        width, height = int(get("model.input_width", 512)), int(get("model.input_height", 512))
        return Model(self.program, classes, files.objects(records), width, height, 3)

    def _found_tf2(self, model: Model, by_class: bool = False) -> None:
        self.status.kpi.update({"AP": round(0.6 * model.mean(), 6), "AP50": model.mean(), "AP75": 0.4, "APs": -1.0})
        if by_class:
            self.status.kpi.update({f"AP_{k}": round(0.6 * v, 6) for k, v in model.average_precisions().items()})

    def _train_pytorch(self) -> None:
        get, epochs = self.config.get, self._epochs()
        for name in ("checkpoint_interval", "validation_interval"):
            assert int(get(f"train.{name}", 1)) <= epochs, f"{name} is above num_epochs"
        model = self._model_of_pytorch()
        for path in ("model.pretrained_backbone_path", "train.pretrained_model_path"):
            if get(path) and not os.path.exists(get(path)):
                raise FileNotFoundError(f"{path}: {get(path)}")
        latest = self.out / f"{LATEST[self.program]}_latest.pth"
        done = Model.read(latest, self.program).epochs if latest.exists() else 0
        if self.lie == 6:
            return
        self.status.write("Starting Training Loop.", "STARTED")
        seconds = float(os.environ.get("REFIT_STANDIN_EPOCH_SECONDS") or 0)
        for epoch in range(done, epochs):
            time.sleep(seconds)
            model = model.after(epoch + 1)
            step = 4 * (epoch + 1)
            if (epoch + 1) % int(get("train.validation_interval", 1)) == 0:
                found = {"val_mAP": str(round(0.6 * model.mean(), 6)), "val_mAP50": str(model.mean())}
                self.status.kpi = {**found, "val_loss": model.loss() + 0.1}
                self.status.write("Eval metrics generated.")
            clock = {"time_per_step": "0:00:00.1", **times(seconds, epochs - 1 - epoch)}
            most = {"max_epoch": epochs - 1, "max_step": 4 * epochs}
            self.status.write("Training loop in progress", epoch=epoch, step=step, **most, **clock)
            self.status.kpi = {"train_loss": model.loss()}
            self.status.write("Train metrics generated.")
            if (epoch + 1) % int(get("train.checkpoint_interval", 1)) == 0:
                ending = "" if self.program == "rtdetr" else f"_step_{step:05d}"
                name = f"model_epoch_{epoch:03d}{ending}.pth"
                model.write(self.out / name)
                latest.unlink(missing_ok=True)
                latest.symlink_to(name)
        self.status.write("Training loop complete.")

    def _model_of_pytorch(self) -> Model:
        """The data is read, and the ids held against num_classes."""
        get, need = self.config.get, self.config.need
        sources = need("dataset.train_data_sources")
        read = [Coco.read(s["json_file"], s["image_dir"]) for s in sources]
        val = need("dataset.val_data_sources")
        if isinstance(val, list) == (self.program == "rtdetr"):
            raise TypeError(f"dataset.val_data_sources is a {type(val).__name__}")
        for source in val if isinstance(val, list) else [val]:
            Coco.read(source["json_file"], source["image_dir"])
        names = {k: v for coco in read for k, v in coco.names.items()}
        ids = int(get("dataset.num_classes", 80 if self.program == "rtdetr" else 91))
        if max(names) > ids:
            raise ValueError(f"num_classes is {ids}, the largest category id {max(names)}")
        if max(names) == ids:
            raise RuntimeError("CUDA error: device-side assert triggered")
        found = tuple(sorted({name for coco in read for name in coco.objects()}))
        width, height = int(get("export.input_width", 960)), int(get("export.input_height", 544))
        return Model(self.program, tuple(names[k] for k in sorted(names)), found, width, height, 3, ids=ids)

    # -- what follows --

    def _checkpoint(self, block: str) -> Model:
        path = self.config.need(f"{block}.checkpoint")
        return Model.read(path, self.program)

    def _evaluate(self) -> None:
        model = self._checkpoint("evaluate")
        if self.program in TF2:
            self._check_tf2()
            self._model_of_tf2()
            labels = self.config.get("evaluate.label_map")
            if labels:
                yaml.safe_load(Path(labels).read_text())
            self._found_tf2(model, by_class=bool(labels))
            return
        source = self.config.need("dataset.test_data_sources")
        Coco.read(source["json_file"], source["image_dir"])
        self.status.kpi = {"test_mAP": str(round(0.6 * model.mean(), 6)), "test_mAP50": str(model.mean())}
        self.status.write("Test metrics generated.")

    def _prune(self) -> None:
        get, model = self.config.get, self._checkpoint("prune")
        threshold, criterion = float(get("prune.threshold", 0.1)), get("prune.equalization_criterion", "union")
        ratio = 0.99999 if self.lie == 12 else round(max(0.1, 1 - 2 * threshold), 5)
        pruned = replace(model, kept=model.kept * ratio, retrained=False)
        path = self.out / f"model_th={threshold}_eq={criterion}.tlt"
        pruned.write(path)
        size = path.stat().st_size / 1e6
        self.status.kpi.update({"pruning_ratio": ratio, "param_count": pruned.parameters, "size": size})

    def _export(self) -> None:
        from tests.tao.standin import graph  # onnx is slow to import

        get, model = self.config.get, self._checkpoint("export")
        if self.program in TF2:
            self._check_tf2()
            out = Path(self.config.need("export.onnx_file"))
            assert out.suffix == ".onnx", "Exported onnx file must end with .onnx"
            graph.write(out, model, int(get("evaluate.max_detections_per_image", 100)), 13)
            return
        out = Path(self.config.need("export.onnx_file"))
        if self.lie == 7:
            out.write_bytes(b"")
        assert not out.exists(), f"Default onnx file {out} already exists"
        width = int(get("export.input_width", model.width))
        height = int(get("export.input_height", model.height))
        if self.program == "deformable_detr" or get("export.serialize_nvdsinfer"):
            self._model_of_pytorch()
        sized = replace(model, width=width, height=height)
        graph.write(out, sized, int(get("model.num_queries", 300)), int(get("export.opset_version", 17)))
        if get("export.serialize_nvdsinfer"):
            names = [*["background"] * (model.ids - len(model.classes)), *model.classes]
            (out.parent / "labels.txt").write_text("\n".join(names))
            (out.parent / "nvdsinfer_config.yaml").write_text(
                yaml.safe_dump({"property": {"onnx-file": str(out), "num-detected-classes": len(names)}})
            )

    def _quantize(self) -> None:
        model = Model.read(self.config.need("quantize.model_path"), self.program)
        if self.config.get("quantize.mode") != "weight_only_ptq":
            source = self.config.need("dataset.quant_calibration_data_sources")
            for path, _ in Coco.read(source["json_file"], source["image_dir"]).found:
                files.read_image(path)
        model.write(self.out / f"quantized_model_{self.config.get('quantize.backend', 'modelopt.pytorch')}.pth")

    def _inference(self) -> None:
        """efficientdet_tf2 draws into results_dir itself, the PyTorch networks into images_annotated/ of it."""
        self._checkpoint("inference")
        if self.program in TF2:
            self._check_tf2()
            files.draw(files.images(self.config.need("inference.image_dir")), self.out, self.out / "labels")
            return
        source = self.config.need("dataset.infer_data_sources")
        Path(source["classmap"]).read_text()
        pictures = [path for folder in source["image_dir"] for path in files.images(folder)]
        files.draw(pictures, self.out / "images_annotated", self.out / "labels")

    # -- data services --

    def _generate(self) -> None:
        """Copies instead of augmented pictures."""
        need = self.config.need
        (self.out / "images").mkdir(parents=True, exist_ok=True)
        for path in files.images(need("data.image_dir")):
            (self.out / "images" / path.name).write_bytes(files.read_image(path))
        labels = Path(need("data.ann_path"))
        if self.config.get("data.dataset_type", "coco").lower() == "coco":
            (self.out / "annotations.json").write_text(labels.read_text())
            return
        (self.out / "labels").mkdir(exist_ok=True)
        for path in sorted(labels.glob("*.txt")):
            files.kitti_objects(path)
            (self.out / "labels" / path.name).write_text(path.read_text())

    def _convert(self) -> None:
        need = self.config.need
        form = (need("data.input_format").lower(), need("data.output_format").lower())
        if self.lie == 11 or form not in {("coco", "kitti"), ("kitti", "coco")}:
            print(f"Unsupported conversion mapping: {form[0]} -> {form[1]}")
            return
        if form[0] == "coco":
            coco = json.loads(Path(need("coco.ann_file")).read_text())
            names = {c["id"]: c["name"] for c in coco["categories"]}
            for image in coco["images"]:
                boxes = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
                lines = [_kitti_line(names[a["category_id"]], a["bbox"]) for a in boxes]
                (self.out / f"{Path(image['file_name']).stem}.txt").write_text("".join(lines))
            return
        folder, pictures = Path(need("kitti.label_dir")), files.images(need("kitti.image_dir"))
        found = [(path, files.kitti_objects(folder / f"{path.stem}.txt")) for path in pictures]
        names = sorted({name for _, count in found for name in count})
        (self.out / f"{folder.name}.json").write_text(
            json.dumps(
                {
                    "images": [{"id": i, "file_name": path.name} for i, (path, _) in enumerate(found)],
                    "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
                    "annotations": [
                        {"id": i, "image_id": i, "category_id": names.index(name) + 1, "bbox": [0, 0, 1, 1]}
                        for i, (_, count) in enumerate(found)
                        for name in count
                    ],
                }
            )
        )


def _kitti_line(name: str, box: list[float]) -> str:
    x, y, width, height = box
    return f"{name} 0.00 0 0.00 {x:.2f} {y:.2f} {x + width:.2f} {y + height:.2f} 0 0 0 0 0 0 0\n"
