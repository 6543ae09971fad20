"""Makes the pictures of this folder anew, of what `make run` serves now: `make screenshots`.

    PYTHONPATH=. .refit/envs/airflow/bin/python docs/images/shoot.py [--model demo] [--failed cells]

`--model` should have two versions, `--failed` a run that failed (here: `cells` of docs/start.md with three epochs of
retraining, which the gate refuses). Address and password are those of `make run`: AIRFLOW_PORT, REFIT_HOME. Needs
Chromium, as tests/plugins does.
"""

from __future__ import annotations

import argparse
import base64
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.plugins.browser import Page

HERE = Path(__file__).resolve().parent
HOME = Path(os.environ.get("REFIT_HOME") or HERE.parents[1] / ".refit")
URL = f"http://127.0.0.1:{os.environ.get('AIRFLOW_PORT', '8080')}"


class Camera:
    def __init__(self, page: Page, url: str, password: str) -> None:
        self.page, self.url = page, url
        self._token = self._ask("/auth/token", {"username": "admin", "password": password})["access_token"]
        page.login(url, self._token)

    def _ask(self, path: str, body: dict[str, str] | None = None) -> Any:
        if body is None:
            answer = httpx.get(self.url + path, headers={"Authorization": f"Bearer {self._token}"}, timeout=60)
        else:
            answer = httpx.post(self.url + path, json=body, timeout=60)
        return answer.raise_for_status().json()

    def runs(self, pipeline: str, state: str) -> list[str]:
        """Folders of runs in that state, oldest first."""
        return [r["run"] for r in self._ask(f"/refit/api/models/{pipeline}")["runs"] if r["state"] == state]

    def shoot(
        self,
        name: str,
        path: str,
        size: tuple[int, int] = (1280, 900),
        *,
        dark: bool = False,
        ready: str = "true",
        click: Sequence[str] = (),
        of: str = "",
    ) -> None:
        """`ready`: JavaScript that says that all is drawn; `click`: buttons that are pressed before, by text or label;
        `of`: the element that is the picture, else all that the window shows."""
        self.page.size(*size)
        self.page.scheme("dark" if dark else "light")
        self.page.open(self.url + path)
        for text in click:
            self._press(text)
        self.page.until(ready)
        time.sleep(1.5)  # Airflow's UI fades things in
        kind = "jpeg" if name.endswith(".jpg") else "png"
        more: dict[str, Any] = {"quality": 80} if kind == "jpeg" else {}
        if of:
            more["clip"] = {**self.page.js(f"{of}.getBoundingClientRect().toJSON()"), "scale": 1}
        made = self.page.call("Page.captureScreenshot", format=kind, **more)
        (HERE / name).write_bytes(base64.b64decode(made["data"]))
        print(f"{name}: {(HERE / name).stat().st_size // 1024} KiB")

    def _press(self, text: str) -> None:
        """By the mouse: sections of Airflow's form take no notice of a script's click."""
        named = f"b.textContent.trim() === '{text}' || b.ariaLabel === '{text}'"
        button = f"[...document.querySelectorAll('button')].find(b => {named})"
        self.page.until(f"!!{button}")
        time.sleep(1.5)  # it may still move
        box = self.page.js(f"{button}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for event in ("mousePressed", "mouseReleased"):
            self.page.call("Input.dispatchMouseEvent", type=event, button="left", clickCount=1, **at)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default=URL)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--failed", default="cells")
    args = parser.parse_args()
    with Page() as page:
        camera = Camera(page, args.url, (HOME / "airflow" / "secrets" / "password").read_text().strip())
        model, dag = f"/refit/models/{args.model}", f"/dags/retrain_{args.model}"
        framed = "!!document.querySelector('iframe')?.contentDocument?.querySelector('section')"
        good, bad = camera.runs(args.model, "succeeded"), camera.runs(args.failed, "failed")
        camera.shoot("models.png", "/refit/models")
        camera.shoot("models-narrow.png", "/refit/models", (390, 800))
        camera.shoot("model.png", f"{dag}/plugin/model", ready=framed)
        camera.shoot("model-dark.png", f"{model}#versions", dark=True)
        camera.shoot("curves.png", f"{model}#training", (1280, 1100))
        camera.shoot("run-report.png", f"/refit/published/{args.model}/runs/{good[-1]}/report.html", (960, 1200))
        camera.shoot("report.jpg", f"/refit/report/retrain_{args.failed}/{bad[-1]}?data=true", (960, 1200))
        camera.shoot("model-failed.png", f"/refit/models/{args.failed}?run={bad[-1]}#this-run")
        camera.shoot("compare.png", f"{model}/compare?run={good[0]}&run={good[-1]}")
        opened = "document.body.innerText.includes('Export ONNX')"
        camera.shoot("grid.png", dag, ready=opened, click=("Expand all task groups",))
        form = "document.querySelector('[data-scope=accordion]').closest('[role=dialog]')"
        opened = "document.querySelector('[id^=element_retrain]').checkVisibility()"
        camera.shoot("trigger.png", dag, (1000, 1400), click=("Trigger", "Prune and retrain"), ready=opened, of=form)
        assert not page.errors, page.errors


if __name__ == "__main__":
    main()
