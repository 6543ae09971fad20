"""What serves when a change of a model begins, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refit.triton import fleet, proof
from refit.triton.client import TritonClient
from refit.triton.config import Served
from refit.triton.errors import ServersDiffer, TritonError, TritonUnavailable
from refit.triton.fleet import Servers
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


def look(servers: Servers, model: str, say: Callable[[str], None]) -> Champion:
    """Ask the servers what serves now, and for the champion's answers.

    Servers that do not agree load what the repository says first (`refit.triton.fleet`); no change is under way then,
    so that is the champion.

    Raises:
        ServersDiffer: they still do not agree.
    """
    states = [_state(server, model) for server in servers]
    if any(state != states[0] for state in states):
        say(f"Not every Triton serves the same of {model}, so each loads it again: {_told(servers, states)}")
        errors = fleet.each(servers, lambda server: server.load(model))
        states = [_state(server, model) for server in servers]
        if any(state != states[0] for state in states):
            raise ServersDiffer(
                f"the servers do not serve the same of {model}, and loading it again did not help: "
                + "; ".join([_told(servers, states), *map(str, errors)])
                + ". Mend or remove the one that is wrong, then release again"
            )
    versions, served = states[0]
    if served is None:
        return Champion((), None, None)
    inputs = made_up(served.signature, served.sidecar)
    answers = None
    for server in servers:
        try:
            outputs, _, _ = proof.ask(server, model, served.signature, inputs)
        except TritonUnavailable:
            raise
        except TritonError as exc:
            say(f"The champion, version {max(versions)}, does not answer as it should at {server.url}: {exc}")
        else:
            answers = answers or Reference(inputs, outputs, "the champion before the change")
    return Champion(versions, served, answers)


def _state(server: TritonClient, model: str) -> tuple[tuple[int, ...], Served | None]:
    versions = server.ready_versions(model)
    return versions, server.config(model) if versions else None


def _told(servers: Servers, states: list[tuple[tuple[int, ...], Served | None]]) -> str:
    return ", ".join(
        f"{server.url} serves {f'versions {list(versions)}' if versions else 'nothing'}"
        for server, (versions, _) in zip(servers, states, strict=True)
    )
