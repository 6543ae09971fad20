"""The pods of stages (snapshots in tests/refit/pods), judged as the chart's own objects are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import manifests

PODS = sorted((Path(__file__).resolve().parents[1] / "refit" / "pods").glob("*.yaml"))
for_every_pod = pytest.mark.parametrize(
    "pod", [yaml.safe_load(p.read_text()) for p in PODS], ids=[p.stem for p in PODS]
)
NEEDS_ROOT = "stage may run as root", "stage runs as 0"


def _is_root(pod: dict[str, Any]) -> bool:
    return pod["spec"]["securityContext"]["runAsUser"] == 0


def test_there_are_pods_and_one_needs_root() -> None:
    found = [yaml.safe_load(p.read_text()) for p in PODS]
    assert [_is_root(p) for p in found].count(True) == 1
    assert len(found) > 5


@for_every_pod
@pytest.mark.parametrize("version", ["1.37", "1.29"])
def test_is_valid_for_kubernetes(pod: dict[str, Any], version: str) -> None:
    assert not manifests.schema_faults([pod], version)


@for_every_pod
def test_passes_pod_security_restricted_but_for_root(pod: dict[str, Any]) -> None:
    assert manifests.restricted_faults(pod["spec"]) == (list(NEEDS_ROOT) if _is_root(pod) else [])


@for_every_pod
def test_keeps_the_house_rules(pod: dict[str, Any]) -> None:
    faults = manifests.house_faults(pod["spec"])
    assert faults == (["stage can write its root file system"] if _is_root(pod) else [])
