"""These tests need Python 3.12 with tests/helm/requirements.txt; in other environments one of them says so."""

from __future__ import annotations

import importlib.util

if not all(importlib.util.find_spec(name) for name in ("helm_sdkpy", "kubernetes_validate", "jsonschema")):
    collect_ignore_glob = ["test_[!e]*.py"]
