"""The chart, installed in a namespace of a real cluster."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import helm_sdkpy

from tests import cluster
from tests.cluster import get, kubectl, wait
from tests.helm.charts import CHART


@dataclass
class Release:
    """A release of the chart in a namespace of its own."""

    namespace: str
    config: Any
    name: str = "refit"

    def install(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return self._run(
            helm_sdkpy.Install(self.config).run(self.name, str(CHART), values=_tagged(values), timeout=400)
        )

    def upgrade(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return self._run(
            helm_sdkpy.Upgrade(self.config).run(self.name, str(CHART), values=_tagged(values), timeout=400)
        )

    def upgrade_or_roll_back(self, values: Mapping[str, Any]) -> None:
        """An upgrade that Helm rolls back where it fails. (helm-sdkpy's own Rollback cannot work: it names no way of
        waiting, and Helm 4 refuses that.) Raises helm_sdkpy.UpgradeError where it failed.
        """
        action = helm_sdkpy.Upgrade(self.config)
        self._run(action.run(self.name, str(CHART), values=_tagged(values), timeout=15, rollback_on_failure=True))

    def uninstall(self) -> None:
        self._run(helm_sdkpy.Uninstall(self.config).run(self.name, timeout=300))

    def test(self) -> dict[str, Any]:
        """`helm test`. Raises helm_sdkpy.ChartError where it fails."""
        return self._run(helm_sdkpy.ReleaseTest(self.config).run(self.name))

    def servers(self) -> list[dict[str, Any]]:
        """Triton's pods that are ready and not about to end."""
        pods = get("pods", "-l", "app.kubernetes.io/component=triton", namespace=self.namespace)["items"]
        return [
            pod
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        ]

    def settled(self, count: int) -> list[dict[str, Any]]:
        """Wait until there are so many servers, all of the newest revision, and no other."""
        kubectl("rollout", "status", "deployment/refit-triton", "--timeout=300s", namespace=self.namespace, timeout=330)
        return wait(f"{count} servers", lambda: (found := self.servers()) and len(found) == count and found)

    @property
    def service(self) -> str:
        """The Service's address: the test cluster has no name server."""
        return get("service", "refit-triton", namespace=self.namespace)["spec"]["clusterIP"]

    def key(self) -> str:
        data = get("secret", "refit-triton-control", namespace=self.namespace)["data"]
        return base64.b64decode(data["control-key"]).decode()

    def _run(self, call: Any) -> Any:
        return asyncio.run(call)


def _tagged(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the tag of the images that the tests build, where they name none."""
    images = {
        name: {"tag": cluster.TAG, **values.get("images", {}).get(name, {})} for name in ("tools", "cpu", "release")
    }
    triton = values.get("triton", {})
    return {**values, "images": images, "triton": {**triton, "image": {"tag": cluster.TAG, **triton.get("image", {})}}}
