"""Batch inference through Triton against a client that decodes and prepares the same images, asks, and does no more.

    PYTHONPATH=. .refit/envs/tools/bin/python benchmarks/predict.py [--images 600] [--rounds 5]

A real tritonserver on this machine, a network of the demo's size (320 x 192, five convolutions, 3 classes), pictures of
640 x 480 as JPEG with a few bright squares, which it finds. Both sides decode, prepare and ask by the same functions,
with as many requests at once and as many images in each; the client drops the answers, `refit predict` reads them,
keeps each in its journal, and writes all results. The client runs with several sizes first and keeps its best. Both
take turns; the figure is the median of the ratios of neighbours. `cpu_ms_an_image` is what either process needs,
without the server: it says the same on a machine that does other things as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import report
from refit.postprocess import InputInfo, ModelInfo, preprocess
from refit.predict import stage
from refit.predict.pictures import decode
from refit.predict.specs import TritonInferenceSpec
from refit.status import StatusWriter
from refit.triton.client import TritonClient
from refit.triton.release import release
from refit.triton.server import TritonServer
from refit.triton.specs import ReleaseSpec

CLASSES = ("red", "green", "blue")
WIDTH, HEIGHT, CELL = 320, 192, 16
TRUNK = ((3, 16, 2), (16, 24, 2), (24, 48, 2), (48, 96, 2), (96, 128, 1))  # in, out, stride: as the cpu toolkit's


def make_model(folder: Path) -> Path:
    """Coverage is how much of one colour a cell has, the box is the cell; the trunk's work counts, its answer not."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "input_1"

    def weight(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    for i, (before, after, stride) in enumerate(TRUNK):
        kernel = weight(f"w{i}", rng.standard_normal((after, before, 3, 3)) * (before * 9) ** -0.5)
        nodes.append(helper.make_node("Conv", [last, kernel], [f"c{i}"], strides=[stride] * 2, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last = f"r{i}"
    for name, channels in (("cov", 3), ("box", 12)):
        nodes.append(
            helper.make_node("Conv", [last, weight(f"w {name}", np.zeros((channels, 128, 1, 1)))], [f"0 {name}"])
        )
    tell = np.full((3, 3, 1, 1), -8.0) + np.eye(3)[..., None, None] * 20
    pool = {"kernel_shape": [CELL] * 2, "strides": [CELL] * 2}
    box = np.tile([0.5, 0.5, CELL - 0.5, CELL - 0.5], 3) / 35
    nodes += [
        helper.make_node("AveragePool", ["input_1"], ["mean"], **pool),
        helper.make_node("Conv", ["mean", weight("tell", tell), weight("bias", np.full(3, -6.0))], ["told"]),
        helper.make_node("Add", ["told", "0 cov"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["cov"]),
        helper.make_node("Add", ["0 box", weight("box bias", box.reshape(1, 12, 1, 1))], ["box"]),
    ]
    shape = [HEIGHT // CELL, WIDTH // CELL]
    values = {"input_1": [3, HEIGHT, WIDTH], "cov": [3, *shape], "box": [12, *shape]}
    infos = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", *v]) for k, v in values.items()}
    graph = helper.make_graph(nodes, "bench", [infos["input_1"]], [infos["cov"], infos["box"]], weights)
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    info = ModelInfo("detectnet_v2", CLASSES, InputInfo("input_1", WIDTH, HEIGHT), {"coverage": "cov", "bbox": "box"})
    path.with_name("model.json").write_text(info.text())
    return path


def make_images(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(count):
        small = rng.integers(40, 180, (60, 80, 3), dtype=np.uint8)
        image = cv2.resize(small, (640, 480), interpolation=cv2.INTER_CUBIC)
        for _ in range(4):
            x, y, c = int(rng.integers(0, 560)), int(rng.integers(0, 400)), int(rng.integers(0, 3))
            image[y : y + 70, x : x + 70] = np.eye(3, dtype=np.uint8)[c] * 255
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])


def client(url: str, images: Path, threads: int, batch: int, info: InputInfo) -> float:
    """Images a second of the client that does nothing else."""
    paths = iter(sorted(images.iterdir()))
    lock, done = threading.Lock(), []

    def work() -> None:
        with TritonClient(url) as triton:
            while True:
                with lock:
                    chunk = list(islice(paths, batch))
                if not chunk:
                    return
                tensors = [preprocess(decode(path.read_bytes()), info)[0] for path in chunk]
                triton.infer("bench", {info.name: np.concatenate(tensors)}, 1)
                done.append(len(chunk))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - begin)


def refit(url: str, images: Path, out: Path, **sizes: int) -> tuple[float, int]:
    """Images a second of `refit predict` from the listing to the last file, and the objects that it found."""
    shutil.rmtree(out, ignore_errors=True)
    spec = TritonInferenceSpec(images=str(images), model="bench", url=url, **sizes)
    begin = time.perf_counter()
    stage.run(spec, out, StatusWriter(out))
    seconds = time.perf_counter() - begin
    told = json.loads((out / "predictions.json").read_text())
    return told["images"] / seconds, sum(told["objects"].values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refit-predict-") as name:
        root = Path(name)
        os.environ["REFIT_DATA_ROOTS"] = name
        images = root / "images"
        make_images(images, args.images)
        with TritonServer(root / "models", root / "run") as server:
            where = {"url": server.url, "repository": root / "models", "ledger": root / "releases"}
            path = make_model(root / "made")
            release(ReleaseSpec(model_path=path, model="bench", pipeline="p", run="r", prove="never", **where))
            info = ModelInfo.read(path.with_name("model.json")).input
            sizes = [(threads, batch) for threads in (2, 4, 8) for batch in (4, 8)]
            tried = {size: client(server.url, images, *size, info) for size in sizes}
            best = max(tried, key=lambda size: tried[size])
            rows = []
            cpu = {"client": 0.0, "refit": 0.0}
            for _ in range(args.rounds):
                begin = time.process_time()
                alone = client(server.url, images, *best, info)
                middle = time.process_time()
                ours, objects = refit(server.url, images, root / "out", in_flight=best[0], batch=best[1])
                cpu["client"] += middle - begin
                cpu["refit"] += time.process_time() - middle
                default, _ = refit(server.url, images, root / "out")
                rows.append({"client": alone, "refit": ours, "refit_defaults": default})
    figures = {k: round(statistics.median(r[k] for r in rows), 1) for k in rows[0]}
    report.write(
        "predict",
        {
            "images": args.images,
            "objects": objects,
            "client_tried": {f"{threads} x {batch}": round(rate, 1) for (threads, batch), rate in tried.items()},
            "requests_at_once": best[0],
            "images_a_request": best[1],
            "images_a_second": figures,
            "cpu_ms_an_image": {k: round(1000 * v / args.rounds / args.images, 3) for k, v in cpu.items()},
            "ratio": round(statistics.median(r["refit"] / r["client"] for r in rows), 3),
            "ratio_defaults": round(statistics.median(r["refit_defaults"] / r["client"] for r in rows), 3),
        },
    )


if __name__ == "__main__":
    main()
