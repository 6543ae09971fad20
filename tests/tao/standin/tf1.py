"""detectnet_v2, faster_rcnn, ssd, yolo_v4 of the TF1 image (nvidia_tao_tf1/cv/<network>/scripts)."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refit.tao import tree
from tests.tao.standin import files
from tests.tao.standin.files import Model
from tests.tao.standin.status import Status, times

PROGRAMS = ("detectnet_v2", "faster_rcnn", "ssd", "yolo_v4")
TASKS = ("dataset_convert", "train", "evaluate", "prune", "export", "inference")
TITLES = {"detectnet_v2": "DetectNet_v2", "faster_rcnn": "FasterRCNN", "ssd": "SSD", "yolo_v4": "Yolo_V4"}


# --- command lines -----------------------------------------------------------------------------------------------


def parser(program: str, task: str) -> argparse.ArgumentParser:
    """The flags of a task, with what common/entrypoint/entrypoint.py adds to every one."""
    made = argparse.ArgumentParser(prog=f"{program} {task}", allow_abbrev=False)
    add = made.add_argument
    own: dict[str, Any] = {"dest": "spec", "required": True}
    if task == "dataset_convert":
        add("-d", "--dataset_export_spec", **own)
        add("-o", "--output_filename", dest="out", required=True)
        add("-f", "--validation_fold", type=int)
        add("-r", "--results_dir")
        add("-v", "--verbose", action="store_true")
        if program == "ssd":
            add("-c", "--class_names_file")
    elif task == "train":
        add("-e", "--experiment_spec_file" if program in {"detectnet_v2", "ssd"} else "--experiment_spec", **own)
        add("-r", "--results_dir", required=True)
        add("-k", "--enc_key" if program == "faster_rcnn" else "--key")
        if program == "detectnet_v2":
            add("-n", "--model_name", default="model")
            add("-v", "--verbose", action="store_true")
            add("--enable_determinism", action="store_true")
        if program == "ssd":
            add("-m", "--resume_model_weights")
            add("--initial_epoch", type=int, default=1)
            add("--arch", choices=["ssd", "dssd"])
            add("--use_multiprocessing", action="store_true")
    elif task in {"evaluate", "inference"}:
        add("-e", "--experiment_spec", **own)
        add("-m", "--model_path", required=program != "faster_rcnn" and task == "evaluate")
        add("-r", "--results_dir", required=task == "inference" and program == "detectnet_v2")
        add("-k", "--key")
        if task == "inference" and program != "faster_rcnn":
            add("-i", "--image_dir", required=True)
        if task == "inference" and program in {"ssd", "yolo_v4"}:
            add("-t", "--threshold", type=float, default=0.3)
        if program == "detectnet_v2":
            add("-v", "--verbose", action="store_true")
        if program == "detectnet_v2" and task == "evaluate":
            add("--use_training_set", action="store_true")
            add("-f", "--framework", choices=["tlt", "tensorrt"], default="tlt")
        if program == "detectnet_v2" and task == "inference":
            add("-b", "--batch_size", type=int)
    elif task == "prune":
        add("-m", "--model", required=True)
        add("-o", "--output_file", dest="out", required=True)
        add("--results_dir")
        add("-k", "--key")
        add("-n", "--normalizer", choices=["max", "L2"], default="max")
        add("-eq", "--equalization_criterion", default="union")
        add("-pg", "--pruning_granularity", type=int, default=8)
        add("-pth", "--pruning_threshold", type=float, default=0.1)
        add("-nf", "--min_num_filters", type=int, default=16)
        add("-el", "--excluded_layers", nargs="*")
        add("-v", "--verbose", action="store_true")
        if program == "yolo_v4":
            add("-e", "--experiment_spec_path", **own)
    else:
        add("-m", "--model", required=True)
        add("-o", "--output_file", dest="out")
        add("-e", "--experiment_spec", dest="spec", required=program != "detectnet_v2")
        add("-k", "--key")
        add("--gen_ds_config", action="store_true")
        add("--cal_json_file")
        add("--results_dir")
        add("--static_batch_size", type=int, default=-1)
        add("--target_opset", type=int, default=12)
        add("--onnx_route", default="keras2onnx")
        add("-v", "--verbose", action="store_true")
    add("--num_processes", "-np", type=int, default=-1)
    add("--gpus", type=int, default=1)
    add("--gpu_index", type=int, nargs="+")
    add("--use_amp", action="store_true")
    add("--log_file")
    return made


def rewritten(words: list[str]) -> list[str]:
    """The words after the entry point has put them into `bash -c '...'` without quotes: blanks split, shells object."""
    for word in words:
        if re.search(r"[$'\"\\;&|<>()*?`]", word):
            raise SystemExit(f"bash: -c: line 0: syntax error near unexpected token `{word[:20]}'")
    return [part for word in words for part in word.split()]


# --- specs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    records: str
    images: str
    labels: str = ""


@dataclass(frozen=True)
class Facts:
    """What a training spec says, in one form for the four networks."""

    classes: tuple[str, ...]
    width: int
    height: int
    channels: int
    epochs: int
    interval: int
    validates: int
    qat: bool
    start: str
    resumed: str  # a checkpoint to go on from
    prunes: bool  # `start` must be a pruned model
    rows: int
    arch: str
    training: tuple[Source, ...]
    validation: tuple[Source, ...]


def read_spec(path: str) -> tree.Tree:
    """Raises SystemExit where protobuf's text format would be refused."""
    try:
        return tree.parse(Path(path).read_text(), "prototxt", path)
    except ValueError as error:
        raise SystemExit(f"google.protobuf.text_format.ParseError: {error}") from None


