"""A workspace with a small data set in which runs are bound, and stages finished, as bind and the runner leave them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from refit import bind, files, runner
from refit import plan as plans
from refit.command import main
from refit.config import Settings

PIPELINE = """\
dataset:
  source: inbox/mine
  format: kitti
  classes: [cross, ring, triangle]
  split: {val: 0.3}
toolkit: cpu
network: {input_width: 320, input_height: 192}
stages:
  train: {epochs: 2, batch_size: 4}
  quantize: {images: 5}
"""


class Place:
    """A workspace, a data folder, and a way to bind a run there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data" / "inbox" / "mine"
        self.workspace = root / "workspace" / "mine"
        self.error = ""

    def bind(
        self,
        run_id: str = "r1",
        text: str = PIPELINE,
        conf: dict[str, Any] | None = None,
        profile: dict[str, Any] | None = None,
        data: str | None = None,
        share: int | None = None,
    ) -> int:
        """Bind a run, or look at a share of its data."""
        file = self.root / "mine.yaml"
        nonce = os.urandom(4).hex()
        more: dict[str, Any] = {"nonce": nonce, "profile": profile, "data": data, "share": share}
        request = plans.bind_request(file, text, run_id, conf or {}, Settings.from_env(), **more)
        stage = Path(request["paths"]["stage"])
        (stage / "specs").mkdir(parents=True, exist_ok=True)
        (stage / "specs" / "bind.yaml").write_text(request["files"]["bind.yaml"])
        self.out = stage / "out"
        code = main(
            "refit.bind",
            bind.ACTIONS,
            [request["action"], "-e", str(stage / "specs" / "bind.yaml"), "-r", str(self.out)],
        )
        last = json.loads((self.out / "status.json").read_text().splitlines()[-1])
        self.error = last["message"] if last["status"] == "FAILURE" else ""
        return code

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "summary.json").read_text()))

    @property
    def plan(self) -> dict[str, Any]:
        return dict(json.loads(Path(self.summary["plan"]).read_text()))

    def finish(self, name: str) -> Path:
        """Leave a good result of a stage, as the runner does."""
        stage = next(s for s in self.plan["stages"] if s["name"] == name)
        folder = Path(stage["paths"]["stage"])
        (folder / "out").mkdir(parents=True)
        outputs = {}
        for output in stage["outputs"]:
            path = folder / "out" / output["path"]
            path.write_text("{}" * 600)
            size, digest = runner.measure(str(path))
            outputs[output["name"]] = {"path": output["path"], "bytes": size, "sha256": digest}
        result = {"schema": 1, "outcome": "succeeded", "key": stage["key"], "outputs": outputs}
        (folder / "result.json").write_text(json.dumps(result))
        self.point(name)
        return folder

    def point(self, name: str) -> None:
        """Point to a stage's result as it is now, as the runner does."""
        stage = next(s for s in self.plan["stages"] if s["name"] == name)
        folder = Path(stage["paths"]["stage"])
        publish = Path(stage["publish"])
        publish.parent.mkdir(exist_ok=True)
        digest = files.sha256(folder / "result.json")
        publish.write_text(json.dumps({"stage_dir": str(folder), "result_sha256": digest}))
