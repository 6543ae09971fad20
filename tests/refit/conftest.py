from __future__ import annotations

import os
from pathlib import Path

import pytest

from refit.data import synthetic
from tests.refit.bind_helpers import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in list(os.environ):
        if name.startswith("REFIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REFIT_HOME", str(tmp_path))
    made = Place(tmp_path)
    synthetic.make(made.data, train=12, val=4, shifted=0, seed=3)
    return made
