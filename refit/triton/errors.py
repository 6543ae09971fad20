"""What can go wrong with Triton, as types. Each message names the thing and says what to do next.

Standard library only. The stage command turns them into exit codes (`refit.triton.stage`).
"""

from __future__ import annotations


class TritonError(Exception):
    """Base of everything that `refit.triton` raises on purpose."""


class InstallationError(TritonError):
    """The local tritonserver is not installed, or a library that it needs is missing."""


class PortTaken(TritonError):
    """Another process listens on a port that the server was told to use."""

    def __init__(self, port: int, flag: str) -> None:
        super().__init__(
            f"port {port} on 127.0.0.1 is taken: stop what listens there (`ss -ltnp 'sport = :{port}'` names it), or "
            f"give another one with {flag}"
        )
        self.port = port


class ServerFailed(TritonError):
    """tritonserver did not start, or ended by itself."""


class TritonUnavailable(TritonError):
    """No Triton answers at a URL (nothing listens, no route, or no answer in time)."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"Triton at {url} cannot be reached ({why}): start it, or correct the address")
        self.url = url


class AccessRefused(TritonError):
    """Triton wants another key for its restricted APIs."""

    def __init__(self, url: str, given: bool) -> None:
        state = "refuses the control key" if given else "wants a control key"
        super().__init__(
            f"Triton at {url} {state}: set REFIT_SECRET_TRITON_CONTROL_KEY to the server's key; a run has that of its "
            "cluster profile (triton.control_key_secret), and only for the url that this names"
        )
        self.url = url


class ModelNotServed(TritonError):
    """The server runs and does not serve this model or version."""


class LoadFailed(TritonError):
    """The server said no to a load; what served before goes on serving."""


class InferenceFailed(TritonError):
    """The server took an inference request and answered with an error, or with something else than asked for."""


class ArtefactError(TritonError):
    """The model file, its model.json or its reference cannot be used; nothing was touched."""


class RepositoryError(TritonError):
    """The model repository or the folders beside it cannot be used as they are."""


class ModelLocked(TritonError):
    """Another release of the same model holds the lock, and it did not end in time."""


class LockLost(TritonError):
    """This process lost the model's lock while it was paused: another one may have changed the model since."""


class ServersDiffer(TritonError):
    """The servers behind one address do not serve the same version, and loading the champion did not mend it."""


class ProofFailed(TritonError):
    """A server loaded the model and does not answer as it must; `rejected` releases end with it."""


class RollbackError(TritonError):
    """There is no version to go back to, or the one asked for cannot serve."""


class ReleaseFailed(TritonError):
    """A release did not succeed.

    Attributes:
        rejected: the model itself is at fault (a new try with the same file would fail in the same way).
        champion: the version that serves now, None where none serves.
        restored: what served before the release serves again (True too where nothing served).
    """

    def __init__(self, message: str, *, rejected: bool, champion: int | None, restored: bool) -> None:
        super().__init__(message)
        self.rejected = rejected
        self.champion = champion
        self.restored = restored
