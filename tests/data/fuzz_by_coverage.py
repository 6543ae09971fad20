"""Fuzz a reader guided by the code that an input reaches (atheris, libFuzzer); the tests' own fuzzing is hypothesis'.

    uv pip install --target /tmp/atheris atheris
    PYTHONPATH=.:/tmp/atheris .refit/envs/tools/bin/python tests/data/fuzz_by_coverage.py FORMAT -max_total_time=60

An input takes the place of one of the format's files beside the images, in a data set that is good otherwise. Nothing
may crash or hang (libFuzzer's -timeout), and the rule holds: objects in = objects out + objects reported. What fails is
written as crash-... and tried again by naming that file. Not part of the tests: it ends when it is told to, and atheris
is no small package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: see the head of this file")

with atheris.instrument_imports(include=["refit.data"]):
    from refit.data import convert
    from refit.data.codes import CODES
    from refit.data.examine import examine
    from refit.data.faults import BadData
    from refit.data.formats import WRITERS

from tests.data.helpers import kitti_set


def fuzz(name: str, folder: Path, arguments: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    root, seeds = folder / "set", folder / "seeds"
    convert.write(convert.from_folder(kitti_set(folder / "source", 3)), root, name, copy=True)
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix not in (".jpg", ".png"))
    good = [p.read_bytes() for p in files]
    seeds.mkdir()
    for i, data in enumerate(good):
        (seeds / str(i)).write_bytes(bytes([i]) + data)

    def once(data: bytes) -> None:
        which = data[0] % len(files) if data else 0
        files[which].write_bytes(data[1:])
        try:
            found = examine(root, format=name, max_bad_labels=1, decode=False)
        except BadData as exc:
            if {f.code for f in exc.faults} - {"not_recognised"}:
                raise
        else:
            assert found.balanced()
            assert all(f.code in CODES and f.advice for f in found.faults)
        finally:
            files[which].write_bytes(good[which])

    atheris.Setup([sys.argv[0], "-timeout=20", *arguments, str(seeds)], once)
    atheris.Fuzz()


def main(name: str, arguments: list[str]) -> int:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary:
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with this process
            fuzz(name, Path(temporary), arguments)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in WRITERS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(sorted(WRITERS))}}} [options of libFuzzer]")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
