"""The pools that the DAGs name. A task whose pool does not exist waits for ever, so set-up must create them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

LOCAL = "refit_local"
GPU = "refit_gpu"
PODS = "refit_pods"
LOOKS = "refit_looks"
LOOK_SLOTS = 16  # pipelines whose servers are compared with the ledger at once
POD_SLOTS = 128  # pods without a GPU at once; what they really get is the cluster's business


@dataclass(frozen=True)
class Pool:
    """One pool; the arguments of `airflow pools set [--include-deferred] NAME SLOTS DESCRIPTION`."""

    name: str
    slots: int
    description: str
    include_deferred: bool = False


def of_stage(runtime: str, gpus: int, waits: bool = False) -> dict[str, Any]:
    """The pool of a stage's task and how many of its slots it takes, as arguments of the operator.

    waits: it sleeps nearly all of its time, so that it takes no other stage's place on this machine.
    """
    if runtime == "local":
        return {} if waits else {"pool": LOCAL}
    return {"pool": GPU, "pool_slots": gpus} if gpus else {"pool": PODS}


def required(local_slots: int | None = None, gpus: int | None = None) -> list[Pool]:
    """The pools to create.

    local_slots: stages that may run on this machine at once; default: one per 4 CPUs, because a stage's own threads
    fill about as many. gpus: GPUs that pods may hold at once; default: REFIT_GPUS, else `gpu.total` of the cluster
    profiles. Deferred tasks count in the pools of pods, because a stage's task is deferred while its pod runs.
    """
    slots = local_slots or max(1, (os.cpu_count() or 1) // 4)
    gpus = int(os.environ.get("REFIT_GPUS") or _gpus()) if gpus is None else gpus
    return [
        Pool(LOCAL, slots, "Refit: stages that run on this machine at once"),
        Pool(GPU, max(1, gpus), "Refit: GPUs that stage pods may hold at once", include_deferred=True),
        Pool(PODS, POD_SLOTS, "Refit: stage pods without a GPU at once", include_deferred=True),
        Pool(LOOKS, LOOK_SLOTS, "Refit: hourly looks at what serves at once", include_deferred=True),
    ]


def _gpus() -> int:
    """The most that a cluster profile has: a task that wants more slots than its pool has would wait for ever."""
    from refit import cluster
    from refit.config import Settings

    where = Settings.from_env()
    profiles = [cluster.load(name, where) for name in cluster.names(where, "kubernetes")]
    return max((p.gpu.total for p in profiles if isinstance(p, cluster.KubernetesProfile)), default=0)
