"""Ports, places, secrets, and what the services may know of the shell they were started from."""

import os
import socket
import stat
import subprocess

import pytest

from refit.config import ConfigError, Settings
from refit.embedded.settings import PORTS, Embedded, listener, secret, taken_port, write_private


def embedded(tmp_path, **env):
    return Embedded.from_env({"REFIT_HOME": str(tmp_path / "home"), **env})


def test_defaults(tmp_path):
    place = embedded(tmp_path)
    assert place.ports == {name: default for name, (_, default) in PORTS.items()}
    assert place.airflow_url == "http://127.0.0.1:8080"
    assert place.refit.triton_url == "http://127.0.0.1:8000"
    assert place.refit.model_repository == tmp_path / "home" / "models"


@pytest.mark.parametrize("text", ["http", "0", "65536", "-1", "80.5"])
def test_a_port_that_is_none(tmp_path, text):
    with pytest.raises(ConfigError, match=r"AIRFLOW_PORT=.*between 1 and 65535"):
        embedded(tmp_path, AIRFLOW_PORT=text)


def test_two_services_on_one_port(tmp_path):
    with pytest.raises(ConfigError, match=r"AIRFLOW_PORT and TRITON_GRPC_PORT are both 8001"):
        embedded(tmp_path, AIRFLOW_PORT="8001")


def test_a_taken_port_is_named_with_its_owner_and_the_variable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = taken_port({"TRITON_HTTP_PORT": port})
        assert message is not None
        assert str(port) in message
        assert f"(pid {os.getpid()})" in message
        assert "TRITON_HTTP_PORT" in message
        assert listener(port).endswith(f"(pid {os.getpid()})")
    assert taken_port({"TRITON_HTTP_PORT": port}) is None
    assert listener(port) is None


def test_a_port_taken_on_every_interface_counts():
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert taken_port({"AIRFLOW_PORT": server.getsockname()[1]}) is not None


def test_a_connection_that_lingers_does_not_make_a_port_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        peer, _ = server.accept()
        peer.close()  # closed by the server's side first: TIME_WAIT stays on its port
        client.close()
    assert taken_port({"AIRFLOW_PORT": port}) is None


def test_another_airflow_in_the_shell_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://production")
    monkeypatch.setenv("AIRFLOW_HOME", "/production")
    monkeypatch.setenv("VIRTUAL_ENV", "/some/venv")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    env = embedded(tmp_path).environment()
    assert "production" not in " ".join(env.values())
    assert "VIRTUAL_ENV" not in env
    assert env["AIRFLOW_HOME"] == str(tmp_path / "home" / "airflow")
    assert env["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"


def test_the_services_see_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRITON_HTTP_PORT", "18000")
    place = Embedded.from_env()
    assert Embedded.from_env(place.environment()) == place


def test_secrets_are_made_once_and_private(tmp_path):
    old = os.umask(0)
    try:
        first = secret(tmp_path / "deep" / "key")
    finally:
        os.umask(old)
    assert secret(tmp_path / "deep" / "key") == first
    assert len(first) > 30
    assert stat.S_IMODE((tmp_path / "deep" / "key").stat().st_mode) == 0o600


def test_private_files_replace_and_leave_nothing(tmp_path):
    write_private(tmp_path / "f", "one")
    write_private(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert os.listdir(tmp_path) == ["f"]


def test_tritons_key_lies_where_the_local_runtime_looks(tmp_path):
    place = embedded(tmp_path)
    key = place.control_key()
    assert (tmp_path / "home" / "secrets" / "TRITON_CONTROL_KEY").read_text().strip() == key
    assert key not in place.environment().values()


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, "none"),
        ({"TRITON_HTTP_PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"TRITON_HTTP_PORT": "9000", "REFIT_TRITON_URL": "http://gpu:8000"}, "http://gpu:8000"),
    ],
)
def test_the_command_line_releases_to_the_triton_that_make_run_moved(tmp_path, env, url):
    python = tmp_path / "tools" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho ${REFIT_TRITON_URL-none}\n")
    python.chmod(0o755)
    path = {"PATH": os.environ["PATH"], "REFIT_ENVS": str(tmp_path)}
    done = subprocess.run(
        [Settings.from_env({}).repository / "bin" / "refit"], env=path | env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == url


def test_the_command_line_imports_nothing_from_where_it_is_called(tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('not this one')")
    repository = Settings.from_env({}).repository
    done = subprocess.run(
        [repository / "bin" / "refit", "validate", repository / "specs" / "pipelines" / "demo.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
