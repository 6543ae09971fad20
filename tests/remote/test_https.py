"""An archive by https: from public or allowed addresses only, resumed, and its login for its own host alone."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import socket
from pathlib import Path

import pytest

from refit import web
from refit.config import ConfigError, Settings
from refit.data import remote as remotes
from refit.data.faults import BadData
from refit.data.remote import fetch
from refit.data.remote.connection import Connection
from refit.data.remote.errors import Broken, Refused
from refit.data.remote.https import Web
from refit.data.source import parse
from refit.hosts import Allowed
from refit.status import StatusWriter
from tests.remote.sources import SECRET, Https, https_server

BODY = os.urandom(3 << 20)


def settings(site: Https, *allowed: str) -> Settings:
    return dataclasses.replace(Settings.from_env({}), allowed_hosts=Allowed(allowed or (site.host,)), ca_file=site.ca)


def web_source(site: Https, path: str = "/set.zip", login: Connection | None = None, *allowed: str) -> Web:
    if login is not None:
        login = dataclasses.replace(login, host=site.host)
    return Web(parse(site.url + path), login, settings(site, *allowed))


def bring(remote: Web, folder: Path) -> bytes:
    tree, named = remote.files()
    fetch.Fetch("the source", remote, folder / "f", folder / "p", StatusWriter(folder)).run(tree, named)
    return (folder / "f" / "set.zip").read_bytes()


def test_it_is_one_file_known_by_its_etag(site: Https) -> None:
    page = site.add("/set.zip", BODY)
    found = remotes.listing(web_source(site))
    assert (found.files, found.bytes) == (1, len(BODY))
    assert remotes.listing(web_source(site)).signature == found.signature
    page.etag = '"another"'
    assert remotes.listing(web_source(site)).signature != found.signature
    assert {method for method, _, _ in site.asked} == {"HEAD"}


def test_a_server_that_has_no_head(site: Https) -> None:
    site.add("/set.zip", BODY, head=403)
    assert remotes.listing(web_source(site)).bytes == len(BODY)


def test_it_is_fetched_and_gone_on_with(site: Https, tmp_path: Path) -> None:
    site.add("/set.zip", BODY, breaks=[1 << 20, 1000])
    assert bring(web_source(site), tmp_path) == BODY
    spans = [headers.get("Range") for method, _, headers in site.asked if method == "GET"]
    assert spans == [None, f"bytes={1 << 20}-", f"bytes={(1 << 20) + 1000}-"]


@pytest.mark.parametrize("what", ["no ranges", "no strong ETag"])
def test_where_it_cannot_be_gone_on_with_it_begins_anew(site: Https, tmp_path: Path, what: str) -> None:
    page = site.add("/set.zip", BODY, breaks=[1 << 20])
    page.ranges, page.etag = (False, page.etag) if what == "no ranges" else (True, None)
    assert bring(web_source(site), tmp_path) == BODY


def test_a_download_that_always_ends_early(site: Https, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TRIES", 2)
    site.add("/set.zip", BODY, breaks=[0] * 20)
    with pytest.raises(Broken, match=r"the connection broke|ended after 0 of"):
        bring(web_source(site), tmp_path)
    assert not (tmp_path / "f" / "set.zip").exists()


def test_what_changed_since_it_was_listed(site: Https, tmp_path: Path) -> None:
    page = site.add("/set.zip", BODY)
    remote = web_source(site)
    tree, _ = remote.files()
    page.etag = '"another"'
    with pytest.raises(BadData, match=r"set\.zip is not what was listed"):
        fetch.Fetch("the source", remote, tmp_path / "f", tmp_path / "p", StatusWriter(tmp_path)).run(tree, {})


@pytest.mark.parametrize(
    ("status", "message"), [(401, "access denied"), (403, "access denied"), (500, "the server answers HTTP 500")]
)
def test_answers_that_are_errors(site: Https, status: int, message: str) -> None:
    site.add("/set.zip", b"x", status=status, head=status)
    with pytest.raises((Refused, Broken), match=message):
        web_source(site).tree()


def test_a_file_that_is_not_there_is_no_arrival(site: Https) -> None:
    assert not remotes.listing(web_source(site)).exists


def test_a_web_page_is_no_archive(site: Https) -> None:
    site.add("/set.zip", b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(Refused, match="is a web page"):
        web_source(site).tree()


# --- where it may lead ------------------------------------------------------------------------------------------------


def test_a_private_address_is_not_asked(site: Https) -> None:
    site.add("/set.zip", BODY)
    with pytest.raises(Refused, match=r"has the private address localhost.*REFIT_ALLOWED_HOSTS=localhost"):
        web_source(site, "/set.zip", None, "other").tree()
    assert site.asked == []


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("http://169.254.169.254/latest/meta-data", "leads to plain http"),
        ("https://169.254.169.254/latest/meta-data", r"private address 169\.254\.169\.254"),
        ("https://[::ffff:169.254.169.254]/", "private address ::ffff:"),
        ("https://[::1", "redirects to something that is no https URL"),
        ("//[::1/x", "redirects to something that is no https URL"),
        ("https://[::1]x/y", "private address"),
        ("https://127.0.0.1/x", r"private address 127\.0\.0\.1"),
        ("file:///etc/passwd", "no https URL"),
        ("https://example.com:port/set.zip", "no https URL"),
        ("/set.zip", "redirects more than 5 times"),
    ],
)
def test_redirects_are_looked_at(site: Https, to: str, message: str) -> None:
    site.add("/set.zip", b"", status=302, head=302, headers={"Location": to})
    with pytest.raises(Refused, match=message):
        web_source(site).tree()


def test_a_redirect_to_an_allowed_host_is_followed_without_the_login(
    site: Https, certificates: Path, tmp_path: Path
) -> None:
    with https_server(certificates) as other:
        other.add("/signed", BODY)
        site.add("/set.zip", b"", status=302, head=302, headers={"Location": other.url + "/signed"})
        login = Connection("lab", "user", SECRET)
        remote = web_source(site, "/set.zip", login, site.host, other.host)
        assert bring(remote, tmp_path) == BODY
        assert all(headers["Authorization"].startswith("Basic ") for _, _, headers in site.asked)
        assert not any("Authorization" in headers for _, _, headers in other.asked)


def test_the_address_that_was_looked_at_is_the_one_connected_to(site: Https, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something else at the second look (DNS rebinding) is never looked up a second time."""
    site.add("/set.zip", BODY)
    real, looks, connected = socket.getaddrinfo, [], []

    def rebinding(host: str, port: int, *args: object, **kwargs: object) -> list[object]:
        if host != "rebinding.example":
            return real(host, port, *args, **kwargs)  # type: ignore[arg-type]
        looks.append(host)
        address = "8.8.8.8" if len(looks) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def connect(place: tuple[str, int], *args: object) -> socket.socket:
        connected.append(place[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Broken, match=r"rebinding\.example cannot be reached: Connection refused"):
        Web(parse("https://rebinding.example/set.zip"), None, settings(site)).tree()
    assert connected == ["8.8.8.8"]


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443)) for a in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: rows)
    with pytest.raises(web.Private, match=r"10\.0\.0\.1"):
        web.public_addresses("two.example", 443)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),  # NAT64 of 169.254.169.254
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert web.is_public(address) is public
    assert ipaddress.ip_address(address.partition("%")[0])


