from __future__ import annotations

from tests.refit.test_bind import place

__all__ = ["place"]  # a workspace to bind runs in; test_collect has use for it too
