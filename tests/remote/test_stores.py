"""Buckets and containers: listed by the rules of folders, fetched whole or not at all, no secret ever shown."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from refit.config import Settings
from refit.data import remote as remotes
from refit.data.arrival import Plain, is_complete
from refit.data.faults import BadData, NoSpace
from refit.data.manifest import Named
from refit.data.remote import fetch
from refit.data.remote.connection import Connection
from refit.data.remote.errors import Broken, Refused, Vanished
from refit.data.remote.stores import Store
from refit.data.source import parse
from refit.hosts import Allowed
from refit.status import StatusWriter
from tests.remote.sources import KEY, S3, SECRET, Https

FILES = {f"a/images/{i}.jpg": bytes([i]) * (1000 + i) for i in range(5)} | {f"a/labels/{i}.txt": b"x" for i in range(5)}


def settings(*allowed: str, ca: Path | None = None) -> Settings:
    return dataclasses.replace(Settings.from_env({}), allowed_hosts=Allowed(allowed), ca_file=ca)


def store(s3: S3, source: str = "s3://sets/a", connection: Connection | None = None) -> Store:
    return Store(parse(source), connection or s3.connection, settings(s3.allowed))


def bring(remote: remotes.Remote, folder: Path, named: dict[str, Named] | None = None) -> Path:
    tree, known = remote.files()
    status = StatusWriter(folder / "status")
    fetch.Fetch("the source", remote, folder / "files", folder / "parts", status).run(tree, {**known, **(named or {})})
    return folder / "files"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_prefix_is_listed_as_a_folder_is(s3: S3) -> None:
    s3.put("sets", {**FILES, "ab/other.jpg": b"not below a/", "a/": b"", "a/x.part": b"1", "a/.hidden": b"1"})
    found = remotes.listing(store(s3))
    assert (found.exists, found.files, found.bytes) == (True, 10, sum(map(len, FILES.values())))
    assert remotes.listing(store(s3), found).signature == found.signature
    s3.put("sets", {"a/labels/0.txt": b"y"})  # the same size, and within the same second
    assert remotes.listing(store(s3), found).signature != found.signature


def test_more_than_a_page(s3: S3) -> None:
    s3.put("sets", {f"many/{i}.txt": b"" for i in range(1100)})
    assert remotes.listing(store(s3, "s3://sets/many")).files == 1100


def test_marker_and_settling(s3: S3) -> None:
    s3.put("sets", FILES)
    rule = Plain(marker="_SUCCESS")
    first = remotes.listing(store(s3), rule=rule)
    assert "waiting for the marker" in is_complete(first, None, rule).reason
    s3.put("sets", {"a/_SUCCESS": b""})
    second = remotes.listing(store(s3), first, rule)
    assert is_complete(second, first, rule)
    assert second.signature == first.signature
    settle = Plain(settle_seconds=10)
    again = dataclasses.replace(remotes.listing(store(s3), second), seen_at=second.seen_at + 11)
    assert is_complete(again, second, settle)


def test_a_manifest_is_read_and_its_hashes_are_checked(s3: S3, tmp_path: Path) -> None:
    import hashlib

    rule = Plain(manifest="files.txt")
    lines = "".join(f"{hashlib.sha256(d).hexdigest()}  {k.removeprefix('a/')}\n" for k, d in FILES.items())
    s3.put("sets", {"a/files.txt": lines.encode(), "a/images/0.jpg": FILES["a/images/0.jpg"]})
    first = remotes.listing(store(s3), rule=rule)
    assert "9 of 10 files that files.txt names" in is_complete(first, None, rule).reason
    s3.put("sets", FILES)
    second = remotes.listing(store(s3), first, rule)
    assert is_complete(second, first, rule)
    assert second.manifest is not None
    bring(store(s3), tmp_path / "good", dict(second.manifest.files))
    wrong = {**second.manifest.files, "images/3.jpg": Named(hash="0" * 64)}
    with pytest.raises(BadData, match=r"images/3\.jpg: its bytes have the hash [0-9a-f]{64}, and not 0{64}"):
        bring(store(s3), tmp_path / "bad", wrong)
    assert not (tmp_path / "bad" / "files" / "images" / "3.jpg").exists()


def test_everything_is_fetched_once(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("sets", FILES)
    folder = bring(store(s3), tmp_path)
    assert content(folder) == {k.removeprefix("a/"): d for k, d in FILES.items()}
    assert "Fetched 10 of 10 files" in (tmp_path / "status" / "status.json").read_text()
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(Store, "read", lambda *args: pytest.fail("read again"))
    bring(store(s3), tmp_path)


def test_a_part_is_gone_on_with(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = os.urandom(3 << 20)
    s3.put("sets", {"a/big.jpg": body})
    real, starts = Store.read, []

    def breaks(self: Store, file: Any, start: int) -> Iterator[bytes]:
        starts.append(start)
        for number, chunk in enumerate(real(self, file, start)):
            if len(starts) < 3 and number == 1:
                raise Broken("the line went dead")
            yield chunk

    monkeypatch.setattr(Store, "read", breaks)
    assert content(bring(store(s3), tmp_path)) == {"big.jpg": body}
    assert starts[0] == 0
    assert starts[0] < starts[1] < starts[2] < len(body)


@pytest.mark.parametrize("how", ["gone", "written anew"])
def test_what_changes_between_listing_and_fetching_is_said(s3: S3, tmp_path: Path, how: str) -> None:
    s3.put("sets", FILES)
    remote = store(s3)
    tree, _ = remote.files()
    if how == "gone":
        s3.store("sets").delete("a/images/2.jpg")
    else:
        s3.put("sets", {"a/images/2.jpg": b"another"})
    with pytest.raises(BadData, match=r"changed while it was fetched: images/2\.jpg") as told:
        fetch.Fetch("s3://sets/a", remote, tmp_path / "f", tmp_path / "p", StatusWriter(tmp_path)).run(tree, {})
    assert told.value.faults[0].code == "source_changed"


def test_bytes_that_are_not_those_of_the_etag(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged once: fetched again. The same each time: then the ETag is no MD5 (as of objects that KMS encrypts)."""
    s3.put("sets", {"a/x.jpg": b"good", "a/y.jpg": b"fine"})
    real, damaged = Store.read, ["x.jpg"]

    def read(self: Store, file: Any, start: int) -> Iterator[bytes]:
        yield from [b"g00d"] if file.path in damaged and not damaged.clear() else real(self, file, start)

    monkeypatch.setattr(Store, "read", read)
    assert content(bring(store(s3), tmp_path / "once"))["x.jpg"] == b"good"
    monkeypatch.setattr(Store, "read", lambda self, file, start: iter([b"same"]))
    assert content(bring(store(s3), tmp_path / "kms"))["x.jpg"] == b"same"
    count = iter(range(100))
    monkeypatch.setattr(Store, "read", lambda self, file, start: iter([b"%04d" % next(count)]))
    with pytest.raises(Broken, match="other bytes each time"):
        bring(store(s3), tmp_path / "noise")


