"""Every state that the stage pods of a namespace go through, as Kubernetes tells it: a watch misses nothing."""

from __future__ import annotations

import json
import subprocess
import threading
from types import TracebackType
from typing import Any

from tests.cluster import get

STAGES = "refit/stage"  # the label that every stage pod has
ENDED = ("Succeeded", "Failed")
GPU = "nvidia.com/gpu"


def gpus(pod: dict[str, Any]) -> int:
    """What a pod holds or waits for; nothing once it has ended."""
    if pod.get("status", {}).get("phase") in ENDED:
        return 0
    limits = [c.get("resources", {}).get("limits", {}) for c in pod["spec"]["containers"]]
    return sum(int(limit.get(GPU, 0)) for limit in limits)


class Watch:
    """Records stage pods while its context is open.

    pods: the newest state of each pod that was seen, by name. most_gpus, most_pods: at any one moment.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.pods: dict[str, dict[str, Any]] = {}
        self.most_gpus = self.most_pods = 0
        self._there: dict[str, dict[str, Any]] = {}
        words = ["kubectl", "-n", namespace, "get", "pods", "-l", STAGES, "-o", "json"]
        self._kubectl = subprocess.Popen(
            [*words, "--watch", "--output-watch-events"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Watch:
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        assert self._kubectl.poll() is None or kind, "kubectl has ended: the watch saw only a part"
        self._kubectl.terminate()
        self._kubectl.wait(30)
        self._reader.join(30)

    def of(self, pipeline: str, run: str | None = None) -> dict[str, list[dict[str, Any]]]:
        """The pods of a pipeline (and run, by its label) by stage."""
        found: dict[str, list[dict[str, Any]]] = {}
        for pod in self.pods.values():
            labels = pod["metadata"]["labels"]
            if labels["refit/pipeline"] == pipeline and run in (None, labels["refit/run"]):
                found.setdefault(labels[STAGES], []).append(pod)
        return found

    def _read(self) -> None:
        assert self._kubectl.stdout is not None
        decoder, text = json.JSONDecoder(), ""
        for line in self._kubectl.stdout:
            text += line
            if not line.startswith(('{"', "}")):  # an event is one line, or (some versions of kubectl) indented
                continue
            event, _ = decoder.raw_decode(text)
            text = ""
            self._take(event["type"], event["object"])

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        self.pods[name] = pod
        if kind == "DELETED":
            self._there.pop(name, None)
        else:
            self._there[name] = pod
        self.most_gpus = max(self.most_gpus, sum(map(gpus, self._there.values())))
        running = [p for p in self._there.values() if p.get("status", {}).get("phase") == "Running"]
        self.most_pods = max(self.most_pods, len(running))


def left(namespace: str) -> list[str]:
    """The pods of a namespace that are no Triton."""
    pods = get("pods", namespace=namespace)["items"]
    return [
        p["metadata"]["name"] for p in pods if p["metadata"]["labels"].get("app.kubernetes.io/component") != "triton"
    ]
