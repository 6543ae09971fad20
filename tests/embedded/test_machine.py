"""Can this machine run it? Every reason is one line that says what to do."""

import os

import pytest

from refit.embedded import machine


def test_the_machine_that_runs_the_tests_is_good_enough(tmp_path):
    assert machine.problems(tmp_path / "not" / "there" / "yet", disk_needed=1) == []


def test_too_little_disk_names_the_place_and_the_variable(tmp_path):
    (problem,) = machine.problems(tmp_path / "envs", disk_needed=10**18)
    assert str(tmp_path) in problem
    assert "REFIT_HOME" in problem


def test_other_systems_are_refused_with_one_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    (problem,) = machine.problems(tmp_path, disk_needed=1)
    assert "Linux aarch64" in problem


@pytest.mark.parametrize(("libc", "words"), [(None, "no glibc"), ((2, 31), "glibc 2.31")])
def test_an_old_or_other_c_library(tmp_path, monkeypatch, libc, words):
    monkeypatch.setattr(machine, "glibc_version", lambda: libc)
    (problem,) = machine.problems(tmp_path, disk_needed=1)
    assert words in problem
    assert "2.35" in problem


def test_too_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 2 * machine.GIB)
    (problem,) = machine.problems(tmp_path, disk_needed=1)
    assert problem.startswith("2.0 GiB of memory")


def test_a_folder_of_somebody_else(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    assert any("cannot be written" in p for p in machine.problems(tmp_path / "x", disk_needed=1))


def test_all_reasons_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 1)
    assert len(machine.problems(tmp_path, disk_needed=10**18)) == 2


def test_this_machine_is_measured():
    assert machine.memory_limit() > 100 * 2**20
    assert machine.glibc_version() >= (2, 17)
