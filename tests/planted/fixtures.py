"""What the tests of this folder share."""

from __future__ import annotations

import pytest

from refit.runtime.local import EnvironmentMissing, interpreter
from tests.planted.bed import PIPELINE, Bed, Good


def _has(environment: str) -> bool:
    try:
        return interpreter(environment).exists()
    except EnvironmentMissing:
        return False


needs_all = pytest.mark.skipif(
    not (_has("cpu") and _has("triton")), reason="there is no cpu or triton environment: make setup"
)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    bed = Bed(tmp_path_factory.mktemp("planted"))
    bed.data()
    return bed


@pytest.fixture(scope="session")
def good(home: Bed, tmp_path_factory: pytest.TempPathFactory) -> Good:
    """The clean run that everything else is compared with; it must pass."""
    told = home.run(PIPELINE, "gate_parity")
    assert told.code == 0, told.text
    return Good(told.plan, tmp_path_factory.mktemp("forged"))
