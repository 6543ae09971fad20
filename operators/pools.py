"""The pools that the DAGs name. A task whose pool does not exist waits for ever, so set-up must create them."""

from __future__ import annotations

import os
from dataclasses import dataclass

LOCAL = "refit_local"


@dataclass(frozen=True)
class Pool:
    """One pool; the arguments of `airflow pools set [--include-deferred] NAME SLOTS DESCRIPTION`."""

    name: str
    slots: int
    description: str
    include_deferred: bool = False


def required(local_slots: int | None = None) -> list[Pool]:
    """The pools to create. `local_slots`: stages that may run on this machine at once; default: one per 4 CPUs,
    because a stage's own threads fill about as many."""
    slots = local_slots or max(1, (os.cpu_count() or 1) // 4)
    return [Pool(LOCAL, slots, "Refit: stages that run on this machine at once")]
