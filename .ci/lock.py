"""`make lock`: each requirements.txt anew from its requirements.in; versions stay unless `--upgrade` is given.

A lock names exact versions and nothing of this machine: no index, no folder, no local build of PyTorch (which build is
installed, the set-up decides: `refit.embedded.installer.torch_backend`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from refit.embedded import installer

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {
    "images/airflow/requirements.in": "requirements.txt",
    "images/airflow/cluster.in": "images/airflow/cluster.txt",
    "images/tools/requirements.in": "images/tools/requirements.txt",
    "images/cpu/requirements.in": "images/cpu/requirements.txt",
    "images/triton/requirements.in": "images/triton/requirements.txt",
    "images/tensorflow/requirements.in": "images/tensorflow/requirements.txt",
    "images/tfjs/requirements.in": "images/tfjs/requirements.txt",
    "images/tensorrt/requirements.in": "images/tensorrt/requirements.txt",
    "images/lint/requirements.in": "images/lint/requirements.txt",
    "docs/requirements.in": "docs/requirements.txt",
    "tests/requirements.in": "tests/requirements.txt",
    "tests/helm/requirements.in": "tests/helm/requirements.txt",
    "tests/remote/requirements.in": "tests/remote/requirements.txt",
    "tests/tao/oracle/requirements.in": "tests/tao/oracle/requirements.txt",
    "tests/judges/requirements.in": "tests/judges/requirements.txt",
}
PYTHONS = {"tests/helm/requirements.in": "3.12"}  # all others: 3.11
# Locks that another must agree with: it is installed into them, or checks code that runs there.
FOLLOWED = {
    "images/lint/requirements.in": ("images/tools/requirements.txt",),
    "tests/requirements.in": ("requirements.txt", "images/tools/requirements.txt", "images/cpu/requirements.txt"),
}
# A lock that takes the versions of another wherever they fit.
LIKE = {"images/airflow/cluster.in": "requirements.txt"}
# Taken as they are. NVIDIA's own dependencies of them are for what we do not use, and contradict what the environment
# needs; of TensorRT the public index has a placeholder that fetches from another index when it is asked what it needs.
WITHOUT_DEPENDENCIES = ("nvidia-pytriton", "nvidia-tao-core", "nvidia-tao-deploy", "tensorrt-")

# Resolved and not written down: tensorflow-cpu has the modules of tensorflow, refit/edge/tfjs.py stands in for the
# decision forests, and the backport is for Pythons before 3.11: uv takes it all the same, pip refuses.
LEFT_OUT = ("tensorflow", "tensorflow-decision-forests", "ydf", "pandas", "wurlitzer", "backports-strenum")
OF_TENSORFLOW = ("images/tensorflow/requirements.in", "images/tfjs/requirements.in")


def main(options: list[str]) -> int:
    home = Path(os.environ.get("REFIT_HOME") or ROOT / ".refit")
    env = installer.uv_environment(os.environ, installer.pip_settings(os.environ), home)
    uv = installer.find_uv(home, env)
    for source, lock in LOCKS.items():
        wanted = (ROOT / source).read_text()
        alone = [line for line in wanted.splitlines() if line.startswith(WITHOUT_DEPENDENCIES)]
        rest = "\n".join(line for line in wanted.splitlines() if line not in alone) + "\n"
        old = (ROOT / lock).read_text() if (ROOT / lock).exists() else ""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "lock.txt"
            # uv keeps the versions it finds there; the CPU build has a version of its own
            known = {**_pins(old), **(_pins((ROOT / LIKE[source]).read_text()) if source in LIKE else {})}
            out.write_text(re.sub(r"^(torch==[^+\s]+)$", r"\1+cpu", "\n".join(known.values()), flags=re.MULTILINE))
            argv = [uv, "pip", "compile", "-", "--python-version", PYTHONS.get(source, "3.11")]
            argv += ["--python-platform", "x86_64-manylinux_2_35"]
            argv += ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
            argv += [word for name in LEFT_OUT if source in OF_TENSORFLOW for word in ("--no-emit-package", name)]
            argv += [word for tested in FOLLOWED.get(source, ()) for word in ("-c", tested)]
            argv += ["-o", str(out), *installer.torch_backend(old, env), *options]
            if subprocess.run(argv, cwd=ROOT, env=env, input=rest, text=True, check=False).returncode:
                print(f"error: {source} cannot be resolved; {lock} stays as it was", file=sys.stderr)
                return 1
            new = re.sub(r"^(torch==[^+\s]+)\+cpu$", r"\1", out.read_text(), flags=re.MULTILINE)
        (ROOT / lock).write_text("".join(f"{line}\n" for line in alone) + new)
        print(f"{lock}: {'unchanged' if (ROOT / lock).read_text() == old else 'changed'}")
    return 0


def _pins(lock: str) -> dict[str, str]:
    """A lock's lines by package."""
    return {line.partition("==")[0]: line for line in lock.splitlines() if "==" in line}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
