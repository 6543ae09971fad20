"""What `dataset.source` may name, and what an installation allows. Runs in every environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from refit.config import ConfigError, Settings
from refit.data.remote.connection import Connection
from refit.data.remote.errors import Refused
from refit.data.settings import Dataset
from refit.data.source import Kind, parse, secret_name
from refit.hosts import Allowed

SECRET = "planted+secret/of-the-tests"


@pytest.mark.parametrize(
    ("text", "kind", "bucket", "prefix"),
    [
        ("plates", Kind.FOLDER, "", ""),
        ("/data/plates", Kind.FOLDER, "", ""),
        ("plates/data.dvc", Kind.DVC, "", ""),
        ("s3://sets/a/b/", Kind.S3, "sets", "a/b"),
        ("s3a://sets", Kind.S3, "sets", ""),
        ("gs://sets/a", Kind.GCS, "sets", "a"),
        ("az://sets/a", Kind.AZURE, "sets", "a"),
        ("abfs://sets@account.dfs.core.windows.net/a", Kind.AZURE, "sets", "a"),
        ("https://example.com/sets/a.zip?dl=1", Kind.WEB, "", ""),
    ],
)
def test_sources(text: str, kind: Kind, bucket: str, prefix: str) -> None:
    found = parse(text)
    assert (found.kind, found.bucket, found.prefix, found.text) == (kind, bucket, prefix, text)


def test_the_account_of_azure_and_the_name_of_a_file() -> None:
    assert parse("abfss://sets@account.dfs.core.windows.net/a").account == "account"
    assert parse("https://example.com/my%20set.tar.gz?x=1").name == "my set.tar.gz"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://example.com/a.zip", "ftp:// is no source"),
        ("file:///etc", "file:// is no source"),
        ("s3:///a", "names no bucket"),
        ("s3://b", "names no bucket"),
        ("s3://user:planted@sets/a", "names no bucket"),
        ("s3://sets/a/../b", r"'\.\.'"),
        ("s3://sets/a//b", "'//'"),
        ("s3://sets/a?versionId=1", "leave out what follows"),
        ("az://sets/a?sv=1&sig=planted", "leave out what follows"),
        ("abfs://sets@evil.example/a", "names no storage account"),
        ("https://user:planted@example.com/a.zip", "https://example.com/a.zip: a login in a URL"),
        ("https://example.com/a.zip?X-Amz-Signature=planted", "its query holds a secret"),
        ("https://example.com/a.zip?sv=1&sig=planted", "its query holds a secret"),
        ("https://example.com/a.zip?access_token=planted", "its query holds a secret"),
        ("https://example.com/", "names no file"),
        ("https://example.com/a.csv", "is no archive by its name"),
        ("https://exa[mple.com/a.zip", "is no URL"),
        ("https://example.com:port/a.zip", "is no URL"),
    ],
)
def test_what_is_no_source_is_told_without_its_secrets(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        parse(text)
    assert "planted" not in str(told.value)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"source": "s3://sets/a", "arrival": {"quarantine": True}}, "only reads from a remote source"),
        ({"source": "https://example.com/a.zip", "arrival": {"new_labels": 3}}, "counts files"),
        ({"source": "data.dvc"}, "needs dvc_remote"),
        ({"source": "data.dvc", "dvc_remote": "/somewhere"}, "is no object store"),
        ({"source": "plates", "arrival": {"marker": "_S", "manifest": "m.json"}}, "two rules"),
        ({"source": "ftp://x/y"}, "is no source"),
    ],
)
def test_blocks_that_contradict_themselves(block: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dataset.model_validate({"classes": ["car"], **block})


def test_where_data_is_does_not_decide_how_it_is_read() -> None:
    here = Dataset(source="plates", classes=["car"])
    there = Dataset(source="s3://sets/a", connection="lab", classes=["car"])
    assert here.settings() == there.settings()


def test_settings_of_an_installation(tmp_path: Path) -> None:
    where = Settings.from_env(
        {"REFIT_DATA_ROOTS": str(tmp_path), "REFIT_ALLOWED_HOSTS": "minio.lab:9000, http://old.lab"}
    )
    assert where.source("plates").text == str(tmp_path / "plates")
    assert where.source("s3://sets/a").text == "s3://sets/a"
    assert where.source("http://old.lab/a.zip").kind is Kind.WEB
    with pytest.raises(ConfigError, match="plain http"):
        where.source("http://minio.lab:9000/a.zip")
    with pytest.raises(ConfigError, match="outside the allowed data roots"):
        where.source("../x.dvc")
    assert Settings.from_env(where.environment()).allowed_hosts == where.allowed_hosts
    for bad in ("*", "minio.lab/path", "ftp://minio.lab", "minio.lab:port"):
        with pytest.raises(ConfigError, match="REFIT_ALLOWED_HOSTS"):
            Settings.from_env({"REFIT_ALLOWED_HOSTS": bad})


@pytest.mark.parametrize(
    ("entry", "url", "private", "plain"),
    [
        ("minio.lab", "https://minio.lab/x", True, False),
        ("minio.lab", "https://minio.lab:9000/x", True, False),
        ("minio.lab:9000", "https://minio.lab:9000/x", True, False),
        ("minio.lab:9000", "https://minio.lab/x", False, False),
        ("minio.lab:443", "https://minio.lab/x", True, False),
        ("http://minio.lab", "http://minio.lab/x", True, True),
        ("http://minio.lab:9000", "http://minio.lab:9001/x", False, False),
        ("minio.lab", "https://evil.minio.lab/x", False, False),
        ("10.1.2.3", "https://10.1.2.3/x", True, False),
    ],
)
def test_hosts_allowed_by_name(entry: str, url: str, private: bool, plain: bool) -> None:
    allowed = Allowed.read(entry)
    assert (allowed.private(url), allowed.plain(url)) == (private, plain)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"login": "key", "password": SECRET, "extra": {"region_name": "eu-west-1"}}),
        json.dumps({"login": "key", "password": SECRET, "extra": '{"region_name": "eu-west-1"}'}),
        "aws://key:planted%2Bsecret%2Fof-the-tests@/?region_name=eu-west-1",
        "aws://key:planted%2Bsecret%2Fof-the-tests@/?__extra__=%7B%22region_name%22%3A+%22eu-west-1%22%7D",
    ],
)
def test_a_connection_in_airflow_s_forms(text: str) -> None:
    found = Connection.read("lab", text)
    assert (found.login, found.password, found.text("region_name")) == ("key", SECRET, "eu-west-1")
    assert SECRET not in repr(found)


@pytest.mark.parametrize("text", ["", "planted", "{planted", '{"extra": "planted"}', '{"login": {"planted": 1}}'])
def test_what_is_no_connection(text: str) -> None:
    with pytest.raises(Refused, match="connection lab: is neither a URI nor the JSON") as told:
        Connection.read("lab", text)
    assert "planted" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"conn_type": "http", "host": "files.lab", "port": 8080}),
        json.dumps({"conn_type": "http", "host": "http://files.lab", "port": "8080"}),
        "http://user:pw@files.lab:8080/?verify=false",
        "https://files.lab:8080",
        '{"host": "files.lab"}',
    ],
)
def test_the_server_that_a_login_is_for(text: str) -> None:
    login = Connection.read("lab", text)
    login.only_to("http://files.lab:8080/set.zip")
    for url in ("http://files.lab.example:8080/set.zip", "http://lab:8080", "http://files@lab:8080/files.lab"):
        with pytest.raises(Refused, match="its login goes to no other"):
            login.only_to(url)


def test_the_kind_of_store_that_a_login_is_for() -> None:
    Connection.read("lab", "google-cloud-platform://?keyfile_dict={}").only_for("google_cloud_platform")
    with pytest.raises(Refused, match="connection lab: is of type postgres, and aws is asked for"):
        Connection.read("lab", "postgres://user:planted@db/x").only_for("aws")


def test_the_secret_has_the_name_of_airflow_s_own_variable() -> None:
    assert secret_name("my-lab.s3") == "AIRFLOW_CONN_MY_LAB_S3"


def test_reading_a_pipeline_file_needs_no_library_of_a_store() -> None:
    code = (
        "import sys, refit.data.settings, refit.config, refit.data.arrival, refit.data.remote\n"
        "print(sorted({'obstore', 'numpy', 'ssl'} & {m.split('.')[0] for m in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