def test_an_unknown_authority(site: Https) -> None:
    site.add("/set.zip", BODY)
    strange = dataclasses.replace(settings(site), ca_file=None)
    with pytest.raises(Refused, match=r"certificate of localhost is not trusted.*REFIT_CA_FILE"):
        Web(parse(site.url + "/set.zip"), None, strange).tree()


def test_plain_http_only_where_it_is_allowed_by_name(certificates: Path, tmp_path: Path) -> None:
    with https_server(certificates, tls=False) as plain:
        plain.add("/set.zip", BODY)
        assert bring(web_source(plain, "/set.zip", None, plain.url), tmp_path) == BODY
        with pytest.raises(Refused, match="plain http"):
            web_source(plain, "/set.zip", None, plain.host).tree()
        allowed = dataclasses.replace(settings(plain), allowed_hosts=Allowed((plain.url,)))
        assert allowed.source(plain.url + "/set.zip").text == plain.url + "/set.zip"
        with pytest.raises(ConfigError, match=r"plain http.*REFIT_ALLOWED_HOSTS=http://HOST"):
            settings(plain).source(plain.url + "/set.zip")


# --- logins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("login", "header", "path"),
    [
        (Connection("lab", "user", SECRET), "Basic ", "/set.zip"),
        (Connection("lab", "", SECRET), f"Bearer {SECRET}", "/set.zip"),
        (Connection("lab", extra={"query": f"sig={SECRET}"}), "", f"/set.zip?sig={SECRET}"),
        (Connection("lab", extra={"headers": {"Authorization": f"Token {SECRET}"}}), f"Token {SECRET}", "/set.zip"),
        (Connection("lab", extra={"headers": f'{{"Authorization": "Token {SECRET}"}}'}), f"Token {SECRET}", "/set.zip"),
    ],
)
def test_ways_to_log_in(site: Https, login: Connection, header: str, path: str) -> None:
    site.add(path, BODY)
    assert remotes.listing(web_source(site, "/set.zip", login)).files == 1
    assert site.asked[0][2].get("Authorization", "").startswith(header)
    site.add(path, b"", status=403, head=500)
    with pytest.raises(Broken) as told:
        web_source(site, "/set.zip", login).tree()
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    ("login", "message"),
    [
        (Connection("lab", "key", SECRET, kind="aws"), "is of type aws, and http is asked for"),
        (Connection("lab", "user", SECRET, kind="http"), "does not name localhost:.* its login goes to no other"),
        (Connection("lab", "user", SECRET, host="files.lab"), "does not name localhost:"),
        (Connection("lab", "user", SECRET, host="localhost:1"), "does not name localhost:"),
        (Connection("lab", "user", SECRET, host="localhost:port"), "does not name localhost:"),
    ],
)
def test_a_login_goes_to_its_own_host(site: Https, login: Connection, message: str) -> None:
    with pytest.raises(Refused, match=message):
        Web(parse(site.url + "/set.zip"), login, settings(site))
    assert site.asked == []


@pytest.mark.parametrize(
    ("login", "message"),
    [
        ({"extra": {"headers": f"Authorization: {SECRET}"}}, "headers in its extra is no JSON object"),
        ({"extra": {"headers": [SECRET]}}, "headers in its extra is no JSON object"),
        (
            {"extra": {"headers": {"Authorization": [SECRET]}}},
            "a header in its extra, or its password",
        ),
        (
            {"extra": {"headers": {"Authorization": f"{SECRET}\n"}}},
            "a header in its extra, or its password",
        ),
        ({"password": f"{SECRET}\n"}, "a header in its extra, or its password, is not one line of ASCII text"),
        ({"extra": {"query": {"sig": SECRET}}}, "query in its extra is no text"),
    ],
)
def test_a_login_of_a_wrong_type_is_refused_without_it(site: Https, login: dict[str, object], message: str) -> None:
    """Refused is what the trigger and the sensor tell of; another error would end the trigger."""
    with pytest.raises(Refused, match=f"connection lab: {message}") as told:
        web_source(site, "/set.zip", Connection.read("lab", json.dumps(login))).tree()
    assert SECRET not in str(told.value)
    assert site.asked == []
