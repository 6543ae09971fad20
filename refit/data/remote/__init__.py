"""Data that lies elsewhere: listing it (Airflow's triggerer does), and fetching it (bind does).

    connection  the login, in the form of an Airflow connection
    stores      s3://, gs://, az:// by obstore (developmentseed.org/obstore), Rust's object_store in one small wheel
    https       one archive by https
    dvc         what a .dvc file names, in a DVC remote that is one of the stores
    fetch       into a folder: resumed, in parallel, hashes checked
    take        what bind needs: the folder that is read, whatever the source

Imported where there is a remote source only; needs neither numpy nor Airflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from refit.data import arrival
from refit.data.manifest import Named
from refit.data.source import Kind, Source
from refit.data.tree import FileInfo, Tree

if TYPE_CHECKING:
    from refit.config import Settings
    from refit.data.remote.connection import Connection


class Remote(Protocol):
    """A remote source. Every method raises `errors.Refused` or `errors.Broken`, and `errors.Vanished` for what has
    changed since it was listed."""

    def tree(self) -> Tree | None:
        """What is there, for a listing; None where there is no such bucket or file."""

    def files(self) -> tuple[Tree, Mapping[str, Named]]:
        """What is to be fetched, and what is known of its content."""

    def read(self, file: FileInfo, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` on."""

    def resumes(self, file: FileInfo) -> bool:
        """Whether `read` can be trusted to go on with what came earlier."""

    def whole(self, path: str, limit: int) -> bytes:
        """A small file at once."""


def connect(source: Source, connection: Connection | None, settings: Settings, dvc_remote: str | None = None) -> Remote:
    """A remote source, not asked yet. Raises errors.Refused."""
    if source.kind is Kind.WEB:
        from refit.data.remote.https import Web

        return Web(source, connection, settings)
    from refit.data.remote.stores import Store

    if source.kind is Kind.DVC:
        from refit.data.remote.dvc import Dvc
        from refit.data.source import parse

        return Dvc(source, Store(parse(dvc_remote or ""), connection, settings))
    return Store(source, connection, settings)


def listing(
    remote: Remote, previous: arrival.Listing | None = None, rule: arrival.Rule | None = None
) -> arrival.Listing:
    """What lies at a remote source, for the same rules as a folder's."""
    from refit.data.manifest import MOST_BYTES

    return arrival.survey(remote.tree(), previous, rule, lambda name: remote.whole(name, MOST_BYTES))
