"""NGC's REST API: log in, list, download. Standard library: proxies and certificates are those of the environment.

What is relied on, and where it is said:
- A personal key ("nvapi-...") is the Bearer token; an older one is exchanged at
  `/token?service=ngc&scope=group/ngc:ORG` with Basic `$oauthtoken:KEY` (NVIDIA's nvidia_tao_core, microservices;
  ai-dynamo/modelexpress, providers/ngc.rs).
- `/v2/models/ORG/TEAM/NAME/versions[/VERSION/zip]` for the public catalogue, also without a key;
  `/v2/org/ORG/team/TEAM/models/NAME/...` for a private registry (nvidia_tao_core, `get_ngc_artifact_base_url`).
- Versions come as `modelVersions: [{versionId, totalSizeInBytes}]`, the search (`/v2/search/catalog/resources/MODEL`,
  in a private registry `/v2/search/resources/MODEL`; `q` is a JSON object) as `results: [{groupValue, resources:
  [{resourceId, displayName, attributes}]}]` and `resultPageTotal` (MONAI, apps/mmars; nvidia_tao_core).
- Errors are `{"requestStatus": {"statusCode", "statusDescription"}}`. A download is redirected to a signed address of
  another host: that one gets no Authorization header (it refuses two ways to log in, and is not meant to see the key).
"""

from __future__ import annotations

import base64
import fnmatch
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from refit.command import StageError
from refit.ngc.spec import Model
from refit.web import host_of, place_of, strong_etag

KEY = "NGC_API_KEY"
_CATALOGUE = "nvidia"  # the public one; every other organisation is a private registry
_CHUNK = 1 << 20
_TRIES = 5
_TRIES_TO_ASK = 3
_PAGE = 100
_ANSWER_BYTES = 64 << 20
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})

OFFLINE = (
    "a site without this network gives the stage a `path` in place of `model`: a file, NGC's zip, or a folder, on a "
    "volume that it mounts"
)


class NgcError(StageError):
    """NGC, or the way to it, failed; the message says what to do and never holds the key."""


class Refused(NgcError):
    """401 or 403: the key, or that there is none."""


class Missing(NgcError):
    """404: no such model or version."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model; `bytes` 0: not said."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the catalogue."""

    path: str
    title: str
    latest: str


