"""Confidence intervals of mAP@0.5: 1,000 draws over 5,000 images, 3 classes, 100 detections an image.

    PYTHONPATH=. .refit/envs/cpu/bin/python benchmarks/bootstrap.py [--images 5000] [--draws 1000]

The rival draws the images and scores them with pycocotools, as scripts on the net do; it is timed for three draws.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from benchmarks import report
from refit.cpu.scoring import Truth, ground_truth, results, score
from refit.gates import bootstrap
from refit.postprocess import Detections

CLASSES = ("a", "b", "c")
RIVAL_DRAWS = 3


def made(images: int, detections: int = 100) -> tuple[list[Truth], list[Detections]]:
    """1 to 11 objects an image, each found with a few pixels of error; the other detections lie anywhere."""
    r = np.random.default_rng(0)
    truth, found = [], []
    for i in range(images):
        n = int(r.integers(1, 12))
        at = r.integers(0, 500, (n, 2))
        boxes = np.concatenate([at, at + r.integers(10, 90, (n, 2))], axis=1).astype(np.float32)
        classes = r.integers(0, len(CLASSES), n)
        truth.append(Truth(f"{i}.png", 600, 600, boxes, classes, np.zeros(n, bool)))
        at = r.integers(0, 500, (detections - n, 2))
        others = np.concatenate([at, at + 40], axis=1)
        guesses = np.concatenate([boxes + r.normal(0, 3, boxes.shape), others]).astype(np.float32)
        scores = np.concatenate([r.beta(4, 2, n), r.beta(1, 6, detections - n)]).astype(np.float32)
        found.append(Detections(guesses, scores, np.concatenate([classes, r.integers(0, 3, detections - n)])))
    return truth, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    truth, found = made(args.images)
    wanted, listed = ground_truth(truth, CLASSES), results(truth, found)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    matched = bootstrap.matches(wanted, listed, 100, 0.0)
    matching = time.perf_counter() - began
    spread = bootstrap.interval(bootstrap.map50(matched, bootstrap.draws(args.images, 1, args.draws))[0])
    ours, ours_cpu = time.perf_counter() - began, time.process_time() - cpu
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    r = np.random.default_rng(1)
    cpu = time.process_time()
    for _ in range(RIVAL_DRAWS):
        picked = r.integers(0, args.images, args.images)
        score([truth[i] for i in picked], [found[i] for i in picked], CLASSES)
    rival = (time.process_time() - cpu) / RIVAL_DRAWS * args.draws
    report.write(
        "bootstrap",
        {
            "images": args.images,
            "draws": args.draws,
            "mAP50": round(spread.value, 4),
            "interval": [round(spread.low, 4), round(spread.high, 4)],
            "seconds": round(ours, 2),
            "of_which_matching": round(matching, 2),
            "cpu_seconds": round(ours_cpu, 2),
            "added_mib": round(memory),
            "pycocotools_cpu_seconds": round(rival),
            "ratio": round(rival / ours_cpu),
        },
    )


if __name__ == "__main__":
    main()