def facts(program: str, path: str) -> Facts:
    spec = read_spec(path)

    def first(*paths: str, default: Any = "") -> Any:
        return next((spec.value(p) for p in paths if spec.has(p)), default)

    def sources(name: str) -> tuple[Source, ...]:
        count = len(spec.nodes(f"dataset_config.{name}"))
        where = [f"dataset_config.{name}[{i}]" for i in range(count)] if count > 1 else [f"dataset_config.{name}"]
        return tuple(
            Source(
                str(first(f"{w}.tfrecords_path")),
                str(first(f"{w}.image_directory_path")),
                str(first(f"{w}.label_directory_path")),
            )
            for w in where[:count]
        )

    mapped = sorted({str(v) for v in spec.values("dataset_config.target_class_mapping.value")})
    if program == "detectnet_v2":
        classes = [str(v) for v in spec.values("cost_function_config.target_classes.name")]
    elif program == "faster_rcnn":
        classes = mapped
    else:
        classes = sorted({name.lower() for name in mapped})
    short = program in {"ssd", "yolo_v4"}
    size = "augmentation_config.output_" if short else "augmentation_config.preprocessing.output_image_"
    model = {"detectnet_v2": "model_config", "faster_rcnn": "model_config", "ssd": "ssd_config"}.get(
        program, "yolov4_config"
    )
    layers = first(f"{model}.num_layers", f"{model}.nlayers")
    pruned = first("training_config.pruned_model_path", "training_config.retrain_pruned_model")
    return Facts(
        classes=tuple(classes),
        width=int(first(f"{size}width", default=0)),
        height=int(first(f"{size}height", default=0)),
        channels=int(first(f"{size}channel", default=3) or 3),
        epochs=int(first("training_config.num_epochs", default=0)),
        interval=int(first("training_config.checkpoint_interval", default=1) or 1),
        validates=int(
            first(
                "evaluation_config.validation_period_during_training",
                "eval_config.validation_period_during_training",
                default=1,
            )
            or 1
        ),
        qat=bool(first("training_config.enable_qat", default=False)),
        start=str(
            pruned
            or first(
                "model_config.pretrained_model_file",
                "training_config.pretrain_model_path",
                "training_config.pretrained_weights",
            )
        ),
        resumed=str(first("training_config.resume_model_path", "training_config.resume_from_model")),
        prunes=bool(pruned or first("model_config.load_graph", default=False)),
        rows=int(first("nms_config.top_k", "inference_config.rcnn_nms_max_boxes", default=200)),
        arch=f"{first(f'{model}.arch')}{layers or ''}".replace(":", "_"),
        training=sources("data_sources"),
        validation=sources("validation_data_source") + sources("validation_data_sources"),
    )


