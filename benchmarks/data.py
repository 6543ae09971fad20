"""What reading and checking a data set costs, against floors of the same run that only read, hash or decode it.

    PYTHONPATH=. .refit/envs/tools/bin/python -m benchmarks.data [--jpegs 20000] [--pngs 20000] [--folder FOLDER]
        [--labels 1000000]

What we add to an image is the same whatever its size, so it is measured twice: with PNGs as large as KITTI's (1242x375,
some 826 KB: 12 GB are 14,999 images), and with JPEGs of the same pixels, of which hashing takes a twentieth. A few
pictures are made different by a comment; each label file has six objects. All is read from the page cache: a disk would
hide what we add, so have more memory free than the PNGs take (16.6 GB). Each floor uses as many threads as there are
cores, as a simple program would; `hash_processes` uses processes. Everything is done in a process of its own, in turn,
and the median counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from benchmarks import report
from refit.data import snapshot, work
from refit.data.examine import Examination, examine
from refit.data.memory import FILE, Memory

WIDTH, HEIGHT = 1242, 375
CLASSES = ("Car", "Pedestrian", "Cyclist")


def make(root: Path, start: int, stop: int, objects: int = 6, image: bytes | None = None, suffix: str = ".jpg") -> None:
    """Images and labels of these numbers; all with the bytes of `image`, where that is given."""
    rng = np.random.default_rng(start)
    pictures = [_picture(k, suffix) for k in range(8)] if image is None else []
    for folder in ("image_2", "label_2"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(start, stop):
        picture = _with_comment(pictures[i % len(pictures)], b"%08d" % i) if image is None else image
        (root / "image_2" / f"{i:07}{suffix}").write_bytes(picture)
        lines = []
        for k, (x, y, w, h) in enumerate(rng.uniform((0, 0, 20, 20), (1000, 200, 120, 120), (objects, 4))):
            box = f"{x:.2f} {y:.2f} {x + w:.2f} {y + h:.2f}"
            lines.append(f"{CLASSES[k % 3]} 0.00 {k % 3} -1.57 {box} 1.41 1.58 4.36 3.18 2.27 34.38 -1.58\n")
        (root / "label_2" / f"{i:07}.txt").write_text("".join(lines))


def _picture(k: int, suffix: str) -> bytes:
    rng = np.random.default_rng(k)
    smooth = cv2.resize(rng.integers(0, 256, (12, 40, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    if suffix == ".png":  # noise decides how large it gets
        noise, how = rng.integers(-6, 7, (HEIGHT, WIDTH, 3)), []
    else:
        noise, how = rng.integers(-2 - k, 3 + k, (HEIGHT, WIDTH, 1)), [cv2.IMWRITE_JPEG_QUALITY, 40 + 3 * k]
    noisy = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(suffix, noisy, how)[1].tobytes()


def _with_comment(picture: bytes, comment: bytes) -> bytes:
    """Another file with the same picture: a comment segment (ITU T.81, B.2.4.5), or a tEXt chunk after the header."""
    if picture.startswith(b"\xff\xd8"):
        return picture[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2) + comment + picture[2:]
    chunk = b"tEXtComment\0" + comment
    return picture[:33] + (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + picture[33:]


# ---- what is measured


def paths(root: Path) -> list[str]:
    return [f.path for folder in ("image_2", "label_2") for f in os.scandir(root / folder)]


def hash_files(files: list[str]) -> None:
    for path in files:
        with open(path, "rb") as f:
            hashlib.sha256(f.read()).hexdigest()


def decode_files(files: list[str]) -> None:
    for path in files:
        with open(path, "rb") as f:
            data = f.read()
        if path.endswith(".png"):
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        else:
            simplejpeg.decode_jpeg(data, colorspace="GRAY", fastdct=True, fastupsample=True, strict=True)


def spread(pool: Callable[[int], Executor], function: Callable[[list[str]], None], files: list[str]) -> None:
    n = work.cores()
    with pool(n) as workers:
        list(workers.map(function, [files[i::n] for i in range(n)]))


class _Train(dict[str, str]):
    """Every image is in `train`."""

    def __missing__(self, name: str) -> str:
        return "train"


def check(root: Path, **how: Any) -> Examination:
    """Check and fingerprint."""
    found = examine(root, **how)
    digests = snapshot.digests(found.samples, _Train())
    snapshot.fingerprint_of(digests, CLASSES)
    return found


def measure(what: str, root: Path, memory: Path) -> None:
    if what.startswith("hash"):
        spread(ProcessPoolExecutor if what == "hash_processes" else ThreadPoolExecutor, hash_files, paths(root))
    elif what == "decode":
        spread(ThreadPoolExecutor, decode_files, [p for p in paths(root) if "/image_2/" in p])
    elif what == "check":
        check(root, decode=False)
    elif what == "check_decode":
        check(root)
    else:
        check(root, memory=Memory(memory, "benchmark"))


def timed(what: str, root: Path, memory: Path) -> dict[str, float]:
    """Seconds of the clock, and of all cores, that one of `measure` takes in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.data",
        "--measure",
        what,
        "--folder",
        str(root),
        "--memory",
        str(memory),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=report.ROOT)
    return json.loads(done.stdout)


def child(args: argparse.Namespace) -> None:
    used, began = _cpu(), time.perf_counter()
    measure(args.measure, args.folder, args.memory)
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu": _cpu() - used}))


