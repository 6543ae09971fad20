"""Whether an inbox is complete and new. Runs in every environment: the standard library is all it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from refit.data import arrival
from refit.data.arrival import Listing, is_complete, last_taken, listing, record_taken
from refit.data.arrival import Plain as Rule


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    root = tmp_path / "inbox"
    (root / "images").mkdir(parents=True)
    for i in range(3):
        (root / "images" / f"{i}.jpg").write_bytes(bytes(10 + i))
    return root


def _later(found: Listing, seconds: float) -> Listing:
    """The same listing, seen later."""
    return replace(found, seen_at=found.seen_at + seconds)


def test_listing(inbox: Path) -> None:
    found = listing(inbox)
    assert (found.exists, found.files, found.bytes) == (True, 3, 33)
    assert found.came == pytest.approx(max(p.stat().st_ctime for p in inbox.rglob("*.jpg")))
    assert listing(inbox).signature == found.signature


def test_signature_knows_name_size_and_time_and_no_place(inbox: Path, tmp_path: Path) -> None:
    first = listing(inbox).signature
    copy = Path(shutil.copytree(inbox, tmp_path / "copy"))  # keeps times
    assert listing(copy).signature == first
    os.utime(copy / "images/0.jpg", ns=(0, 5))
    changed = listing(copy).signature
    (copy / "images/0.jpg").rename(copy / "images/9.jpg")
    assert len({first, changed, listing(copy).signature}) == 3


def test_hidden_and_partial_files_are_activity_and_no_data(inbox: Path) -> None:
    before = listing(inbox)
    for name in (".1.jpg.Xy12", "4.jpg.part", "5.tmp", "6.jpg~", "7.crdownload"):
        (inbox / "images" / name).write_bytes(b"x")
    (inbox / ".cache").mkdir()
    (inbox / ".cache" / "8.jpg").write_bytes(b"x")
    after = listing(inbox, before)
    assert (after.signature, after.files) == (before.signature, 3)
    assert after.activity != before.activity


def test_links_out_are_not_followed(inbox: Path, tmp_path: Path) -> None:
    before = listing(inbox)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/x.jpg").write_bytes(b"x")
    (inbox / "away").symlink_to(tmp_path / "secret")
    (inbox / "x.jpg").symlink_to(tmp_path / "secret/x.jpg")
    (inbox / "loop").symlink_to(inbox)
    assert listing(inbox).signature == before.signature
    (inbox / "y.jpg").symlink_to("images/1.jpg")
    assert listing(inbox).files == 4


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    found = listing(tmp_path / "none")
    assert (found.exists, found.files) == (False, 0)
    assert not is_complete(found, None, Rule())
    assert "no such place" in is_complete(found, None, Rule()).reason
    (tmp_path / "file").write_text("x")
    assert not listing(tmp_path / "file").exists


def test_a_folder_that_vanishes_while_it_is_listed(tmp_path: Path) -> None:
    """Whatever moment the folder goes away, listing gives an answer."""
    root = tmp_path / "inbox"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, shutil, sys\n"
            "while True:\n"
            "    os.makedirs(sys.argv[1] + '/a/b')\n"
            "    for i in range(30): open(f'{sys.argv[1]}/a/b/{i}', 'w').close()\n"
            "    shutil.rmtree(sys.argv[1])\n",
            str(root),
        ]
    )
    try:
        end = time.monotonic() + 1
        seen = set()
        while time.monotonic() < end:
            seen.add(listing(root).files)
    finally:
        process.kill()
        process.wait()
    assert seen


def test_settled_when_nothing_changed_for_long_enough(inbox: Path) -> None:
    first = listing(inbox)
    assert not is_complete(first, None, Rule())
    second = _later(listing(inbox, first), 9)
    assert not is_complete(second, first, Rule())
    assert "9 of 10 s" in is_complete(second, first, Rule()).reason
    third = _later(listing(inbox, second), 11)
    assert third.stable_since == first.stable_since
    assert is_complete(third, second, Rule())
    (inbox / "images/3.jpg").write_bytes(b"x")
    fourth = _later(listing(inbox, third), 20)
    answer = is_complete(fourth, third, Rule())
    assert not answer
    assert "still being copied: 4 files" in answer.reason


def test_a_file_that_grows_under_a_partial_name_is_waited_for(inbox: Path) -> None:
    (inbox / "big.part").write_bytes(b"x")
    first = listing(inbox)
    (inbox / "big.part").write_bytes(b"xx")
    second = _later(listing(inbox, first), 60)
    assert not is_complete(second, first, Rule())
    third = replace(listing(inbox, second), seen_at=second.seen_at + 60)
    assert is_complete(
        replace(third, stable_since=second.seen_at), second, Rule()
    )  # a stale partial file blocks nothing


def test_settle_of_zero_and_empty_folder(inbox: Path, tmp_path: Path) -> None:
    assert is_complete(listing(inbox), None, Rule(settle_seconds=0))
    (tmp_path / "empty").mkdir()
    assert "no files" in is_complete(listing(tmp_path / "empty"), None, Rule(settle_seconds=0)).reason


def test_marker(inbox: Path) -> None:
    rule = Rule(marker="_SUCCESS")
    before = listing(inbox, rule=Rule("_SUCCESS"))
    answer = is_complete(before, None, rule)
    assert not answer
    assert "waiting for the marker _SUCCESS" in answer.reason
    (inbox / "_SUCCESS").touch()
    after = listing(inbox, before, rule=Rule("_SUCCESS"))
    assert is_complete(after, before, rule)
    assert (after.signature, after.files) == (before.signature, 3)  # the marker is no data
    (inbox / "images/_SUCCESS").touch()
    assert listing(inbox, rule=Rule("_SUCCESS")).files == 4  # only in the root


def test_an_old_marker_does_not_vouch_for_a_new_copy(inbox: Path) -> None:
    rule = Rule(marker="_SUCCESS", settle_seconds=10)
    (inbox / "_SUCCESS").touch()
    copied = inbox / "images" / "3.jpg"
    copied.write_bytes(b"new")
    os.utime(copied, (1, 1))  # as `cp -p` and `rsync -t` do
    first = listing(inbox, rule=Rule("_SUCCESS"))
    assert not is_complete(first, None, rule)
    settled = _later(listing(inbox, first, rule=Rule("_SUCCESS")), 11)
    assert is_complete(settled, first, rule)


def test_only_a_marker_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").touch()
    assert not is_complete(listing(tmp_path, rule=Rule("_SUCCESS")), None, Rule(marker="_SUCCESS"))


def test_record(inbox: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    assert last_taken(workspace) is None
    found = listing(inbox)
    record_taken(workspace, found, fingerprint="abc", run="r1", outcome="taken")
    taken = last_taken(workspace)
    assert taken is not None
    assert (taken.signature, taken.fingerprint, taken.run, taken.outcome) == (found.signature, "abc", "r1", "taken")
    assert (workspace / "datasets/arrival.json").is_file()
    (inbox / "images/0.jpg").write_bytes(b"")
    bad = listing(inbox)
    record_taken(workspace, bad, fingerprint=None, run="r2", outcome="bad_data")
    taken = last_taken(workspace)
    assert taken is not None
    assert (taken.signature, taken.outcome) == (bad.signature, "bad_data")  # a refused arrival is not tried again
    assert taken.fingerprint == "abc"  # the last good data set is still known
    assert [p.name for p in (workspace / "datasets").iterdir()] == ["arrival.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"signature": 1}', "\xff"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/arrival.json").write_bytes(text.encode("latin-1"))
    assert last_taken(tmp_path) is None


def test_needs_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import refit.data.arrival\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'refit'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_pipeline_file_s_block_is_a_rule() -> None:
    from refit.data.settings import Arrival

    rule: arrival.Rule = Arrival(marker="_DONE")
    assert (rule.marker, rule.settle_seconds) == ("_DONE", 10)
