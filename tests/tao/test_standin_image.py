"""The image of the stand-ins, built for real and started on a cluster."""

from __future__ import annotations

import pytest

from tests import cluster
from tests.tao.standin.__main__ import IMAGES

REASON = cluster.reason_to_skip()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_every_program_is_on_the_path() -> None:
    image = cluster.build("standin")
    programs = sorted({name for names in IMAGES.values() for name in names})
    # Without a spec, each says its own usage; the runner of a stage pod finds the programs by the same PATH.
    words = ["sh", "-c", f"for p in {' '.join(programs)}; do $p evaluate 2>&1 || echo $p ended with $?; done"]
    with cluster.namespace("refit-standin") as namespace:
        said = cluster.run(cluster.pod("programs", image, words), namespace)
    assert [line for line in said.splitlines() if " ended with " in line] == [f"{p} ended with 2" for p in programs]
    assert "usage: detectnet_v2 evaluate" in said