def check(program: str, spec: Facts) -> None:
    """What the spec loaders of the networks refuse. Raises SystemExit, as they do."""
    multiple, least = {"detectnet_v2": (16, 16), "yolo_v4": (32, 32), "faster_rcnn": (1, 160), "ssd": (1, 33)}[program]
    if spec.width % multiple or spec.height % multiple or min(spec.width, spec.height) < least:
        raise SystemExit(f"[ERROR] {spec.width} x {spec.height}: multiples of {multiple}, at least {least}, are wanted")
    if not spec.classes:
        raise SystemExit("[ERROR] no target classes")
    if spec.epochs < 1:
        raise SystemExit("[ERROR] training_config.num_epochs must be > 0")


def look(sources: tuple[Source, ...]) -> tuple[str, ...]:
    """The classes of the objects in a data source. Raises OSError for what is missing or empty."""
    if not sources:
        raise OSError("the spec names no data")
    found: Counter[str] = Counter()
    for source in sources:
        if source.records:
            records = files.read_records(source.records)
            found.update(files.objects(records))
        if source.labels:
            for path in files.images(source.images):
                found.update(files.kitti_objects(Path(source.labels, f"{path.stem}.txt")))
        elif source.images and not os.path.isdir(source.images):
            raise FileNotFoundError(f"image_directory_path {source.images} does not exist")
    return tuple(sorted(found))


# --- tasks -------------------------------------------------------------------------------------------------------