def _cpu() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(w)[:2]) for w in who)


# ---- memory


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """The most bytes that this process and its children hold together (proportional set size), looked at often."""
    found = {"bytes": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            found["bytes"] = max(found["bytes"], sum(map(_held, _family(os.getpid()))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in _family(int(child)))]


def _held(pid: int) -> int:
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:")), 0)


def many(root: Path, count: int) -> None:
    """A data set of so many images, each with a label file of one object: links to a few files that hold a header."""
    frame = b"\xff\xd8\xff\xc0\x00\x11\x08" + HEIGHT.to_bytes(2) + WIDTH.to_bytes(2) + b"\x03" + bytes(9)
    for first in range(0, count, 50_000):  # a file has at most 65,000 links in ext4
        make(root, first, first + 1, objects=1, image=frame)
        for i in range(first + 1, min(first + 50_000, count)):
            for folder, suffix in (("image_2", ".jpg"), ("label_2", ".txt")):
                os.link(root / folder / f"{first:07}{suffix}", root / folder / f"{i:07}{suffix}")


def memory_child(args: argparse.Namespace) -> None:
    with peak_memory() as found:
        examined = check(args.folder, decode=False)
    print(json.dumps({"bytes": found["bytes"], "images": len(examined.samples)}))


def memory(folder: Path, labels: int) -> dict[str, Any]:
    """Bytes an image, from two sizes: what is constant falls out."""
    held = {}
    for count in (labels // 10, labels):
        root = folder / f"many-{count}"
        many(root, count)
        time.sleep(2.5)  # folders that changed a moment ago are listed twice
        command = [sys.executable, "-m", "benchmarks.data", "--measure", "memory", "--folder", str(root)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=report.ROOT)
        held[count] = json.loads(done.stdout)
        if held[count]["images"] != count:
            raise SystemExit(f"{root}: {held[count]['images']} of {count} images are usable")
    small, large = held.values()
    return {
        "labels": labels,
        "peak_mib": round(large["bytes"] / 2**20),
        "bytes_per_image": round((large["bytes"] - small["bytes"]) / (large["images"] - small["images"])),
    }


# ---- the table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jpegs", type=int, default=20_000, help="images of some 37 KB")
    parser.add_argument("--pngs", type=int, default=20_000, help="images of some 826 KB")
    parser.add_argument(
        "--labels", type=int, default=1_000_000, help="label files of the memory's measurement; 0: none"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the data is made (default: a temporary folder)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=Path, default=Path(os.devnull), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        (memory_child if args.measure == "memory" else child)(args)
        return
    figures: dict[str, Any] = {}
    for suffix, count in ((".jpg", args.jpegs), (".png", args.pngs)):
        if count:
            with tempfile.TemporaryDirectory(prefix="refit-data-", dir=args.folder) as folder:
                figures[suffix[1:]] = speed(Path(folder), count, suffix, args.repeats)
    if args.labels:
        with tempfile.TemporaryDirectory(prefix="refit-data-", dir=args.folder) as folder:
            figures["memory"] = memory(Path(folder), args.labels)
    report.write("data", figures)


def speed(folder: Path, count: int, suffix: str, repeats: int) -> dict[str, Any]:
    root, known = folder / "set", folder / FILE
    make(root, 0, count, suffix=suffix)
    time.sleep(2.5)  # files that changed a moment ago are not remembered (refit.data.memory)
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for what in ("hash", "hash_processes", "check", "decode", "check_decode"):
            runs.setdefault(what, []).append(timed(what, root, known))
    first = timed("arrival", root, known)
    again = [timed("arrival", root, known) for _ in range(repeats)]
    seconds = {what: statistics.median(r["seconds"] for r in found) for what, found in runs.items()}
    seconds |= {"first": first["seconds"], "nothing_new": statistics.median(r["seconds"] for r in again)}
    more = count // 100
    make(root, count, count + more, suffix=suffix)
    time.sleep(2.5)
    grown = timed("arrival", root, known)
    seconds["one_percent_new"] = grown["seconds"]
    cpu = {what: statistics.median(r["cpu"] for r in found) for what, found in runs.items()}
    cpu |= {"first": first["cpu"], "one_percent_new": grown["cpu"]}
    return {
        "images": count,
        "image_bytes": round(sum(f.stat().st_size for f in os.scandir(root / "image_2")) / (count + more)),
        "objects_per_image": 6,
        "seconds": {what: round(value, 3) for what, value in seconds.items()},
        "cpu_seconds": {what: round(value, 3) for what, value in cpu.items()},
        "check_of_hash_rate": round(seconds["hash"] / seconds["check"], 3),
        "check_of_hash_rate_processes": round(seconds["hash_processes"] / seconds["check"], 3),
        "check_of_decode_rate": round(seconds["decode"] / seconds["check_decode"], 3),
        "one_percent_of_first": round(seconds["one_percent_new"] / seconds["first"], 4),
        "by_cpu_seconds": {  # the same, where other work runs beside it
            "check_of_hash_rate": round(cpu["hash"] / cpu["check"], 3),
            "check_of_decode_rate": round(cpu["decode"] / cpu["check_decode"], 3),
            "one_percent_of_first": round(cpu["one_percent_new"] / cpu["first"], 4),
        },
    }


if __name__ == "__main__":
    main()
