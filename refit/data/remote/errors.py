"""What can go wrong between here and a remote source.

No message holds a secret: of a library's or a server's own text only the status and a store's error code are shown."""

from __future__ import annotations

from refit.command import BadSpec, StageError


class Refused(BadSpec):
    """Trying again would not help: no access, an address that is not allowed, a login that cannot be used."""


class Broken(StageError):
    """A failure that may be over at the next try."""


class Vanished(FileNotFoundError):
    """A file that is not (any more) what was listed; the text says which and how."""


class Restart(Exception):
    """The server sends the file from its beginning; what came earlier is of no use."""
