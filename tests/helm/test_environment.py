"""Says that the chart's tests are left out, in an environment that cannot run them (see conftest.py)."""

from __future__ import annotations

import pytest


def test_helm_is_the_real_library() -> None:
    helm_sdkpy = pytest.importorskip("helm_sdkpy", reason="needs Python 3.12 with tests/helm/requirements.txt")
    assert helm_sdkpy.get_version()
