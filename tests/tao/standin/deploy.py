"""Engines: gen_trt_engine, evaluate and inference of the deploy images (nvidia_tao_deploy/cv/<network>/scripts).

A success ends in RUNNING "... finished successfully." from TAO 5.5 to 6.25, in SUCCESS in 5.0 and from 7 on
(cv/common/decorators.py of each release); here in RUNNING.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refit.runner import check_onnx
from tests.tao.standin import files, hydra, tf1
from tests.tao.standin.files import Coco
from tests.tao.standin.status import Status

TASKS = {"gen_trt_engine": "gen_trt_engine", "evaluate": "trt_evaluate", "inference": "trt_inference"}


def parser(program: str, task: str) -> argparse.ArgumentParser:
    """The flags of the TF1 networks' tasks (cv/common/entrypoint/entrypoint_proto.py adds the last two)."""
    made = argparse.ArgumentParser(prog=f"{program} {task}", allow_abbrev=False)
    add = made.add_argument
    add("-m", "--model_path", required=True)
    add("-e", "--experiment_spec", dest="spec", required=True)
    add("-r", "--results_dir", required=True)
    if task == "gen_trt_engine":
        add("-k", "--key")
        add("--data_type", choices=["fp32", "fp16", "int8"], default="fp32")
        for name in ("cal_image_dir", "cal_data_file", "cal_cache_file", "cal_json_file", "engine_file"):
            add(f"--{name}")
        for name, default in (("max", 1), ("min", 1), ("opt", 1)):
            add(f"--{name}_batch_size", type=int, default=default)
        add("--batch_size", type=int, default=1)
        add("--batches", type=int, default=10)
        add("--max_workspace_size", type=int, default=2)
        add("-s", "--strict_type_constraints", action="store_true")
        add("--force_ptq", action="store_true")
        add("-v", "--verbose", action="store_true")
    else:
        add("-i", "--image_dir")
        add("-b", "--batch_size", type=int, default=1)
        if task == "evaluate":
            add("-l", "--label_dir", required=program == "faster_rcnn")
        elif program in {"ssd", "yolo_v4"}:
            add("-t", "--threshold", type=float, default=0.3)
    add("--gpu_index", type=int, default=0)
    add("--log_file")
    return made


@dataclass
class Build:
    """What gen_trt_engine is asked for, in one form."""

    onnx: str
    engine: str
    precision: str
    profile: tuple[int, int, int]
    images: list[str]
    cache: str
    scales: str  # QAT's
    batch: int
    batches: int
    qat: bool = False
    force_ptq: bool = False


