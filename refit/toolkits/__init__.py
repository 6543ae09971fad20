"""The toolkits by name; each is a module that fulfils `refit.toolkits.base.Toolkit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refit.toolkits.base import Toolkit

NAMES = ("cpu", "tao")


def get(name: str) -> Toolkit:
    """The toolkit of that name. Raises KeyError for one that does not exist."""
    if name == "cpu":
        from refit.toolkits.cpu import TOOLKIT

        return TOOLKIT
    if name == "tao":
        from refit.toolkits import tao

        return tao.TOOLKIT
    raise KeyError(name)
