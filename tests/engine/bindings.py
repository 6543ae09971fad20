"""NVIDIA's own TensorRT bindings without TensorRT: the wheel, over C++ libraries that have its symbols and do nothing.

The wheels `tensorrt-cu12-bindings` are on PyPI, the libraries that they bind are not. An import needs nine symbols.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refit.config import Settings
from refit.embedded import installer

VERSIONS = ("10.16.1.11", "11.4.0.106")
REPOSITORY = Path(__file__).resolve().parents[2]
_SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
)


def environment(version: str, folder: Path) -> dict[str, str]:
    """The variables of a process that can import this version. Skips the test where the wheel cannot be had."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the empty libraries under TensorRT's bindings")
    settings = Settings.from_env()
    env = installer.uv_environment(os.environ, installer.pip_settings(os.environ), settings.home)
    try:
        uv = installer.find_uv(settings.home, env)
    except installer.SetupError as exc:
        pytest.skip(f"no uv to fetch TensorRT's bindings with: {exc}")
    wheel = [f"tensorrt-cu12-bindings=={version}", "--no-deps", "--only-binary", ":all:", "--target", str(folder)]
    done = subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", sys.executable, *wheel],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        pytest.skip(f"tensorrt-cu12-bindings {version} cannot be had: {done.stderr.strip()[-300:]}")
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{library}.so.{version.split('.', maxsplit=1)[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", folder / file, source], check=True)
    paths = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    return {**os.environ, **paths}


class Worker:
    """A process with the bindings of one version, which builds one played network after the other."""

    def __init__(self, version: str, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.double"],
            env=environment(version, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def build(self, network: dict[str, Any], feeds: Any = None, **spec: Any) -> Any:
        """What Refit's builder did (tests/engine/double.py)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        work = self._folder / f"build-{self._count}"
        work.mkdir()
        (work / "model.onnx").write_text(json.dumps(network))
        (work / "wish.json").write_text(json.dumps({"spec": spec, "feeds": feeds}))
        print(work, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line == "done\n":
                return json.loads((work / "result.json").read_text())
        raise AssertionError(f"the process ended with {self._process.wait()}; its messages are above")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
