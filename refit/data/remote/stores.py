"""Buckets and containers: `s3://`, `gs://`, `az://`/`abfs://`.

What is relied on (obstore 0.12, object_store's documentation):
- `list` gives path, size, last_modified and e_tag of every object below a prefix, the path relative to it.
- `get` with `if_match` answers 412 (PreconditionError) where the object is another than was listed.
- An error's text holds the status and the store's own XML; object_store has no types for most of them.
Logins come from the connection alone: without one the request is not signed, and neither the environment nor the
machine's metadata service is asked. Redirects of a store are followed by the library: its address is the
administrator's word, never that of the pipeline file.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from refit import web
from refit.data.manifest import Named
from refit.data.remote.connection import Connection, shown
from refit.data.remote.errors import Broken, Refused, Vanished
from refit.data.source import Kind, Source, is_archive
from refit.data.tree import FileInfo, Tree, of_objects

if TYPE_CHECKING:
    from refit.config import Settings

_CHUNK = 1 << 20
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_REGION = re.compile(r"^[a-z0-9-]{1,40}$")
# Of Airflow's AWS connection: other ways to get a login, which would be ignored in silence.
_OTHER_LOGINS = ("role_arn", "profile_name", "assume_role_method", "credential_source", "session_kwargs")


class Store:
    """A prefix of a bucket, or one file in it; see `refit.data.remote.Remote`."""

    def __init__(self, source: Source, connection: Connection | None, settings: Settings) -> None:
        self._source, self._connection, self._settings = source, connection, settings
        self._single = source.single or is_archive(source.prefix)
        self._prefix = str(PurePosixPath(source.prefix).parent) if self._single else source.prefix

    @cached_property
    def _store(self) -> Any:
        from obstore import store as kinds

        kind, options = self._login()
        client: dict[str, Any] = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "24h"}
        endpoint = str(options.get("endpoint") or options.get("base_url") or "")
        if endpoint:
            client["allow_http"] = self._allowed(endpoint)
        if self._settings.ca_file is not None:
            try:
                client["root_certificate"] = self._settings.ca_file.read_bytes()
            except OSError as exc:
                raise Refused(f"REFIT_CA_FILE={self._settings.ca_file} cannot be read: {exc.strerror}") from None
        retries = {"max_retries": 2, "retry_timeout": datetime.timedelta(seconds=30)}
        prefix = None if self._prefix in ("", ".") else self._prefix
        made = getattr(kinds, kind)
        try:
            return made(self._source.bucket, prefix=prefix, client_options=client, retry_config=retries, **options)
        except Exception as exc:  # of many types; nothing was asked yet, so that it is about the login
            why = type(exc).__name__
            raise Refused(f"{self._source}: the login of {shown(self._connection)} cannot be used ({why})") from None

    @property
    def opened(self) -> Any:
        """obstore's store, with the prefix as its root. Raises Refused."""
        return self._store

    def tree(self) -> Tree | None:
        def rows() -> list[FileInfo]:
            if self._single:
                return [_info(self._store.head(PurePosixPath(self._source.prefix).name))]
            return [_info(meta) for batch in self._store.list() for meta in batch]

        try:
            found = rows()
        except Exception as exc:
            if isinstance(exc, FileNotFoundError) or _said(exc)[1] in _NO_BUCKET:
                return None
            raise self._failure(exc, "cannot be listed") from None
        return of_objects(Path(self._source.bucket) / self._source.prefix, found)

    def files(self) -> tuple[Tree, Mapping[str, Named]]:
        return self.tree() or Tree(Path(self._source.bucket)), {}

    def read(self, file: FileInfo, start: int) -> Iterator[bytes]:
        options: dict[str, Any] = {"if_match": file.tag} if file.tag.endswith('"') else {}
        if start:
            options["range"] = {"offset": start}
        yield from self._chunks(file.path, options)

    def resumes(self, file: FileInfo) -> bool:
        return file.tag.endswith('"')

    def whole(self, path: str, limit: int) -> bytes:
        data = bytearray()
        for chunk in self._chunks(path, {}):
            data += chunk
            if len(data) > limit:
                raise Refused(f"{self._source}: {path} has more than {limit >> 20} MiB")
        return bytes(data)

    def _chunks(self, path: str, options: Mapping[str, Any]) -> Iterator[bytes]:
        from obstore.exceptions import PreconditionError

        try:
            for chunk in self._store.get(path, options=options).stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)
        except FileNotFoundError:
            raise Vanished(f"{path} was listed, and is not there any more") from None
        except PreconditionError:
            raise Vanished(f"{path} is not what was listed: it was written anew") from None
        except Exception as exc:
            raise self._failure(exc, f"{path} cannot be read") from None

    def _failure(self, exc: Exception, what: str) -> Exception:
        """The library's error as one sentence, of whose text only the status and the store's own code are shown."""
        if isinstance(exc, Refused):
            return exc
        status, code = _said(exc)
        told = f"{self._source}: {what}"
        said = ", ".join(w for w in (f"HTTP {status}" if status else "", code) if w)
        if status in (401, 403):
            return Refused(
                f"{told}: access denied ({said}) with {shown(self._connection)}; check its key, and that it may list "
                "and read there"
            )
        if "BadScheme" in str(exc) or "builder error" in str(exc):
            return Refused(f"{told}: plain http; use an https endpoint, or allow the host (REFIT_ALLOWED_HOSTS)")
        if status in (301, 307, 400):
            return Refused(
                f"{told} ({said}): check region_name and endpoint_url in the extra of {shown(self._connection)}"
            )
        if status:
            return Broken(f"{told} ({said})")
        return Broken(f"{told}: the store does not answer, or breaks off ({_cause(str(exc))})")

    # --- logins -------------------------------------------------------------------------------------------------------

    def _login(self) -> tuple[str, dict[str, Any]]:
        """obstore's class, and its options."""
        by: dict[Kind, tuple[str, Callable[[Connection | None], tuple[str, dict[str, Any]]]]] = {
            Kind.S3: ("aws", self._s3),
            Kind.GCS: ("google_cloud_platform", self._gcs),
            Kind.AZURE: ("wasb", self._azure),
        }
        kind, options = by[self._source.kind]
        if self._connection is not None:
            self._connection.only_for(kind)
        return options(self._connection)

    def _s3(self, c: Connection | None) -> tuple[str, dict[str, Any]]:
        """Airflow's `aws` connection: login and password are the key, extra has region_name, endpoint_url and
        aws_session_token."""
        options: dict[str, Any] = {"region": (c.text("region_name") if c else "") or "us-east-1"}
        if not _REGION.match(options["region"]):
            raise Refused(f"{shown(c)}: region_name is no region's name")
        # Always said, so that no variable of the environment (AWS_ENDPOINT_URL) speaks instead.
        options["endpoint"] = (c.text("endpoint_url") if c else "") or f"https://s3.{options['region']}.amazonaws.com"
        if c is None:
            return "S3Store", {**options, "skip_signature": True}
        other = [key for key in _OTHER_LOGINS if c.extra.get(key)]
        if other:
            raise Refused(f"{shown(c)}: {other[0]} in its extra is not supported; give it a key (login, password)")
        if not c.login or not c.password:
            raise Refused(f"{shown(c)}: has no key: login is the access key's id, password the secret key")
        options |= {"access_key_id": c.login, "secret_access_key": c.password, "skip_signature": False}
        if c.text("aws_session_token"):
            options["token"] = c.text("aws_session_token")
        return "S3Store", options

    def _gcs(self, c: Connection | None) -> tuple[str, dict[str, Any]]:
        """Airflow's `google_cloud_platform` connection: extra has keyfile_dict, a service account's key."""
        if c is None:
            return "GCSStore", {"skip_signature": True}
        key = c.table("keyfile_dict") or c.table("extra__google_cloud_platform__keyfile_dict")
        if not key:
            raise Refused(f"{shown(c)}: has no keyfile_dict in its extra: the JSON of a service account's key")
        options: dict[str, Any] = {"service_account_key": json.dumps(key)}
        if key.get("gcs_base_url"):
            options["base_url"] = str(key["gcs_base_url"])
        return "GCSStore", options

    def _azure(self, c: Connection | None) -> tuple[str, dict[str, Any]]:
        """Airflow's `wasb` connection: login is the account, password its key; or extra has sas_token, or tenant_id
        (then login and password are an application's id and secret, and the account stands in the source)."""
        tenant = c.text("tenant_id") if c else ""
        own = (c.text("account_name") or ("" if tenant else c.login)) if c else ""
        account = self._source.account or own
        if own not in ("", account):
            raise Refused(f"{self._source}: {shown(c)} is for another storage account")
        if not re.fullmatch(r"[a-z0-9]{3,24}", account):
            raise Refused(
                f"{self._source}: no storage account is known; write "
                "abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX, or give the connection a login"
            )
        options: dict[str, Any] = {"account_name": account}
        if c is not None and c.text("endpoint_url"):
            options["endpoint"] = c.text("endpoint_url")
        if c is None:
            options["skip_signature"] = True
        elif c.text("sas_token"):
            options["sas_key"] = c.text("sas_token").lstrip("?")
        elif tenant:
            options |= {"tenant_id": tenant, "client_id": c.login, "client_secret": c.password}
        elif c.password:
            options["account_key"] = c.password
        else:
            raise Refused(
                f"{shown(c)}: has neither a password (the account's key) nor sas_token or tenant_id in its extra"
            )
        return "AzureStore", options

    def _allowed(self, endpoint: str) -> bool:
        """Whether plain http is allowed for an endpoint; raises Refused for one that is not allowed at all."""
        allowed = self._settings.allowed_hosts
        try:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError
            _ = parts.port
        except ValueError:  # also half an IPv6 address, a port that is no number
            raise Refused(f"{shown(self._connection)}: endpoint_url is no https URL") from None
        plain = parts.scheme == "http"
        if plain and not allowed.plain(endpoint):
            raise Refused(
                f"{self._source}: the endpoint {parts.hostname} is plain http; use https, or allow it by name "
                f"(REFIT_ALLOWED_HOSTS=http://{parts.hostname}:{parts.port or 80})"
            )
        if not allowed.private(endpoint):
            try:
                web.public_addresses(parts.hostname, parts.port or 443)
            except web.Private as exc:
                raise Refused(
                    f"{self._source}: the endpoint {parts.hostname} has the private address {exc.address}; if that is "
                    f"right, allow it by name (REFIT_ALLOWED_HOSTS={parts.hostname})"
                ) from None
            except OSError as exc:
                raise Broken(f"{self._source}: {parts.hostname} has no address: {exc.strerror or exc}") from None
        return plain


def _info(meta: Mapping[str, Any]) -> FileInfo:
    moment = int(meta["last_modified"].timestamp() * 1_000_000_000)
    tag = meta["e_tag"] or f"modified {moment}"
    if meta["e_tag"] and not tag.endswith('"'):  # Azure's "List Blobs" leaves off the quotes, which If-Match needs
        tag = f'"{tag}"'
    return FileInfo(meta["path"], int(meta["size"]), moment, moment, tag)


def _said(exc: Exception) -> tuple[int, str]:
    """The HTTP status and the store's code in an error's text; 0 and "" where there is none."""
    status, code = _STATUS.search(str(exc)), _CODE.search(str(exc))
    return int(status[1]) if status else 0, code[1] if code else ""


def _cause(text: str) -> str:
    """A word for what happened below HTTP; never the text itself, which may hold a signed URL."""
    known = (
        "dns error",
        "Connection refused",
        "certificate",
        "timed out",
        "timeout",
        "connection closed",
        "end of file",
    )
    return next((word for word in known if word.lower() in text.lower()), "no reason given")
