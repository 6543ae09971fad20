"""One training that something happens to: what it is doing, how it ended, what was done twice, what was left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refit.embedded.api import ApiError
from tests.chaos.dags import EPOCHS
from tests.cluster import get, wait
from tests.e2e.airflow import ENDED
from tests.e2e.conftest import House

TASK = "train"


@dataclass
class Training:
    """A run of a DAG of `dags.py`; the DAG's name is also its folder of the workspace."""

    house: House
    workspace: Path
    dag: str
    run: str

    @classmethod
    def start(cls, house: House, workspace: Path, dag: str) -> Training:
        return cls(house, workspace, dag, house.airflow.trigger(dag))

    @property
    def out(self) -> Path:
        """The stage's results; a folder that does not exist before there are any."""
        return next(self.workspace.glob(f"{self.dag}/runs/*/{TASK}/out"), self.workspace / "not yet")

    def lines(self, file: str) -> list[str]:
        path = self.out / file
        return path.read_text().splitlines() if path.exists() else []

    def pods(self) -> list[dict[str, Any]]:
        return list(get("pods", "-l", f"refit/pipeline={self.dag}", namespace=self.house.namespace)["items"])

    def reached(self, epoch: int) -> dict[str, Any]:
        """Wait for the end of an epoch; the pod that trains."""
        wait(f"epoch {epoch} of {self.dag}", lambda: str(epoch) in self.lines("epochs"), 90, every=0.05)
        return wait("its pod", lambda: next((p for p in self.pods() if _runs(p)), None), 30)

    def task(self) -> dict[str, Any]:
        return next(t for t in self.house.airflow.client.tasks(self.dag, self.run) if t["task_id"] == TASK)

    def over(self) -> bool:
        try:
            return bool(self.house.airflow.client.get(f"/dags/{self.dag}/dagRuns/{self.run}")["state"] in ENDED)
        except ApiError:
            return False

    def ended(self, seconds: float = 300) -> Ended:
        """Wait for the end of the run, and until no pod is left of it."""
        state = self.house.airflow.finished(self.dag, self.run, seconds)
        wait(f"no pod of {self.dag}", lambda: not self.pods(), 60)
        answer = self.house.airflow.answer(self.dag, self.run, TASK) if state == "success" else {}
        epochs = [int(line) for line in self.lines("epochs")]
        return Ended(
            state=state,
            tries=self.task()["try_number"],
            remade=dict(answer.get("pods", {})),
            starts=[int(line) for line in self.lines("starts")],
            repeated=len(epochs) - len(set(epochs)),
            missing=EPOCHS - len(set(epochs)),
            ends=len(self.lines("ends")),
        )

    def error(self) -> str:
        return self.house.airflow.client.last_error(self.dag, self.run, TASK, self.task()["try_number"])


@dataclass(frozen=True)
class Ended:
    """How a training ended.

    starts: the checkpoint that each start of the command went on from. remade: pods made again in the last try.
    repeated: epochs that were done more than once. ends: how often the command came to its end.
    """

    state: str
    tries: int
    remade: dict[str, int]
    starts: list[int]
    repeated: int
    missing: int
    ends: int

    def assert_whole(self, starts: int) -> None:
        """All epochs were done, the end once, no more repeated than the epoch in which each start was lost."""
        assert self.state == "success"
        assert (self.missing, self.ends) == (0, 1)
        assert len(self.starts) == starts
        assert self.repeated <= starts - 1
        assert self.starts == sorted(self.starts), "a start went back behind an older checkpoint"

    @property
    def story(self) -> str:
        pods = ", ".join(f"{count} {row}" for row, count in self.remade.items())
        made = f"pods made again: {pods}" if pods else "the same pod went on" if len(self.starts) == 1 else "a new pod"
        return f"{self.state}; {made}; tries: {self.tries}; starts after epoch {', '.join(map(str, self.starts))}"

    @property
    def lost(self) -> str:
        return f"{self.repeated} epochs of {EPOCHS} done again" if self.repeated else "nothing"


def _runs(pod: dict[str, Any]) -> bool:
    states = [c.get("state", {}) for c in pod["status"].get("containerStatuses", ())]
    return "deletionTimestamp" not in pod["metadata"] and any("running" in state for state in states)
