"""Which Refit this is."""

import importlib.metadata


def version() -> str:
    """The installed version, "source" where it runs from the sources."""
    try:
        return importlib.metadata.version("refit")
    except importlib.metadata.PackageNotFoundError:
        return "source"