class _Redirects(urllib.request.HTTPRedirectHandler):
    """The key goes to the host that it was meant for, to no other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and _origin(req.full_url) != _origin(urljoin(req.full_url, newurl)):
            made.remove_header("Authorization")
        return made


class Client:
    """NGC at one address, with one key (None: as a guest). Raises NgcError."""

    def __init__(self, url: str, auth_url: str, key: str | None, timeout: float = 60) -> None:
        self._url, self._auth_url, self._timeout = url, auth_url, timeout
        self._key = key.strip() if key and key.strip() else None
        self._tokens: dict[str, str] = {}
        self._opener = urllib.request.build_opener(_Redirects)

    def versions(self, model: Model) -> list[Version]:
        """The versions of a model, the newest first."""
        answer = self._json(f"{self._path(model)}/versions?page-size={_PAGE}", model.group)
        rows = answer.get("modelVersions")
        if not isinstance(rows, list):
            raise NgcError(f"{self._url}: answered without a list of versions; is it NGC's address?")
        return [Version(str(r["versionId"]), int(r.get("totalSizeInBytes") or 0)) for r in rows if r.get("versionId")]

    def search(self, group: str, pattern: str) -> list[Listed]:
        """The models of an organisation or team whose name fits a glob, or holds a word."""
        glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
        found: dict[str, Listed] = {}
        for page in self._pages(group):
            for row in page:
                path = str(row.get("resourceId") or "")
                if path.startswith(f"{group}/") and fnmatch.fnmatchcase(path.rsplit("/", 1)[-1].lower(), glob.lower()):
                    more = {str(a.get("key")): str(a.get("value")) for a in row.get("attributes") or []}
                    title = str(row.get("displayName") or "")
                    found[path] = Listed(path, title, more.get("latestVersionIdStr", ""))
        return [found[path] for path in sorted(found)]

    def download(self, model: Model, target: Path, tell: Callable[[int, int], None]) -> None:
        """The version's zip to `target`. What lies in `<target>.part` is gone on with, while NGC has the same.

        `tell` hears bytes had and bytes in all (0: not said).
        """
        part = target.with_name(target.name + ".part")
        note = target.with_name(target.name + ".part.json")
        failures = 0
        while True:
            before = _size(part)
            try:
                self._stream(model, part, note, tell)
                break
            except _Outdated:
                part.unlink(missing_ok=True)
            except _Broken as exc:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= _TRIES:
                    raise NgcError(f"{exc}, {failures} times in a row; {OFFLINE}") from None
                time.sleep(min(2.0**failures, 30) / 2)
        os.replace(part, target)
        note.unlink(missing_ok=True)

    def _stream(self, model: Model, part: Path, note: Path, tell: Callable[[int, int], None]) -> None:
        had, mark = _size(part), _mark(note)
        headers = {"Range": f"bytes={had}-", "If-Range": mark} if had and mark else {}
        with self._open(f"{self._path(model)}/versions/{quote(model.version)}/zip", model.group, headers) as reply:
            resumed = reply.status == http.HTTPStatus.PARTIAL_CONTENT
            start, total = place_of(reply, had if resumed else 0)
            if start != (had if resumed else 0):
                raise NgcError(f"{model}: asked for the bytes from {had} on, NGC sent those from {start} on")
            kind = reply.headers.get_content_type()
            if kind in ("text/html", "application/xhtml+xml"):
                raise NgcError(
                    f"{model}: {host_of(reply.url)} answered with a web page, not an archive: a login, or a proxy's "
                    f"notice? Check {KEY} and the proxy; {OFFLINE}"
                )
            note.write_text(json.dumps({"mark": strong_etag(reply)}), encoding="utf-8")
            with open(part, "ab" if resumed else "wb") as f:
                while data := _read(reply, f"{model}: the connection to {host_of(reply.url)} broke"):
                    f.write(data)
                    tell(f.tell(), total)
                f.flush()
                os.fsync(f.fileno())
                if total and f.tell() != total:
                    host = host_of(reply.url)
                    raise _Broken(f"{model}: the connection to {host} ended at {f.tell()} of {total} bytes")

    def _pages(self, group: str) -> Iterator[list[dict[str, Any]]]:
        page, pages = 0, 1
        while page < pages:
            query = {"query": f"resourceId:{group}/*", "fields": ["resourceId", "displayName", "attributes"]}
            question = json.dumps({**query, "page": page, "pageSize": _PAGE})
            place = "search/catalog" if group.split("/", 1)[0] == _CATALOGUE else "search"
            answer = self._json(f"/v2/{place}/resources/MODEL?{urlencode({'q': question})}", group)
            groups = answer.get("results")
            if not isinstance(groups, list):
                raise NgcError(f"{self._url}: answered without results; is it NGC's address?")
            yield [row for g in groups for row in g.get("resources") or []]
            pages = int(answer.get("resultPageTotal") or 1)
            page += 1

    def _path(self, model: Model) -> str:
        if model.org == _CATALOGUE:
            return f"/v2/models/{model.group}/{model.name}"
        team = f"/team/{model.team}" if model.team else ""
        return f"/v2/org/{model.org}{team}/models/{model.name}"

    def _json(self, path: str, group: str) -> dict[str, Any]:
        tries = 0
        while True:
            try:
                with self._open(path, group, {"Accept": "application/json"}) as reply:
                    return _object(reply.read(_ANSWER_BYTES), self._url)
            except (_Broken, http.client.HTTPException, OSError) as exc:
                tries += 1
                if tries == _TRIES_TO_ASK:
                    raise NgcError(f"{exc}; {OFFLINE}") from None
                time.sleep(tries)

    def _open(self, path: str, group: str, headers: Mapping[str, str]) -> Any:
        token = self._token(group)
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        return self._get(self._url + path, {**headers, **bearer})

    def _token(self, group: str) -> str | None:
        if self._key is None or self._key.startswith("nvapi-"):
            return self._key
        if group not in self._tokens:
            org = group.split("/", 1)[0]
            scopes = [("scope", f"group/ngc:{g}") for g in dict.fromkeys((org, group))]
            basic = base64.b64encode(f"$oauthtoken:{self._key}".encode()).decode()
            url = f"{self._auth_url}/token?{urlencode([('service', 'ngc'), *scopes])}"
            with self._get(url, {"Authorization": f"Basic {basic}", "Accept": "application/json"}) as reply:
                token = _object(reply.read(_ANSWER_BYTES), self._auth_url).get("token")
            if not isinstance(token, str) or not token:
                raise NgcError(f"{self._auth_url}: gave no token for {KEY}; make a new key in NGC's settings")
            self._tokens[group] = token
        return self._tokens[group]

    def _get(self, url: str, headers: Mapping[str, str]) -> Any:
        if any(not value.isascii() or not value.isprintable() for value in headers.values()):
            raise Refused(f"{KEY} holds characters that no key has; copy it again")
        request = urllib.request.Request(url, headers={"User-Agent": "refit", **headers})  # noqa: S310 (see check_url)
        try:
            return self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as exc:
            with exc:
                raise self._error(exc) from None
        except urllib.error.URLError as exc:
            raise _Broken(f"{host_of(url)} cannot be reached ({exc.reason})") from None
        except (OSError, http.client.HTTPException) as exc:
            raise _Broken(f"{host_of(url)}: {exc or type(exc).__name__}") from None

    def _error(self, exc: urllib.error.HTTPError) -> NgcError:
        host, said = host_of(exc.url), self._said(exc)
        if exc.code in (401, 403) and _origin(exc.url) in (_origin(self._url), _origin(self._auth_url)):
            if self._key is None:
                return Refused(f"{host} wants a key (HTTP {exc.code}{said}); make one at NGC and set the secret {KEY}")
            return Refused(
                f"{host} refused the key in {KEY} (HTTP {exc.code}{said}): it is wrong, has ended, or may not see this "
                "model; make a new one at NGC (Setup, personal keys, service NGC Catalog) and set the secret"
            )
        if exc.code == 404:
            return Missing(f"{host}: HTTP 404{said}")
        if exc.code == 416:
            return _Outdated(f"{host}: HTTP 416{said}")
        if exc.code in _AGAIN or (exc.code in (401, 403)):  # a signed address that has ended is asked for anew
            return _Broken(f"{host}: HTTP {exc.code}{said}")
        return NgcError(f"{host}: HTTP {exc.code}{said}; {OFFLINE}")

    def _said(self, exc: urllib.error.HTTPError) -> str:
        """NGC's own words, without the key, should they repeat it."""
        try:
            status = json.loads(exc.read(65_536)).get("requestStatus", {})
            text = str(status.get("statusDescription") or status.get("statusCode") or "")
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            return ""
        for secret in (self._key, *self._tokens.values()):
            text = text.replace(secret, "***") if secret else text
        text = "".join(c if c.isprintable() else " " for c in text)[:200]
        return f", {text!r}" if text else ""


class _Broken(NgcError):
    """A failure that may be over at the next try."""


class _Outdated(NgcError):
    """416: what was kept of an earlier download does not fit to what NGC has now."""


def _read(reply: Any, broke: str) -> bytes:
    try:
        data: bytes = reply.read(_CHUNK)
    except (OSError, http.client.HTTPException) as exc:
        raise _Broken(f"{broke} ({exc or type(exc).__name__})") from None
    return data


def _mark(note: Path) -> str | None:
    try:
        mark = json.loads(note.read_text(encoding="utf-8"))["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if isinstance(mark, str) else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _object(data: bytes, url: str) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NgcError(
            f"{url}: answered with something else than JSON: a proxy's page? Check REFIT_NGC_URL and the proxy"
        )
    return answer


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
