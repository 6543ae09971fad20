"""`make test` adds up what each environment's pytest says. Real pytest runs on small test files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refit.embedded.suite import Group, divide, read_report

ROOT = Path(__file__).resolve().parents[2]
GOOD = "def test_good(): assert True\n"


@pytest.fixture
def repository(tmp_path):
    """A repository with tests of two environments, both run by this interpreter."""
    for name in ("tools", "cpu", "airflow"):
        folder = tmp_path / "envs" / name / "bin"
        folder.mkdir(parents=True)
        program = folder / "python"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        program.chmod(0o755)
    for folder in ("cpu", "refit", "operators"):  # three groups, one of them `tools`
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / f"test_{folder}.py").write_text(GOOD)
    (tmp_path / "tests" / "empty").mkdir()
    return tmp_path


def suite(repository, *words):
    env = {**os.environ, "REFIT_REPOSITORY": str(repository), "REFIT_HOME": str(repository / "home")}
    env |= {"REFIT_ENVS": str(repository / "envs"), "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # hypothesis takes long to load
    return subprocess.run(
        [sys.executable, "-m", "refit.embedded.suite", *words],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_good_tests_with_options_and_paths(repository):
    done = suite(repository, "-k", "good")
    assert done.stdout.splitlines()[-1] == "3 passed, 0 failed, 0 skipped"
    assert done.returncode == 0
    some = suite(repository, "tests/refit/test_refit.py::test_good")
    assert some.stdout.splitlines()[-1] == "1 passed, 0 failed, 0 skipped"
    nothing = suite(repository, "-k", "nothing_like_it", "tests/cpu")
    assert nothing.stdout.splitlines()[-1] == "0 passed, 0 failed, 0 skipped"
    assert nothing.returncode == 1, "a run without a single test proves nothing"


def test_whatever_goes_wrong_is_a_failure(repository):
    (repository / "tests" / "cpu" / "test_more.py").write_text(
        "import pytest\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_error(nothing_like_it): pass\n"
        "@pytest.mark.skip(reason='no such camera here')\n"
        "def test_skip(): pass\n"
    )
    (repository / "tests" / "operators" / "test_operators.py").write_text("import not_there\n")
    (repository / "tests" / "refit" / "test_refit.py").write_text("def test(): import os; os._exit(0)\n")
    done = suite(repository)
    assert done.stdout.splitlines()[-1] == "1 passed, 4 failed, 1 skipped"
    assert "no such camera here" in done.stdout
    assert "assert 1 == 2" in done.stdout
    assert "No module named 'not_there'" in done.stdout
    assert done.returncode == 1


def test_what_failed_runs_once_more_when_asked(repository):
    """A test that passes alone is named and counts as passed; one that fails again, and a file that cannot be
    collected, are failures."""
    (repository / "tests" / "cpu" / "test_more.py").write_text(
        "import pathlib, pytest\n"
        "SEEN = pathlib.Path(__file__).with_name('seen')\n"
        "class TestIt:\n"
        "    @pytest.mark.parametrize('word', ['a - b', 'c'])\n"
        "    def test_busy(self, word):\n"
        "        there = SEEN.exists()\n"
        "        SEEN.touch()\n"
        "        assert there\n"
        "def test_good(): assert not SEEN.with_name('again').exists(), 'only what failed runs again'\n"
        "@pytest.fixture\n"
        "def late():\n"
        "    yield\n"
        "    SEEN.with_name('again').touch()\n"
        "    assert False, 'torn down badly'\n"
        "def test_worse(late): pass\n"
    )
    broken = repository / "tests" / "operators" / "test_operators.py"
    broken.write_text("import not_there\n")
    once = suite(repository)
    assert once.returncode == 1
    assert "once more" not in once.stdout
    for name in ("seen", "again"):
        (repository / "tests" / "cpu" / name).unlink()
    twice = suite(repository, "--again")
    assert "FAILED BESIDE OTHERS, PASSED ALONE: tests/cpu/test_more.py::TestIt::test_busy[a - b]\n" in twice.stdout
    assert twice.stdout.count("PASSED ALONE") == 1
    assert twice.stdout.splitlines()[-1] == "5 passed, 2 failed, 0 skipped"
    assert twice.returncode == 1
    (repository / "tests" / "cpu" / "seen").unlink()
    mended = suite(repository, "--again", "tests/cpu/test_more.py", "-k", "busy")
    assert mended.stdout.splitlines()[-1] == "2 passed, 0 failed, 0 skipped"
    assert mended.returncode == 0


def test_every_folder_of_tests_belongs_to_a_group(repository):
    paths, options = divide(repository / "tests", [])
    assert paths == {"cpu": ["tests/cpu"], "airflow": ["tests/operators"], "tools": ["tests/refit"]}
    assert options == []
    assert divide(repository / "tests", ["tests"]) == (paths, [])


def test_where_an_environment_cannot_be_had_another_one_says_what_is_left_out(tmp_path):
    group = Group("helm", ("helm",), instead="tools")
    assert group.python(tmp_path) == tmp_path / "tools" / "bin" / "python"
    own = tmp_path / "helm" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert group.python(tmp_path) == own
    assert Group("cpu").python(tmp_path) == tmp_path / "cpu" / "bin" / "python"


def test_the_report_of_pytest_is_read(tmp_path):
    file = tmp_path / "report.xml"
    file.write_text('<testsuites><testsuite tests="7" failures="1" errors="2" skipped="1"/></testsuites>')
    assert str(read_report(file)) == "3 passed, 3 failed, 1 skipped"
