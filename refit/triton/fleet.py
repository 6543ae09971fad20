"""Every Triton server behind one address: a change of a model counts only when each of them was changed and proven.

A load that goes to a Service reaches one of its servers, so whoever starts a release names the servers themselves in
``REFIT_TRITON_SERVERS`` (HTTP addresses with commas between); where it is not set, the spec's ``url`` is the server.
They read one repository. What holds when they come and go:

- All that are named answer when a change begins, or nothing is touched.
- One that serves something else than the others at the beginning came up in the middle of an earlier change: it loads
  what the repository says, which is the champion. Where that does not help, nothing is touched.
- One that goes away before each was proven, or that cannot be proven, fails the change: all go back to the champion.
  What cannot be reached then is owed: the files are as before, so it comes up with the champion, and the next change
  of the model asks the servers of that time before it does anything.
- One that comes up unnamed in the middle loads what config.pbtxt says at that moment, and nobody asks it. The report
  says which servers were proven (``servers``); whoever knows of another one then starts the release again, which
  brings that one up to date, proves all, and changes nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from refit.triton import proof
from refit.triton.client import TritonClient
from refit.triton.errors import RepositoryError, TritonError, TritonUnavailable
from refit.triton.proof import Proof
from refit.triton.reference import Reference, Tolerance

SERVERS_VARIABLE = "REFIT_TRITON_SERVERS"

Servers = Sequence[TritonClient]


def addresses(url: str) -> list[str]:
    """The servers of the environment, each once, or else the one of ``url``.

    Raises:
        RepositoryError: the variable names no server at all.
    """
    text = os.environ.get(SERVERS_VARIABLE)
    if text is None:
        return [url]
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise RepositoryError(
            f"{SERVERS_VARIABLE} is {text!r} and names no server; name each one, e.g. "
            "http://10.1.2.3:8000,http://10.1.2.4:8000, or unset it to use the release's url alone"
        )
    return found


@contextmanager
def connect(url: str, load_seconds: float) -> Iterator[Servers]:
    """A client of each server."""
    with ExitStack() as stack:
        yield [stack.enter_context(TritonClient(a, load_seconds=load_seconds)) for a in addresses(url)]


def live(servers: Servers) -> None:
    """Each of them answers. Raises TritonUnavailable for the first that does not."""
    for server in servers:
        server.live()


def verify(
    servers: Servers,
    model: str,
    version: int,
    sha256: str | None,
    expected: Reference,
    *,
    loaded: tuple[int, ...],
    tolerance: Tolerance,
    timeout_seconds: float,
) -> Proof:
    """`proof.verify` of every server.

    Returns:
        The first one's answers, with the largest difference and the slowest median of all.

    Raises:
        ProofFailed, ModelNotServed, InferenceFailed, TritonUnavailable: the first server's that is at fault; the
            message names it.
    """
    seen = []
    for server in servers:
        try:
            seen.append(
                proof.verify(
                    server,
                    model,
                    version,
                    sha256,
                    expected,
                    loaded=loaded,
                    tolerance=tolerance,
                    timeout_seconds=timeout_seconds,
                )
            )
        except TritonUnavailable:
            raise
        except TritonError as exc:
            raise (exc if server.url in str(exc) else type(exc)(f"Triton at {server.url}: {exc}")) from exc
    return Proof(
        answers=seen[0].answers,
        difference=max(p.difference for p in seen),
        milliseconds=max(p.milliseconds for p in seen),
    )


def each(servers: Servers, act: Callable[[TritonClient], object]) -> list[TritonError]:
    """Do something on every server, whatever happens on the others.

    Returns:
        What went wrong, one error for each server at fault.
    """
    errors = []
    for server in servers:
        try:
            act(server)
        except TritonError as exc:
            errors.append(exc)
    return errors
