"""What serves when a change of a model begins, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refit.triton import proof
from refit.triton.client import TritonClient
from refit.triton.config import Served
from refit.triton.errors import TritonError, TritonUnavailable
from refit.triton.reference import Reference, made_up


@dataclass(frozen=True)
class Champion:
    """What serves when a change begins.

    Attributes:
        versions: the READY versions, in order; empty where none serves.
        served: the configuration in use, None where none serves.
        answers: its answers to made-up samples, None where it does not answer.
    """

    versions: tuple[int, ...]
    served: Served | None
    answers: Reference | None

    @property
    def version(self) -> int | None:
        """The version that unversioned requests get: the highest."""
        return max(self.versions, default=None)


def look(client: TritonClient, model: str, say: Callable[[str], None]) -> Champion:
    """Ask the server what serves now, and for the champion's answers."""
    versions = client.ready_versions(model)
    if not versions:
        return Champion((), None, None)
    served = client.config(model)
    try:
        inputs = made_up(served.signature, served.sidecar)
        outputs, _, _ = proof.ask(client, model, served.signature, inputs)
    except TritonUnavailable:
        raise
    except TritonError as exc:
        say(f"The champion, version {max(versions)}, does not answer as it should: {exc}")
        return Champion(versions, served, None)
    return Champion(versions, served, Reference(inputs, outputs, "the champion before the change"))