def test_the_disk_is_not_filled(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("sets", FILES)
    monkeypatch.setattr(fetch, "RESERVE", 1 << 60)
    with pytest.raises(NoSpace, match="No space left on device: the source has 0 MiB to fetch"):
        bring(store(s3), tmp_path)


def test_keys_that_are_no_file_names_are_told_and_not_dropped(s3: S3, tmp_path: Path) -> None:
    s3.put("sets", {"a/ok.jpg": b"1", "a/folder": b"1", "a/folder/x.jpg": b"1"})
    with pytest.raises(BadData, match="folder: a key that is also the folder of others"):
        bring(store(s3), tmp_path)


def test_an_archive_in_a_bucket_is_one_file(s3: S3) -> None:
    s3.put("sets", {"a/set.zip": b"PK", "a/set.zip.old": b"PK"})
    found = store(s3, "s3://sets/a/set.zip").tree()
    assert found is not None
    assert [(f.path, f.size) for f in found.files.values()] == [("set.zip", 2)]


def test_no_such_bucket_or_prefix(s3: S3) -> None:
    assert not remotes.listing(store(s3, "s3://no-such-bucket/a")).exists
    empty = remotes.listing(store(s3, "s3://sets/none"))
    assert (empty.exists, empty.files) == (True, 0)
    assert not remotes.listing(store(s3, "s3://sets/none/set.zip")).exists


def test_access_denied_says_whose_key_and_never_the_key(s3: S3) -> None:
    s3.put("sets", FILES)
    s3.deny()
    with pytest.raises(Refused, match=r"access denied \(HTTP 403.*with connection lab; check its key") as told:
        remotes.listing(store(s3))
    assert SECRET not in str(told.value)
    assert KEY not in str(told.value)


def test_a_store_that_does_not_answer(s3: S3) -> None:
    login = Connection.read("lab", s3.login(endpoint_url="http://127.0.0.1:1"))
    remote = Store(parse("s3://sets/a"), login, settings("http://127.0.0.1:1"))
    with pytest.raises(Broken, match="the store does not answer"):
        remotes.listing(remote)


@pytest.mark.parametrize(
    ("endpoint", "allowed", "message"),
    [
        ("http://127.0.0.1:9000", (), r"plain http; use https, or allow it by name"),
        ("https://127.0.0.1:9000", (), r"has the private address 127\.0\.0\.1"),
        ("https://localhost:9000", ("other:9000",), r"localhost has the private address"),
        ("https://169.254.169.254", (), r"private address 169\.254\.169\.254"),
        ("http://169.254.169.254", ("169.254.169.254",), "plain http"),
        ("ftp://x", (), "endpoint_url is no https URL"),
        ("https://[fe80", (), "endpoint_url is no https URL"),
        ("https://minio:port", (), "endpoint_url is no https URL"),
    ],
)
def test_an_endpoint_must_be_public_or_allowed(endpoint: str, allowed: tuple[str, ...], message: str) -> None:
    login = Connection("lab", KEY, SECRET, extra={"endpoint_url": endpoint})
    with pytest.raises(Refused, match=message):
        Store(parse("s3://sets/a"), login, settings(*allowed)).tree()


@pytest.mark.parametrize(
    ("source", "login", "message"),
    [
        ("s3://sets", {"login": KEY}, "has no key"),
        ("s3://sets", {"extra": {"role_arn": "arn"}, "login": KEY, "password": SECRET}, "role_arn in its extra"),
        ("s3://sets", {"extra": {"region_name": "evil.example/"}}, "no region's name"),
        ("s3://sets", {"extra": {"endpoint_url": [SECRET]}}, "connection lab: endpoint_url in its extra is no text"),
        (
            "s3://sets",
            {"conn_type": "postgres", "login": KEY, "password": SECRET},
            "of type postgres, and aws is asked",
        ),
        ("gs://sets", {"password": SECRET}, "has no keyfile_dict"),
        (
            "abfs://sets@mine.dfs.core.windows.net",
            {"conn_type": "wasb", "login": "account", "extra": {"sas_token": SECRET}},
            "connection lab is for another storage account",
        ),
        ("gs://sets", {"extra": {"keyfile_dict": SECRET}}, "keyfile_dict in its extra is no JSON object"),
        ("gs://sets", {"extra": {"keyfile_dict": [SECRET]}}, "keyfile_dict in its extra is no JSON object"),
        ("gs://sets", {"extra": {"keyfile_dict": '{"private_key": "' + SECRET + '"}'}}, "the login of connection lab"),
        (
            "gs://sets",
            {"extra": {"keyfile_dict": {"private_key": SECRET}}},
            "the login of connection lab",
        ),
        ("az://sets", {"password": SECRET}, "no storage account is known"),
        ("az://sets", {"login": "account"}, "neither a password"),
        ("az://sets", {"login": "account", "password": SECRET}, "the login of connection lab"),
    ],
)
def test_logins_that_cannot_be_used_are_told_without_them(source: str, login: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message) as told:
        Store(parse(source), Connection.read("lab", json.dumps(login)), settings()).tree()
    assert SECRET not in str(told.value)
    assert "lab" in str(told.value) or "account" in str(told.value)


def test_an_own_authority(site: Https) -> None:
    site.add("/sets?list-type=2&prefix=a%2F", b'<?xml version="1.0"?><ListBucketResult></ListBucketResult>')
    login = Connection("lab", KEY, SECRET, extra={"endpoint_url": site.url})
    assert remotes.listing(Store(parse("s3://sets/a"), login, settings(site.host, ca=site.ca))).exists
    with pytest.raises(Broken, match="certificate"):
        Store(parse("s3://sets/a"), login, settings(site.host)).tree()


def test_google_s_store_by_its_xml_api(s3: S3) -> None:
    """moto's S3 answers for it: Google's XML API is the same for listing and reading."""
    s3.put("sets", FILES)
    key = {"gcs_base_url": s3.url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    login = Connection("lab", extra={"keyfile_dict": key})
    found = remotes.listing(Store(parse("gs://sets/a"), login, settings(s3.allowed)))
    assert found.files == 10


AZURE = """<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="sets"><Blobs><Blob>
<Name>a/x.jpg</Name><Properties><Last-Modified>Tue, 14 Nov 2023 22:13:20 GMT</Last-Modified><Etag>0x8DBE55A0</Etag>
<Content-Length>4</Content-Length><Content-Type>image/jpeg</Content-Type></Properties></Blob></Blobs><NextMarker/>
</EnumerationResults>"""  # the form of "List Blobs" in Azure's REST reference


@pytest.fixture
def azure() -> Iterator[tuple[str, list[str]]]:
    """A server that answers as Azure's blob service does; its address, and the queries that came."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            query = parse_qs(urlsplit(self.path).query)
            good = query.get("sig") == [SECRET]
            body = AZURE.encode() if good and "comp" in query else b"good" if good else b"<Error/>"
            changed = self.headers.get("If-Match", '"0x8DBE55A0"') != '"0x8DBE55A0"'
            self.send_response(412 if changed else 200 if good else 403)
            self.send_header("ETag", '"0x8DBE55A0"')
            self.send_header("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_an_azure_container_by_a_shared_access_signature(azure: tuple[str, list[str]], tmp_path: Path) -> None:
    url, _ = azure

    def made(sig: str) -> Connection:
        extra = {"sas_token": f"?sv=2024-01-01&sig={sig}", "endpoint_url": url}
        return Connection.read("lab", json.dumps({"extra": extra}))

    source = parse("abfs://sets@account.dfs.core.windows.net/a")
    good = Store(source, made("planted%2Bsecret%2Fof-the-tests"), settings(url))
    assert content(bring(good, tmp_path)) == {"x.jpg": b"good"}
    listed = good.files()[0].files["x.jpg"]  # its list has the ETag without quotes
    assert good.resumes(listed)
    with pytest.raises(Vanished, match="it was written anew"):
        list(good.read(listed._replace(tag='"0x8DBE0000"'), 0))
    with pytest.raises(Refused, match="access denied") as told:
        Store(source, made("wrong-signature"), settings(url)).tree()
    assert "wrong-signature" not in str(told.value)


def test_dvc(s3: S3, tmp_path: Path) -> None:
    import hashlib

    rows, objects = [], {}
    for path, data in FILES.items():
        md5 = hashlib.md5(data).hexdigest()
        objects[f"dvc/files/md5/{md5[:2]}/{md5[2:]}"] = data
        rows.append({"md5": md5, "relpath": path.removeprefix("a/")})
    folder = json.dumps(rows).encode()
    md5 = hashlib.md5(folder).hexdigest()
    s3.put("sets", {**objects, f"dvc/files/md5/{md5[:2]}/{md5[2:]}.dir": folder})
    file = tmp_path / "data.dvc"
    file.write_text(f"outs:\n- md5: {md5}.dir\n  size: 5000\n  nfiles: 10\n  hash: md5\n  path: data\n")
    source = dataclasses.replace(parse("data.dvc"), text=str(file))
    remote = remotes.connect(source, s3.connection, settings(s3.allowed), "s3://sets/dvc")
    first = remotes.listing(remote)
    assert first.files == 1
    assert content(bring(remote, tmp_path / "good")) == {k.removeprefix("a/"): d for k, d in FILES.items()}
    file.write_text(file.read_text().replace(md5, "0" * 32))
    assert remotes.listing(remote).signature != first.signature
    with pytest.raises(Refused, match=r"the remote has no 0{32}\.dir; `dvc push` it"):
        bring(remote, tmp_path / "missing")
    s3.put("sets", dict.fromkeys(list(objects)[:1], b"damaged"))
    file.write_text(file.read_text().replace("0" * 32, md5))
    with pytest.raises(BadData, match="which is named for it"):
        bring(remote, tmp_path / "bad")
    file.write_text("outs: [{path: data}]\n")
    with pytest.raises(Refused, match=r"is no \.dvc file with one entry"):
        remotes.listing(remote)
