"""The conversions for real, on a small detector that was trained for a moment; each by the commands of its stage.

They run where their environments are (2 GB each, `sh bin/setup tensorflow tfjs`), and say otherwise that they skip.
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from refit.postprocess import Frame, ModelInfo, decoder_for
from refit.runtime.local import EnvironmentMissing, interpreter

REPOSITORY = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("REFIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# Chooses a file as a person does, and shows what the page then shows.
CHOOSE = """<!doctype html><iframe src="index.html"></iframe><script>
const frame = document.querySelector("iframe");
const until = async (found) => { while (!found()) await new Promise((done) => setTimeout(done, 20)); };
frame.onload = async () => {
  const page = frame.contentDocument;
  const field = page.getElementById("file");
  await until(() => !field.disabled);
  const chosen = new DataTransfer();
  chosen.items.add(new File([await (await fetch("picture.png")).blob()], "picture.png"));
  field.files = chosen.files;
  field.dispatchEvent(new Event("change"));
  await until(() => /found|cannot/.test(page.getElementById("said").textContent));
  document.body.innerHTML = page.body.innerHTML;
};
</script>
"""
# A detector of 160x96 and its data, by the cpu toolkit.
MAKE = """
import sys
from pathlib import Path
from refit.cpu import export, train
from refit.cpu.specs import ExportSpec
from refit.cpu.status import StatusWriter
from tests.cpu.tiny import tiny_records, train_spec
out = Path(sys.argv[1])
records = tiny_records(out / "records", train=32)
for name in ("train", "export"):
    (out / name).mkdir()
train.run(train_spec(records, epochs=25, learning_rate=0.01), out / "train", StatusWriter(out / "train"))
spec = ExportSpec(model=str(out / "train" / "model.pth"), records=str(records))
export.run(spec, out / "export", StatusWriter(out / "export"))
"""


def python(environment: str) -> str:
    try:
        return str(interpreter(environment))
    except EnvironmentMissing as exc:
        pytest.skip(str(exc))


def call(environment: str, *argv: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [python(environment), *argv], check=False, env=env, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


class House:
    """A trained model's folder, in which stages are run by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = {"info": str(folder / "export" / "model.json")}

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def run(self, package: str, action: str, environment: str, name: str, spec: dict[str, Any]) -> Path:
        """A stage's out/; made once."""
        out = self / name
        if not (out / "status.json").exists():
            (self / f"{name}.yaml").write_text(yaml.safe_dump(spec))
            call(environment, "-m", package, action, "-e", str(self / f"{name}.yaml"), "-r", str(out))
        return out

    def convert(self, kind: str) -> Path:
        if kind == "saved_model":
            spec = {**self.info, "model": str(self / "export" / "model.onnx")}
            return self.run("refit.edge", kind, "tensorflow", kind, spec)
        spec = {**self.info, "saved_model": str(self.convert("saved_model") / "saved_model")}
        if kind == "coral":
            spec |= {"records": str(self / "records")}
        return self.run("refit.edge", kind, "tfjs" if kind == "tfjs" else "tensorflow", kind, spec)

    def results(self, kind: str | None) -> dict[str, Any]:
        """results.json of a conversion, or of the ONNX model."""
        spec: dict[str, Any] = {"records": str(self / "records")}
        if kind is None:
            spec |= {"model": str(self / "export" / "model.onnx")}
            out = self.run("refit.cpu", "evaluate", "cpu", "evaluate", spec)
        else:
            spec |= {**self.info, "kind": kind, "model": str(self.convert(kind))}
            environment = "tfjs" if kind == "tfjs" else "tensorflow"
            out = self.run("refit.edge", "evaluate", environment, f"evaluate_{kind}", spec)
        found: dict[str, Any] = json.loads((out / "results.json").read_text())
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    python("tensorflow")
    folder = tmp_path_factory.mktemp("house")
    call("cpu", "-c", MAKE, str(folder))
    return House(folder)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("tflite", 0.01), ("coral", 0.02), ("saved_model", 0.01), ("frozen_graph", 0.01), ("tfjs", 0.01)],
)
def test_a_conversion_finds_what_the_onnx_model_finds(house: House, kind: str, limit: float) -> None:
    if kind == "tfjs":
        python("tfjs")
    before, after = house.results(None), house.results(kind)
    assert before["metrics"]["mAP50"] > 0.5, "a model that finds nothing would lose nothing"
    assert after["metrics"]["mAP50"] > before["metrics"]["mAP50"] - limit
    assert {k: before[k] for k in ("dataset", "splits", "thresholds")} == {
        k: after[k] for k in ("dataset", "splits", "thresholds")
    }, "the gate compares them"


