"""Archives of somebody else's: whole and harmless, or not unpacked."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from refit import archive
from refit.archive import Damaged, Limits, Unsafe, unpack

LIMITS = Limits(bytes=1 << 30)
FILE, LINK, HARD, PIPE, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE


def zipped(path: Path, *entries: tuple[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            z.writestr(info, data)
    return path


def tarred(path: Path, *entries: tuple[str, bytes], kind: bytes = FILE) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as t:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(data) if kind == FILE else 0
            t.addfile(info, io.BytesIO(data))
    return path


MAKERS: dict[str, Callable[..., Path]] = {"a.zip": zipped, "a.tar": tarred, "a.tar.gz": tarred}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("name", MAKERS)
def test_files_and_folders_come_out(tmp_path: Path, out: Path, name: str) -> None:
    made = MAKERS[name](tmp_path / name, ("set/images/a.jpg", b"picture"), ("set/labels/ä.txt", b""))
    assert unpack(made, out, LIMITS) == 2
    assert (out / "set/images/a.jpg").read_bytes() == b"picture"
    assert (out / "set/labels/ä.txt").read_bytes() == b""


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../x", b"")], "leads out of it"),
        ([("/etc/x", b"")], "leads out of it"),
        ([("a/../../x", b"")], "leads out of it"),
        ([("C:/x", b"")], "leads out of it"),
        ([("a\\..\\x", b"")], "leads out of it"),
        ([("a\nb", b"")], "cannot be a file's name"),
        ([("n" * 256, b"")], "cannot be a file's name"),
        ([("n/" * 3000 + "n", b"")], "cannot be a file's name"),
        ([("a.jpg", b"1"), ("A.jpg", b"2")], "one name on some systems"),
        ([("é.jpg", b"1"), ("e\u0301.jpg", b"2")], "one name on some systems"),
        ([("A/x", b"1"), ("a/y", b"2")], "one name on some systems"),
        ([("a", b"1"), ("a/b", b"2")], "'a' twice"),
        ([("a/b", b"1"), ("a", b"2")], "'a' twice"),
        ([("x", bytes(200 << 20))], "a bomb"),
    ],
)
def test_what_is_not_safe(tmp_path: Path, out: Path, name: str, entries: list[tuple[str, bytes]], message: str) -> None:
    if name == "a.tar" and message == "a bomb":
        pytest.skip("a tar that is not compressed is as large as what it holds")
    made = MAKERS[name](tmp_path / name, *entries)
    with pytest.raises(Unsafe, match=message):
        unpack(made, out, LIMITS)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, "out"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(tmp_path: Path, out: Path) -> None:
    with pytest.raises(Unsafe, match="'a' twice"):
        unpack(zipped(tmp_path / "a.zip", ("a", b"1"), ("a", b"2")), out, LIMITS)
    names: archive.Names = {}
    unpack(zipped(tmp_path / "b.zip", ("images/b", b"1")), out, LIMITS, names)
    unpack(zipped(tmp_path / "c.zip", ("images/c", b"1")), out, LIMITS, names)
    with pytest.raises(Unsafe, match="'images/B'"):
        unpack(zipped(tmp_path / "d.zip", ("images/B", b"2")), out, LIMITS, names)


def test_a_name_is_not_cut_at_a_nul(tmp_path: Path, out: Path) -> None:
    made = zipped(tmp_path / "a.zip", ("a.jpg_b.txt", b"1"))
    made.write_bytes(made.read_bytes().replace(b"a.jpg_b.txt", b"a.jpg\0b.txt"))
    with pytest.raises(Unsafe, match="cannot be a file's name"):
        unpack(made, out, LIMITS)


@pytest.mark.parametrize("kind", [LINK, HARD, PIPE, DEVICE])
def test_links_and_devices_in_a_tar(tmp_path: Path, out: Path, kind: bytes) -> None:
    with pytest.raises(Unsafe, match="a link or a device"):
        unpack(tarred(tmp_path / "a.tar", ("x", b""), kind=kind), out, LIMITS)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip(tmp_path: Path, out: Path, kind: int) -> None:
    with pytest.raises(Unsafe, match="no file"):
        unpack(zipped(tmp_path / "a.zip", ("x", b"/etc/passwd"), mode=kind | 0o777), out, LIMITS)


def test_limits(tmp_path: Path, out: Path) -> None:
    made = zipped(tmp_path / "a.zip", *((str(i), os.urandom(1000)) for i in range(10)))
    with pytest.raises(Unsafe, match="more than 9 entries"):
        unpack(made, out, Limits(bytes=1 << 30, files=9))
    with pytest.raises(Unsafe, match="unpacks to more than"):
        unpack(made, tmp_path / "out2", Limits(bytes=9999))


def test_a_header_of_absurd_size(tmp_path: Path, out: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    with gzip.open(tmp_path / "a.tar.gz", "wb") as f:
        f.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))
    with pytest.raises(Unsafe, match="header of absurd size"):
        unpack(tmp_path / "a.tar.gz", out, LIMITS)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_one_that_is_cut_off_does_not_open_whole(tmp_path: Path, out: Path, name: str, share: float) -> None:
    made = MAKERS[name](tmp_path / name, *((f"{i}.jpg", os.urandom(5000)) for i in range(20)))
    made.write_bytes(made.read_bytes()[: int(made.stat().st_size * share)])
    with pytest.raises(Damaged, match=r"does not open whole|it is empty"):
        unpack(made, out, LIMITS)


def test_a_tar_that_ends_between_two_files(tmp_path: Path, out: Path) -> None:
    made = tarred(tmp_path / "a.tar", ("a.jpg", bytes(512)), ("b.jpg", bytes(512)))
    made.write_bytes(made.read_bytes()[:1024])
    with pytest.raises(Damaged, match="the mark of its end is missing"):
        unpack(made, out, LIMITS)


def test_what_is_no_archive(tmp_path: Path, out: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(Damaged, match="a web page"):
        unpack(tmp_path / "a.zip", out, LIMITS)
    with pytest.raises(Damaged, match="holds no files"):
        unpack(zipped(tmp_path / "b.zip"), out, LIMITS)
    made = zipped(tmp_path / "c.zip", ("a", os.urandom(1000)))
    raw = bytearray(made.read_bytes())
    raw[200] ^= 0xFF
    made.write_bytes(raw)
    with pytest.raises(Damaged, match="does not open whole"):
        unpack(made, out, LIMITS)
