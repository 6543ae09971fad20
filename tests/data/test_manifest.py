"""Manifests, and arrivals that count as complete by one; arrivals of N new labels. Runs in every environment."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from refit.data.arrival import Plain, is_complete, last_taken, listing, new_labels, record_taken
from refit.data.manifest import BadManifest, Named, parse

SHA, MD5 = "ab" * 32, "cd" * 16


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{SHA}  images/a.jpg\n", {"images/a.jpg": Named(hash=SHA)}),
        (f"# made by hand\n\n{SHA.upper()} *./images/a b.jpg\r\n", {"images/a b.jpg": Named(hash=SHA)}),
        (f"{MD5}  a.jpg\nb.jpg", {"a.jpg": Named(hash=MD5), "b.jpg": Named()}),
        ('["a.jpg"]', {"a.jpg": Named()}),
        (json.dumps({"files": [{"path": "a.jpg", "size": 3, "sha256": SHA}]}), {"a.jpg": Named(3, SHA)}),
        (json.dumps([{"path": "a.jpg", "md5": MD5}]), {"a.jpg": Named(hash=MD5)}),
    ],
)
def test_forms(text: str, found: dict[str, Named]) -> None:
    assert parse(text.encode(), "m") == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "m names no files"),
        (b"\xff\xfe", "no UTF-8"),
        (b"{", "m is no JSON"),
        (b"{}", 'no list "files"'),
        (b'{"files": [{"name": "a"}]}', 'm, file 1: has no "path"'),
        (b'[{"path": "a", "size": "3"}]', "\"size\" is '3'"),
        (b'[{"path": "a", "sha256": "xyz"}]', "'xyz' is no sha256"),
        (b"ok.jpg\n../a", r"m:2: '\.\./a' is no path below"),
        (b"/etc/passwd", "is no path below"),
        (f"{SHA}  a\n{MD5}  a".encode(), "m:2: 'a' is named twice"),
        (b"[" * 100_000, "m is no JSON"),
    ],
)
def test_what_cannot_be_understood_names_its_line(data: bytes, message: str) -> None:
    with pytest.raises(BadManifest, match=message):
        parse(data, "m")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox" / "images").mkdir(parents=True)
    return tmp_path / "inbox"


def put(inbox: Path, *names: str) -> None:
    for name in names:
        (inbox / "images" / name).write_bytes(name.encode())


def write(inbox: Path, *names: str) -> None:
    rows = [{"path": f"images/{n}", "size": len(n), "sha256": hashlib.sha256(n.encode()).hexdigest()} for n in names]
    (inbox / "files.json").write_text(json.dumps({"files": rows}))


def test_complete_when_all_that_it_names_is_there(inbox: Path) -> None:
    rule = Plain(manifest="files.json")
    put(inbox, "a.jpg")
    first = listing(inbox, rule=rule)
    assert "waiting for the manifest files.json; 1 files so far" in is_complete(first, None, rule).reason
    write(inbox, "a.jpg", "bb.jpg")
    second = listing(inbox, first, rule)
    assert "1 of 2 files that files.json names are not there in full" in is_complete(second, first, rule).reason
    (inbox / "images" / "bb.jpg").write_bytes(b"bb")  # still being copied
    assert "images/bb.jpg" in is_complete(listing(inbox, second, rule), second, rule).reason
    put(inbox, "bb.jpg")
    third = listing(inbox, second, rule)
    assert is_complete(third, second, rule)
    assert third.files == 2  # the manifest is no data
    (inbox / "files.json").write_text((inbox / "files.json").read_text() + " ")
    assert listing(inbox, third, rule).signature == third.signature


def test_files_that_it_does_not_name_are_waited_for_by_settling(inbox: Path) -> None:
    rule = Plain(manifest="files.json", settle_seconds=10)
    put(inbox, "a.jpg", "more.jpg")
    write(inbox, "a.jpg")
    first = listing(inbox, rule=rule)
    assert "still being copied" in is_complete(first, None, rule).reason
    second = replace(listing(inbox, first, rule), seen_at=first.seen_at + 11)
    assert is_complete(second, first, rule)


def test_a_manifest_that_is_half_written_is_waited_for(inbox: Path) -> None:
    rule = Plain(manifest="files.json")
    put(inbox, "a.jpg")
    (inbox / "files.json").write_text('{"files": [')
    first = listing(inbox, rule=rule)
    assert "the manifest cannot be used: files.json is no JSON" in is_complete(first, None, rule).reason
    write(inbox, "a.jpg")
    assert is_complete(listing(inbox, first, rule), first, rule)


def test_a_manifest_is_read_once(inbox: Path) -> None:
    rule = Plain(manifest="files.json")
    put(inbox, "a.jpg")
    write(inbox, "a.jpg")
    first = listing(inbox, rule=rule)
    status = (inbox / "files.json").stat()
    (inbox / "files.json").write_text("x" * status.st_size)
    os.utime(inbox / "files.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listing(inbox, first, rule).manifest == first.manifest


def test_new_labels_are_those_that_came_since(inbox: Path, tmp_path: Path) -> None:
    rule = Plain(new_labels=2)
    put(inbox, "a.jpg", "a.txt", "b.jpg", "b.txt")
    first = listing(inbox, rule=rule)
    assert new_labels(first, None) == 2
    taken = record_taken(tmp_path, first, fingerprint="f" * 64, run="r", outcome="taken")
    assert last_taken(tmp_path) == taken
    assert new_labels(listing(inbox, first, rule), taken) == 0
    put(inbox, "c.jpg", "c.txt")
    os.utime(inbox / "images" / "c.txt", (1, 1))  # a copy that keeps times
    assert new_labels(listing(inbox, first, rule), taken) == 1
    (inbox / "images" / "a.txt").write_bytes(b"corrected")
    assert new_labels(listing(inbox, first, rule), taken) == 2
    for name in ("a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "c.txt"):
        (inbox / "images" / name).unlink()
    put(inbox, "d.jpg", "d.txt", "e.jpg", "e.txt")  # a batch in place of another of the same size
    assert new_labels(listing(inbox, first, rule), taken) == 2


def test_the_labels_of_a_refused_arrival_still_count(inbox: Path, tmp_path: Path) -> None:
    rule = Plain(new_labels=3)
    put(inbox, "a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "c.txt")
    refused = record_taken(tmp_path, listing(inbox, rule=rule), fingerprint=None, run="r1", outcome="bad_data")
    (inbox / "images" / "a.txt").write_bytes(b"corrected")
    assert new_labels(listing(inbox, rule=rule), refused) == 3
    good = record_taken(tmp_path, listing(inbox, rule=rule), fingerprint="f" * 64, run="r2", outcome="taken")
    put(inbox, "d.jpg", "d.txt")
    record_taken(tmp_path, listing(inbox, rule=rule), fingerprint=None, run="r3", outcome="bad_data")
    again = last_taken(tmp_path)
    assert again is not None
    assert (again.run, again.came) == ("r3", good.came)
    assert new_labels(listing(inbox, rule=rule), again) == 1
