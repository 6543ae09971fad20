"""What `dataset.source` names: a folder, a prefix of a bucket or container, a file by https, a DVC data set.

Standard library only: pipeline files are read with it while Airflow parses. Nothing here asks a network.

| form | is |
|---|---|
| `plates`, `/data/plates` | a folder below one of REFIT_DATA_ROOTS |
| `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` | a prefix of a bucket of Amazon S3 (or what speaks its API), Google's |
| `az://CONTAINER/PREFIX`, `abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX` | a prefix of an Azure container |
| `https://HOST/set.zip` | one file; archives are unpacked |
| `plates/data.dvc` | the data that a .dvc file below a data root names, in `dataset.dvc_remote` |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
# A query part whose name says that it is a secret: pipeline files are no place for one.
_SECRET_QUERY = re.compile(r"(^|[&;])[^=&;]*(sig|token|key|secret|passw|credential|auth)[^=&;]*=", re.IGNORECASE)
_AZURE_HOST = re.compile(r"^([a-z0-9]{3,24})\.(dfs|blob)\.core\.windows\.net$")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{1,253}$")


class Kind(StrEnum):
    FOLDER = "folder"
    S3 = "s3"
    GCS = "gs"
    AZURE = "az"
    WEB = "https"
    DVC = "dvc"


STORES = (Kind.S3, Kind.GCS, Kind.AZURE)


@dataclass(frozen=True, slots=True)
class Source:
    """`text` is the source as the pipeline file has it and holds no secret. `bucket` (or container) and `prefix` are
    those of an object store, `account` Azure's where the source names it. `single`: it is one file, whatever its name.
    """

    kind: Kind
    text: str
    bucket: str = ""
    prefix: str = ""
    account: str = ""
    single: bool = False

    @property
    def remote(self) -> bool:
        return self.kind is not Kind.FOLDER

    @property
    def name(self) -> str:
        """Of the one file behind an https source."""
        return PurePosixPath(unquote(urlsplit(self.text).path)).name

    def __str__(self) -> str:
        return self.text


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def parse(text: str, *, single: bool = False) -> Source:
    """What a source names; `single`: one file, which need be no archive. Raises ValueError that says what to write
    instead."""
    if "://" not in text:
        return Source(Kind.DVC if text.endswith(".dvc") else Kind.FOLDER, text, single=single)
    try:
        parts = urlsplit(text)
        host, login = parts.hostname or "", parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError as exc:
        raise ValueError(f"{text.partition('://')[0]}://... is no URL: {exc}") from None
    scheme = parts.scheme
    if scheme in ("http", "https"):
        return _web(text, login, single)
    if scheme in ("abfs", "abfss") and "@" in parts.netloc:
        bucket, _, host = parts.netloc.rpartition("@")
        known = _AZURE_HOST.match(host)
        if not known or ":" in bucket:
            raise ValueError(
                f"{scheme}://... names no storage account; write abfs://CONTAINER@ACCOUNT.dfs.core.windows.net"
            )
        kind, account = Kind.AZURE, known[1]
    elif scheme in ("s3", "s3a", "gs", "az", "abfs", "abfss"):
        bucket, account = parts.netloc, ""
        kind = {"s": Kind.S3, "g": Kind.GCS, "a": Kind.AZURE}[scheme[0]]
    else:
        raise ValueError(f"{scheme}:// is no source; use a folder, s3://, gs://, az://, abfs:// or https://")
    if not _BUCKET.match(bucket):
        raise ValueError(
            f"{scheme}://{'...' if '@' in bucket else bucket} names no bucket; write {scheme}://NAME/PREFIX"
        )
    if parts.query or parts.fragment:
        raise ValueError(
            f"{scheme}://{bucket}: leave out what follows '?' or '#'; logins belong into dataset.connection"
        )
    prefix = parts.path.strip("/")
    if any(part in (".", "..", "") for part in prefix.split("/")) and prefix:
        raise ValueError(f"{scheme}://{bucket}/{prefix}: '.', '..' and '//' cannot be in a prefix")
    return Source(kind, text, bucket, prefix, account, single)


def _web(text: str, login: bool, single: bool) -> Source:
    parts = urlsplit(text)
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if login:
        raise ValueError(f"{bare}: a login in a URL is read by everybody who reads the file; use dataset.connection")
    if _SECRET_QUERY.search(parts.query):
        raise ValueError(
            f"{bare}: its query holds a secret; leave the query out and put it into the connection's extra "
            '({"query": "..."}), see dataset.connection'
        )
    if not parts.hostname or not PurePosixPath(unquote(parts.path)).name:
        raise ValueError(f"{bare} names no file; write https://HOST/PATH/set.zip (or .tar, .tar.gz)")
    if not single and not is_archive(PurePosixPath(unquote(parts.path)).name):
        raise ValueError(f"{bare} is no archive by its name; a data set by https is one of {', '.join(ARCHIVES)}")
    return Source(Kind.WEB, text, single=single)


def same_server(one: Source, other: Source) -> bool:
    """Whether a login for the one may go to the other: the same kind of store (and account), or the same web server."""
    if one.kind is Kind.WEB is other.kind:
        return urlsplit(one.text)[:2] == urlsplit(other.text)[:2]
    return (one.kind, one.account) == (other.kind, other.account)


def secret_name(connection: str) -> str:
    """The secret that holds a connection where Airflow's own store is not at hand: by the name, and in the form (URI or
    JSON), of the variable in which Airflow itself looks for it."""
    return "AIRFLOW_CONN_" + re.sub(r"[^A-Z0-9]", "_", connection.upper())
