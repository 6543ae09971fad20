"""The status file of a stage (`refit.status`), under the name that the cpu toolkit's modules import."""

from refit.status import StatusWriter

__all__ = ["StatusWriter"]