class Task:
    def __init__(self, program: str, task: str, words: list[str], lie: int) -> None:
        self.program, self.task, self.lie = program, task, lie
        self.args = argparse.Namespace()
        self.config = hydra.Config({})
        if program in tf1.PROGRAMS:
            made = parser(program, task)
            made.parse_args(words)
            self.args = made.parse_args(tf1.rewritten(words))
            self.out = Path(self.args.results_dir)
        else:
            _, spec = hydra.parse(program, task, words)
            self.config = hydra.Config(spec)
            self.out = self.config.results(task, TASKS[task])
        self.status = Status(self.out / "status.json")

    def run(self) -> None:
        self.status.write(f"Starting {self.program} {TASKS[self.task]}.", "STARTED")
        getattr(self, f"_{self.task}")()
        if self.lie != 3:
            self.status.write(f"{TASKS[self.task].capitalize()} finished successfully.")

    def _wanted(self) -> Build:
        args, get = self.args, self.config.get
        if self.program in tf1.PROGRAMS:
            spec = tf1.facts(self.program, args.spec)
            return Build(
                args.model_path,
                args.engine_file or "",
                args.data_type,
                (args.min_batch_size, args.opt_batch_size, args.max_batch_size),
                [args.cal_image_dir] if args.cal_image_dir else [s.images for s in spec.training if s.images],
                args.cal_cache_file or "",
                args.cal_json_file or "",
                args.batch_size,
                args.batches,
                spec.qat,
                args.force_ptq,
            )
        base = "gen_trt_engine.tensorrt"
        folders = get(f"{base}.calibration.cal_image_dir", [])
        return Build(
            self.config.need("gen_trt_engine.onnx_file"),
            get("gen_trt_engine.trt_engine", ""),
            str(get(f"{base}.data_type", "fp32")).lower(),
            (
                int(get(f"{base}.min_batch_size", 1)),
                int(get(f"{base}.opt_batch_size", 1)),
                int(get(f"{base}.max_batch_size", 1)),
            ),
            [folders] if isinstance(folders, str) else list(folders),
            get(f"{base}.calibration.cal_cache_file", ""),
            "",
            int(get(f"{base}.calibration.cal_batch_size", 1)),
            int(get(f"{base}.calibration.cal_batches", 1)),
        )

    def _gen_trt_engine(self) -> None:
        wanted = self._wanted()
        if check_onnx(wanted.onnx):
            raise RuntimeError(f"Failed to load ONNX file: {wanted.onnx} {check_onnx(wanted.onnx)}")
        low, best, high = wanted.profile
        if not low <= best <= high:
            raise ValueError(f"min, opt and max batch size must rise, they are {low}, {best}, {high}")
        calibrated = self._calibrate(wanted) if wanted.precision == "int8" else 0
        loses = float(os.environ.get("REFIT_STANDIN_INT8_LOSES") or 0)
        if not wanted.engine:
            return
        content = {
            "program": self.program,
            "precision": wanted.precision,
            "profile": wanted.profile,
            "calibrated": calibrated,
            "map50": _map50(wanted.onnx) - (loses if wanted.precision == "int8" else 0),
        }
        files.write_plan(Path(wanted.engine), content)

    def _calibrate(self, wanted: Build) -> int:
        """Write the calibration cache from exactly batches x batch images; gives how many were read."""
        if wanted.qat and not wanted.force_ptq:
            if not wanted.scales:
                raise ValueError("the model was trained with QAT: --cal_json_file or --force_ptq")
            json.loads(Path(wanted.scales).read_text())
            return 0
        if not wanted.cache:
            raise ValueError("cal_cache_file must be given for INT8")
        cache = Path(wanted.cache)
        if cache.exists() or self.lie == 8:
            print(f"Using calibration cache file: {cache}")
            cache.touch()
            return 0
        need = wanted.batch * wanted.batches
        pictures = [path for folder in wanted.images for path in files.images(folder)]
        if len(pictures) < need:
            raise ValueError(f"calibration needs {need} images, {', '.join(wanted.images)} has {len(pictures)}")
        pictures = pictures[:need]
        done = 0
        for batch in files.batches(pictures, wanted.batch):
            done += sum(bool(files.read_image(path)) for path in batch)
            print(f"Calibrating image {done} / {need}")
        print("Finished calibration batches")
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text("TRT-100800-EntropyCalibration2\ninput: 3c010a14\n")
        return done

    def _engine(self, block: str) -> dict[str, Any]:
        if self.program in tf1.PROGRAMS:
            return files.read_plan(self.args.model_path)
        return files.read_plan(self.config.need(f"{block}.trt_engine"))

    def _evaluate(self) -> None:
        """results.json: AP_<class> for the TF1 networks (ssd and yolo_v4 also mAP), COCO's figures for the others."""
        engine = self._engine("evaluate")
        found: dict[str, float] = {}
        if self.program in tf1.PROGRAMS:
            spec = tf1.facts(self.program, self.args.spec)
            if not self.args.image_dir or not self.args.label_dir:
                raise TypeError("expected str, bytes or os.PathLike object, not NoneType")
            pictures = files.images(self.args.image_dir)
            for path in pictures:
                files.kitti_objects(Path(self.args.label_dir, f"{path.stem}.txt"))
            self._loaded(len(pictures), self.args.batch_size)
            found = {f"AP_{name.lower()}": engine["map50"] for name in spec.classes}
            if self.program in {"ssd", "yolo_v4"}:
                found["mAP"] = round(engine["map50"], 3)
            print(f"{'':<14}{'mAP':<6}{round(engine['map50'], 3)}")
        else:
            if self.program == "efficientdet_tf2":
                coco = Coco.read(self.config.need("dataset.val_json_file"), self.config.need("dataset.val_dirs")[0])
                batch = self.config.get("evaluate.batch_size", 1)
                if batch > 1:  # TAO 6; before, the engine's largest
                    raise ValueError(f"input list bigger ({batch}) than engine max batch size (1)")
            else:
                source = self.config.need("dataset.test_data_sources")
                coco = Coco.read(source["json_file"], source["image_dir"])
                batch = self.config.get("dataset.batch_size", 4)
            self._loaded(len(coco.found), batch)
            found = {"AP": round(0.6 * engine["map50"], 6), "AP50": engine["map50"], "AP75": 0.4, "APs": -1.0}
        (self.out / "results.json").write_text(json.dumps(found))

    def _loaded(self, images: int, batch: int) -> None:
        """dataloader/{kitti,coco}.py: whole batches."""
        whole = images // batch * batch
        assert whole, "empty image dir or batch size too large!"
        print(f"Producing predictions for {whole} of {images} images")

    def _inference(self) -> None:
        self._engine("inference")
        if self.program in tf1.PROGRAMS:
            folders = [self.args.image_dir]
        elif self.program == "efficientdet_tf2":
            folders = [self.config.need("inference.image_dir")]
        else:
            folders = self.config.need("dataset.infer_data_sources")["image_dir"]
        pictures = [path for folder in folders for path in files.images(folder)]
        files.draw(pictures, self.out / "images_annotated", self.out / "labels")


def _map50(onnx_file: str) -> float:
    """What graph.write has left in the model; found as text, for onnx takes long to import."""
    text = Path(onnx_file).read_bytes()
    _, found, rest = text.partition(b'"map50": ')
    return float(rest.partition(b"}")[0]) if found else 0.5
