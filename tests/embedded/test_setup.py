"""Environments are made whole or not at all, and only where their lock says something new. Real uv, tiny packages."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from refit.config import Settings
from refit.embedded import installer
from refit.embedded.setup import ENVIRONMENTS, REPOSITORY, RUN, STAMP, Environment, Setup, SetupError, advice

SMALL = {
    "one": Environment("one.txt", ("iniconfig",), 0.01),
    "two": Environment("two.txt", ("json",), 0.01, tested=False),
}


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """uv of this machine, and a check that it can install the packages used here."""
    home = Settings.from_env().home
    env = installer.uv_environment(os.environ, installer.pip_settings(os.environ), home)
    try:
        found = installer.find_uv(home, env)
    except SetupError as exc:
        pytest.skip(f"uv cannot be had: {exc}")
    probe = [found, "pip", "install", "-q", "--target", str(tmp_path_factory.mktemp("probe"))]
    done = subprocess.run(
        [*probe, "iniconfig==2.3.1", "pluggy==1.7.0"], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return found


@pytest.fixture
def place(tmp_path, monkeypatch, uv):
    """A repository with two small locks."""
    monkeypatch.setenv("PATH", f"{os.path.dirname(uv)}:{os.environ['PATH']}")
    repository = tmp_path / "repository"
    (repository / "tests").mkdir(parents=True)
    (repository / "one.txt").write_text("iniconfig==2.3.1\n")
    (repository / "two.txt").write_text("# nothing\n")
    (repository / "tests" / "requirements.txt").write_text("pluggy==1.7.0\n")
    return Setup(tmp_path / "home", tmp_path / "home" / "envs", repository, SMALL)


def stamp_time(place, name):
    return (place.envs / name / STAMP).stat().st_mtime_ns


def test_made_once_then_up_to_date(place):
    assert place.run(["one", "two"])
    answer = subprocess.run(
        [place.envs / "one" / "bin" / "python", "-c", "import sys, iniconfig; print(sys.prefix, sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == f"{place.envs / 'one'} (3, 11)"
    assert not place.run(["one", "two"])
    assert sorted(os.listdir(place.envs)) == ["one", "two"]


def test_a_changed_lock_rebuilds_its_own_environment_only(place):
    place.run(["one", "two"])
    before = stamp_time(place, "two")
    (place.repository / "one.txt").write_text("iniconfig==2.3.1\npluggy==1.7.0\n")
    assert not place.is_current("one")
    assert place.run(["one", "two"])
    assert stamp_time(place, "two") == before
    subprocess.run([place.envs / "one" / "bin" / "python", "-c", "import pluggy"], check=True)


def test_the_tests_packages_are_added_in_place(place):
    place.run(["one", "two"])
    before = json.loads((place.envs / "one" / STAMP).read_text())
    assert place.run(["one", "two"], tests=True)
    assert not place.run(["one", "two"], tests=True)
    subprocess.run([place.envs / "one" / "bin" / "python", "-c", "import pluggy, iniconfig"], check=True)
    assert (before | {"tests": None}).keys() == json.loads((place.envs / "one" / STAMP).read_text()).keys()
    assert "tests" not in json.loads((place.envs / "two" / STAMP).read_text())


def test_a_failed_installation_keeps_the_old_environment(place, capfd):
    place.run(["one"])
    (place.repository / "one.txt").write_text("iniconfig==0.0.0.dev999\n")
    with pytest.raises(SetupError, match="iniconfig"):
        place.run(["one"])
    subprocess.run([place.envs / "one" / "bin" / "python", "-c", "import iniconfig"], check=True)
    assert os.listdir(place.envs) == ["one"]
    assert not place.is_current("one")


def test_an_environment_that_cannot_import_is_not_kept(place):
    (place.repository / "one.txt").write_text("pluggy==1.7.0\n")  # no iniconfig
    with pytest.raises(SetupError, match="No module named 'iniconfig'"):
        place.run(["one"])
    assert os.listdir(place.envs) == []


def test_leftovers_of_a_killed_call_are_replaced(place):
    (place.envs / ".two.new" / "bin").mkdir(parents=True)
    (place.envs / "two").mkdir()  # half made, by hand: no stamp
    assert place.run(["two"])
    assert os.listdir(place.envs) == ["two"]
    assert place.is_current("two")


def test_an_environment_whose_python_is_gone_is_made_again(place):
    place.run(["two"])
    file = place.envs / "two" / STAMP
    file.write_text(json.dumps(json.loads(file.read_text()) | {"python": "/nowhere/python3.11"}))
    assert not place.is_current("two")


def test_nothing_is_rebuilt_under_a_running_make_run(place):
    place.run(["two"])
    (place.repository / "two.txt").write_text("# changed\n")
    with open(place.home / "run.lock", "w") as lock:
        lock.write("4711 http://127.0.0.1:8080\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="4711"):
            place.run(["two"])
    assert place.run(["two"])


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ImportError: libGL.so.1: cannot open shared object file: No such file", "libGL.so.1"),
        ("error: No space left on device (os error 28)", "disk is full"),
        ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("client error (Connect): dns error: failed to lookup", "PIP_INDEX_URL"),
        ("npm error code SELF_SIGNED_CERT_IN_CHAIN", "SSL_CERT_FILE"),
        ("npm error Exit handler never called!", "NPM_CONFIG_REGISTRY"),
        ("from model_signing._signing import sign_certificate as certificate", ""),
        ("something else", ""),
    ],
)
def test_advice(output, words):
    assert words in advice(output)
    assert bool(words) == bool(advice(output))


def test_a_wrong_name_and_a_warm_call_as_typed():
    wrong = subprocess.run(
        [sys.executable, "-m", "refit.embedded.setup", "cpuu"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2
    assert "cpuu" in wrong.stderr


def test_every_lock_is_there_and_exact():
    for name in (*RUN, "lint"):
        lines = (REPOSITORY / ENVIRONMENTS[name].lock).read_text().splitlines()
        assert lines, name
        assert all("==" in line for line in lines), name


def test_the_tests_lock_agrees_with_the_environments():
    def pins(file):
        return dict(line.split("==") for line in (REPOSITORY / file).read_text().splitlines())

    tests = pins("tests/requirements.txt")
    for name in ("airflow", "tools", "cpu"):
        own = pins(ENVIRONMENTS[name].lock)
        assert {p: own[p] for p in tests if p in own} == {p: v for p, v in tests.items() if p in own}, name
