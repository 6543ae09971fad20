"""Others' programs that judge what Refit writes, in an environment of their own: `make judges`."""

from __future__ import annotations

from pathlib import Path

import pytest

from refit.runtime.local import EnvironmentMissing, interpreter


def judge() -> Path:
    """The Python that has mlflow and model_signing; skips the test where there is none."""
    try:
        return interpreter("judges")
    except EnvironmentMissing:
        pytest.skip("there is no environment `judges` (mlflow, model-signing): make judges")