class Task:
    """One start of a program; `lie` is the number of the lie that it shall tell."""

    def __init__(self, program: str, task: str, words: list[str], lie: int) -> None:
        self.program, self.task, self.lie = program, task, lie
        parsed = parser(program, task)
        parsed.parse_args(words)  # the entry point's own parse
        self.args = parsed.parse_args(rewritten(words))
        if self.args.gpus < 1 or (self.args.gpus > 1 and task != "train"):
            raise SystemExit(f"AssertionError: --gpus {self.args.gpus}")
        results = self.args.results_dir
        append = not (program == "detectnet_v2" and task == "evaluate")
        self.status = Status(Path(results) / "status.json" if results else None, append)

    def run(self) -> None:
        self.status.write(f"Starting {TITLES[self.program]} {self.task}.", "STARTED")
        getattr(self, self.task)()
        if self.lie != 3:
            self.status.write(f"{self.task.replace('_', ' ').capitalize()} finished successfully.", "SUCCESS")

    def dataset_convert(self) -> None:
        spec, out = read_spec(self.args.spec), Path(self.args.out)
        kitti = "kitti_config."
        root = Path(str(spec.value(f"{kitti}root_directory_path")))
        extension = str(spec.value(f"{kitti}image_extension", ".png"))
        split, shards = float(spec.value(f"{kitti}val_split", 0)), int(spec.value(f"{kitti}num_shards", 10))
        if spec.value(f"{kitti}partition_mode") != "random" or spec.value(f"{kitti}num_partitions") != 2:
            raise AssertionError("Invalid number of partitions for random split mode.")
        if not 0 <= split < 1:
            raise AssertionError("Validation split must satisfy the criteria, 0 <= val_split < 100. ")
        names = sorted(p for p in (root / str(spec.value(f"{kitti}image_dir_name"))).iterdir() if p.suffix == extension)
        records, warnings = [], {}
        for path in names:
            label = root / str(spec.value(f"{kitti}label_dir_name")) / f"{path.stem}.txt"
            if not label.exists():
                raise AssertionError(f"Label file {label} not found.")
            count = files.kitti_objects(label)
            if not count:
                warnings[path.name] = "no objects"
            records.append({"file": path.name, "objects": count})
        held = int(split * len(records))
        self.status.kpi = {"num_images": len(records)}
        self.status.write(f"Num images in\nTrain: {len(records) - held}\tVal: {held}")
        out.parent.mkdir(parents=True, exist_ok=True)
        for fold, part in enumerate((records[:held], records[held:])):
            for shard in range(shards):
                name = f"{out.name}-fold-{fold:03d}-of-002-shard-{shard:05d}-of-{shards:05d}"
                files.write_records(out.parent / name, part[shard::shards])
                if self.program == "ssd":
                    (out.parent / f"idx-{name}").write_text("")
        if warnings:
            Path(f"{out}_warning.json").write_text(json.dumps(warnings))
        total: Counter[str] = sum((Counter(r["objects"]) for r in records), Counter())
        self.status.categorical = {"num_objects": dict(total)}
        self.status.write("Cumulative object statistics")
        self.status.write("TFRecords generation complete.", "SUCCESS")

    def train(self) -> None:
        spec, out = facts(self.program, self.args.spec), Path(self.args.results_dir)
        check(self.program, spec)
        model = Model(
            self.program, spec.classes, look(spec.training), spec.width, spec.height, spec.channels, qat=spec.qat
        )
        look(spec.validation)
        done, start = self._beginning(spec)
        if start:
            if not os.path.exists(start):
                raise FileNotFoundError(f"pretrained model {start} does not exist")
            started = self._whole_model(start, spec)
            if started:
                model = replace(model, kept=started.kept)
        if self.program == "detectnet_v2":
            kept = [int(p.stem.rpartition("-")[2]) for p in out.glob("model.epoch-*.hdf5")]
            done = max(kept, default=0)
        if self.lie == 6:
            return
        seconds = float(os.environ.get("REFIT_STANDIN_EPOCH_SECONDS") or 0)
        killed = int(os.environ.get("REFIT_STANDIN_KILLED_AFTER") or 0)
        for epoch in range(done + 1, spec.epochs + 1):
            if killed and epoch == killed + 1 > done + 1:
                os.kill(os.getpid(), 9)
            time.sleep(seconds)
            model = model.after(epoch)
            validated = epoch % spec.validates == 0 or epoch == spec.epochs
            self._tell(spec, epoch, model, validated, times(seconds, spec.epochs - epoch))
            if epoch % spec.interval == 0 or (epoch == spec.epochs and self.program != "faster_rcnn"):
                model.write(out / self._checkpoint(spec, epoch))
        if self.program == "detectnet_v2":
            self.status.write("Training loop completed.")
            final = out / "weights" / f"{self.args.model_name}.hdf5"
            model.after(spec.epochs).write(final)
            (out / "experiment_spec.txt").write_text(Path(self.args.spec).read_text())
            self.status.kpi = {"size": final.stat().st_size / 1e6, "param_count": model.parameters / 1e6}
            self.status.write("Model saved.")
        else:
            self.status.write("Training loop complete.")

    def _beginning(self, spec: Facts) -> tuple[int, str]:
        """(epochs that are done, the model to start from); only SSD is told both by flags, and reads no spec for it."""
        if self.program == "ssd":
            begins = self.args.resume_model_weights or ""
            return (self.args.initial_epoch - 1 if begins else 0), begins
        if not spec.resumed:
            return 0, spec.start
        pattern = r"\.epoch_(\d+)\.hdf5$" if self.program == "faster_rcnn" else r"_(\d+)\.hdf5$"
        found = re.search(pattern, spec.resumed)
        if not found:
            raise ValueError("Cannot parse the checkpoint path. Did you rename it?")
        return int(found[1]), spec.resumed

    def _whole_model(self, path: str, spec: Facts) -> Model | None:
        """A pruned or an unfinished model, which decides how large this one is; None for pretrained weights."""
        if self.program != "ssd" and not (spec.prunes or spec.resumed):
            return None
        if self.program == "ssd" and self.args.initial_epoch == 1 and files.is_other_hdf5(path):
            return None
        started = Model.read(path, self.program)
        if started.classes != spec.classes:
            raise OSError(f"{path}: a model of {started.classes}, the spec has {spec.classes}")
        return started

    def _checkpoint(self, spec: Facts, epoch: int) -> str:
        return {
            "detectnet_v2": f"model.epoch-{epoch}.hdf5",
            "faster_rcnn": f"frcnn_{spec.arch}.epoch_{epoch}.hdf5",
            "ssd": f"weights/ssd_{spec.arch}_epoch_{epoch:03d}.hdf5",
            "yolo_v4": f"weights/yolov4_{spec.arch}_epoch_{epoch:03d}.hdf5",
        }[self.program]

    def _tell(self, spec: Facts, epoch: int, model: Model, validated: bool, clock: dict[str, str]) -> None:
        """An epoch's lines: DetectNet_v2's hook writes at its first step, Keras' callback at its end, in texts."""
        if self.program == "detectnet_v2":
            self.status.graphical = {"loss": model.loss(), "learning_rate": "5e-06"}
            self.status.write(epoch=epoch - 1, max_epoch=spec.epochs, **clock)
            if validated:
                self._found(model)
            return
        self.status.graphical = {"loss": str(model.loss()), "learning_rate": "0.0001"}
        self.status.kpi = {"mean average precision": str(model.mean())} if validated else {}
        self.status.write("Training loop in progress", epoch=epoch, max_epoch=spec.epochs, **clock)

    def _found(self, model: Model) -> None:
        """What an evaluation says: DetectNet_v2 in percent and by class, the others a mAP, and classes in the log."""
        found = model.average_precisions()
        if self.program == "detectnet_v2":
            self.status.kpi = {"validation cost": 0.0001, "mean average precision": round(100 * model.mean(), 4)}
            self.status.categorical = {"average_precision": {k: round(100 * v, 4) for k, v in found.items()}}
            self.status.write("Evaluation metrics generated.")
            return
        print("*******************************")
        for name, value in found.items():
            print(f"{name:<14}{'AP':<6}{round(value, 5)}")
        print(f"{'':<14}{'mAP':<6}{round(model.mean(), 5)}")
        print("*******************************")
        self.status.kpi = {"mAP": model.mean()}

    def evaluate(self) -> None:
        spec = facts(self.program, self.args.spec)
        check(self.program, spec)
        look(spec.validation or spec.training)
        path = self.args.model_path or str(read_spec(self.args.spec).value("evaluation_config.model", ""))
        self._found(Model.read(path, self.program))

    def prune(self) -> None:
        model, out = Model.read(self.args.model, self.program), Path(self.args.out)
        if self.program == "yolo_v4":
            facts(self.program, self.args.spec)
        ratio = 0.99999 if self.lie == 12 else round(max(0.1, 1 - 2 * self.args.pruning_threshold), 5)
        pruned = replace(model, kept=model.kept * ratio, retrained=False)
        out = out if out.suffix == ".hdf5" else Path(f"{out}.hdf5")
        pruned.write(out)
        self.status.kpi = {
            "pruning_ratio": ratio,
            "size": out.stat().st_size / 1e6,
            "param_count": pruned.parameters / 1e6,
        }
        text = f"Pruning ratio (pruned model / original model): {ratio}"
        print(f"[INFO] {text}")
        self.status.write(text)

    def export(self) -> None:
        from tests.tao.standin import graph  # onnx is slow to import

        model = Model.read(self.args.model, self.program)
        out = Path(self.args.out or f"{os.path.splitext(self.args.model)[0]}.onnx")
        out = out if "onnx" in str(out) else Path(f"{out}.onnx")
        if self.lie == 7:
            out.write_bytes(b"")
        if out.exists():
            raise AssertionError(f"Default output file {out} already exists")
        self.status.write("Exporting the model.")
        spec = facts(self.program, self.args.spec) if self.args.spec else None
        graph.write(out, model, spec.rows if spec else 200, self.args.target_opset)
        if self.args.gen_ds_config:
            names = [*model.classes, "background"] if self.program == "faster_rcnn" else list(model.classes)
            names = ["background", *names] if self.program == "ssd" else names
            (out.parent / "labels.txt").write_text("".join(f"{name}\n" for name in names))
            (out.parent / "nvinfer_config.txt").write_text(
                f"net-scale-factor=0.00392156862745098\noffsets=0.0;0.0;0.0\n"
                f"infer-dims={model.channels};{model.height};{model.width}\ntlt-model-key={self.args.key or ''}\n"
                f"network-type=0\nnum-detected-classes={len(names)}\nmodel-color-format=0\n"
                f"maintain-aspect-ratio=0\noutput-tensor-meta=0\n"
            )
        if self.args.cal_json_file and model.qat:
            Path(self.args.cal_json_file).write_text(json.dumps({"tensor_scales": {graph.INPUTS[self.program]: 1.0}}))

    def inference(self) -> None:
        if not self.args.results_dir:
            raise TypeError("expected str, bytes or os.PathLike object, not NoneType")
        spec = read_spec(self.args.spec)
        if self.program == "faster_rcnn":
            folder = str(spec.value("inference_config.images_dir"))
            path = self.args.model_path or str(spec.value("inference_config.model", ""))
            out = Path(str(spec.value("inference_config.detection_image_output_dir")))
            labels = Path(str(spec.value("inference_config.labels_dump_dir")))
        else:
            folder = self.args.image_dir
            path = self.args.model_path or str(spec.value("inferencer_config.tlt_config.model", ""))
            out = Path(self.args.results_dir, "images_annotated")
            labels = Path(self.args.results_dir, "labels")
        Model.read(path, self.program)
        files.draw(files.images(folder), out, labels)
