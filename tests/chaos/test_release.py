"""A release that is broken in the middle: the champion goes on serving, and the run ends with the right one.

In this order, each test releasing once more over the one before: another number of pictures to quantize with makes
another model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import faults
from tests.chaos.conftest import Tell
from tests.chaos.watching import Client
from tests.cluster import get, kubectl, reason_to_skip, wait
from tests.e2e.conftest import HERE, House
from tests.e2e.pods import left

REASON = reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NO_COMPONENT = faults.why_no_component()
component = pytest.mark.skipif(NO_COMPONENT is not None, reason=str(NO_COMPONENT))

NAME = "shapes"
FAST = {"epochs: 24": "epochs: 4", "evaluate_every: 12": "evaluate_every: 4", "epochs: 12": "epochs: 2", "0.05": "0"}


@dataclass
class Shop:
    """A pipeline whose model serves, and the folder in which the release of the next one can be seen."""

    house: House
    models: Path
    dag: str
    url: str

    @property
    def journal(self) -> Path:
        return self.models / "repository.staging" / NAME / "journal.json"

    def versions(self) -> set[int]:
        return {int(p.name) for p in (self.models / "repository" / NAME).iterdir() if p.name.isdigit()}

    def start(self, images: int) -> str:
        """Start a run with another model to release; returns when its release has begun."""
        run = self.house.airflow.trigger(self.dag, quantize_images=images)
        wait("the release", self.journal.exists, 180, every=0.02)
        return str(run)

    def pod(self) -> dict[str, Any]:
        """The pod that releases."""
        (found,) = get("pods", "-l", "refit/stage=release", namespace=self.house.namespace)["items"]
        return dict(found)

    def released(self, run: str) -> dict[str, Any]:
        """Wait for a run's good end; what its release said, with the tries of its task."""
        assert self.house.airflow.finished(self.dag, run, 240) == "success"
        wait("the end of all stage pods", lambda: not left(self.house.namespace), 60)
        task = next(t for t in self.house.airflow.client.tasks(self.dag, run) if t["task_id"] == "release")
        answer = self.house.airflow.answer(self.dag, run, "release")
        return {**answer["summary"], "pods": answer["pods"], "tries": task["try_number"]}

    def assert_settled(self, version: int) -> None:
        """Every server answers with that version; nothing is left of what was under way."""
        (server,) = self.house.release.settled(1)
        assert [v for v, _ in self.house.ask(NAME, server["status"]["podIP"])] == [version]
        assert not self.journal.exists()
        assert not (self.models / "repository.locks" / NAME).exists()
        assert version in self.versions()

    def server(self) -> dict[str, Any]:
        (server,) = self.house.release.settled(1)
        return dict(server)


@pytest.fixture(scope="module")
def shop(house: House, models: Path) -> Shop:
    text = (HERE / "pipeline.yaml").read_text().replace("NAME", NAME)
    for slow, fast in FAST.items():
        assert slow in text
        text = text.replace(slow, fast)
    (house.pipelines / f"{NAME}.yaml").write_text(text)
    before = house.airflow.runs(f"retrain_{NAME}")
    house.deliver(NAME, seed=1)
    run = house.airflow.new_run(f"retrain_{NAME}", before)
    assert house.airflow.finished(f"retrain_{NAME}", run, 400) == "success"
    return Shop(house, models, f"retrain_{NAME}", f"http://{house.release.service}:8000")


def story(said: dict[str, Any], client: Client) -> str:
    pods = ", ".join(f"{count} {row}" for row, count in said["pods"].items())
    made = f"; pods made again: {pods}" if pods else ""
    answered = ", then ".join(map(str, client.versions))
    return f"{said['outcome']} as version {said['version']}{made}; tries: {said['tries']}; answers came from {answered}"


def test_the_pod_is_killed_between_rename_and_load(shop: Shop, tell: Tell) -> None:
    """Triton is frozen, so that the release stands where it has asked for the load, and nothing can be loaded."""
    (champion,) = shop.versions()
    with Client(shop.url, NAME) as client:
        run = shop.start(images=36)
        with faults.frozen(shop.server()):
            wait("the rename", lambda: champion + 1 in shop.versions(), 60, every=0.02)
            wait("the new configuration", lambda: '"touched": true' in shop.journal.read_text(), 30, every=0.02)
            time.sleep(1)
            faults.kill(shop.pod())
        said = shop.released(run)
    assert said["version"] > champion
    assert set(client.versions) <= {champion, champion + 1, said["version"]}
    shop.assert_settled(said["version"])
    tell(
        "release: its pod killed (-9) between rename and load", story(said, client), f"no answer for {client.gap:.1f} s"
    )


def test_triton_is_killed(shop: Shop, tell: Tell) -> None:
    champion = max(shop.versions())
    with Client(shop.url, NAME) as client:
        run = shop.start(images=32)
        name = shop.server()["metadata"]["name"]
        kubectl("delete", "pod", name, "--grace-period=0", "--force", namespace=shop.house.namespace)
        said = shop.released(run)
    assert said["version"] > champion
    assert set(client.versions) <= {champion, said["version"]}
    shop.assert_settled(said["version"])
    tell("release: Triton's only pod killed", story(said, client), f"no answer for {client.gap:.1f} s")


@component
def test_the_api_server_is_away(shop: Shop, tell: Tell) -> None:
    champion = max(shop.versions())
    with Client(shop.url, NAME) as client:
        run = shop.start(images=28)
        with faults.away("kube-apiserver", seconds=20):
            pass
        said = shop.released(run)
    assert said["version"] == champion + 1
    assert client.versions == [champion, champion + 1]
    shop.assert_settled(said["version"])
    tell("release: the API server away for 20 s", story(said, client), f"no answer for {client.gap:.1f} s")