def test_the_exported_model_stays_as_it_was(house: House) -> None:
    """onnx2tf writes over the file that it reads; what a release takes, and its sha256, must not change by it."""
    made = json.loads((house / "export" / "status.json").read_text().splitlines()[-1])["kpi"]["bytes"]
    house.convert("saved_model")
    assert (house / "export" / "model.onnx").stat().st_size == made


def test_coral_takes_pixels_as_they_are(house: House) -> None:
    out = house.convert("coral")
    tensors = json.loads((out / "tensors.json").read_text())
    assert (tensors["input"]["dtype"], tensors["input"]["zero_point"]) == ("uint8", 0)
    assert tensors["input"]["scale"] == pytest.approx(1 / 255, rel=0.01)
    assert {tensor["dtype"] for tensor in tensors["outputs"].values()} == {"uint8"}
    assert (out / "coral" / "labelmap.txt").read_text().split() == ["car", "person", "sign"]


@pytest.fixture
def page(house: House) -> Iterator[str]:
    """The address of the TF.js bundle, served as its page says."""
    python("tfjs")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(house.convert("tfjs") / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (in PATH, or REFIT_CHROMIUM)")


def shown(address: str, profile: Path) -> str:
    """The HTML of a page once its scripts are at rest."""
    return subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            f"--user-data-dir={profile}",
            "--virtual-time-budget=60000",
            "--dump-dom",
            address,
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


@browser
@pytest.mark.parametrize("how", ["index.html?image=picture.png", "choose.html"])
def test_the_page_finds_in_a_browser_what_refit_finds(house: House, page: str, tmp_path: Path, how: str) -> None:
    """At the input's own size, so that the browser scales nothing and the pixels are the same."""
    info = ModelInfo.read(house / "export" / "model.json")
    with np.load(house / "export" / "reference.npz") as reference:
        pixels = (reference[f"input:{info.input.name}"][0] * 255).round().astype(np.uint8).transpose(1, 2, 0)
        outputs = {name: reference[f"output:{name}"][:1] for name in info.outputs.values()}
    web = house.convert("tfjs") / "web"
    cv2.imwrite(str(web / "picture.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    (web / "choose.html").write_text(CHOOSE)
    (want,) = decoder_for(info)(outputs, [Frame.fit(160, 96, info.input)])
    said = shown(f"{page}/{how}", tmp_path / "profile")
    status = re.search(r'<p id="said"[^>]*>(.*?)</p>', said)
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", said)
    assert status is not None
    assert f"{len(want.scores)} found" in status[1], said[-3000:]
    assert "by wasm" in status[1]
    assert len(rows) == len(want.scores) > 0
    for (name, score, box), cls, sure, edges in zip(rows, want.classes, want.scores, want.boxes, strict=True):
        assert html.unescape(name) == info.classes[cls]
        assert float(score) == pytest.approx(float(sure), abs=0.002)
        assert [int(n) for n in box.split(", ")] == pytest.approx(edges.tolist(), abs=0.6)


@browser
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("image=gone.png", "gone.png cannot be looked at: the server says 404 File not found"),
        ("image=refit.json", "refit.json cannot be looked at: The source image could not be decoded."),
        ("backend=gpu", "The model cannot be loaded: Backend name 'gpu' not found in registry."),
    ],
)
def test_the_page_says_what_it_cannot_look_at(page: str, tmp_path: Path, asked: str, told: str) -> None:
    assert told in shown(f"{page}/index.html?{asked}", tmp_path / "profile")
