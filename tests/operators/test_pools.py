"""The pools: one with fewer slots than a task wants would make it wait for ever, and nobody would say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from operators import pools
from tests.operators.home import REPOSITORY


def gpus() -> int:
    return next(pool.slots for pool in pools.required() if pool.name == pools.GPU)


def test_the_gpu_pool_is_as_large_as_the_cluster_profile_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_CLUSTERS", str(tmp_path))
    assert gpus() == 1  # Airflow knows no pool of none
    (tmp_path / "faulty.yaml").write_text("runtime: kubernetes\ngpu: {total: 99, sorts: {}}\n")
    text = (REPOSITORY / "specs" / "clusters" / "kubernetes.yaml").read_text()
    for name, total in (("one", 4), ("two", 6)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("total: 2", f"total: {total}"))
    assert gpus() == 6
    monkeypatch.setenv("REFIT_GPUS", "3")
    assert gpus() == 3
