"""Every format that is written and read: bytes changed anywhere in its files lose nothing in silence."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.data.helpers import kitti_set  # isort: skip

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.data import convert
from refit.data.codes import CODES
from refit.data.examine import examine
from refit.data.faults import BadData
from refit.data.formats import READERS, WRITERS

# A place (share of the file), how many bytes are taken out there, and what is put in.
edits = st.tuples(
    st.floats(0, 1),
    st.sampled_from([0, 0, 1, 2, 8, 10**6]),
    st.one_of(
        st.binary(max_size=3),
        st.sampled_from(
            [b"\n", b",", b"0", b"-", b"nan", b"null", b"[", b"}", b'"', b"<object>", b"\xff\xfe", b"9" * 30]
        ),
    ),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same small data set in each format."""
    root = tmp_path_factory.mktemp("formats")
    source = convert.from_folder(kitti_set(root / "source", 4))
    for name in WRITERS:
        convert.write(source, root / name, name, copy=True)
    return {name: root / name for name in WRITERS}


@pytest.mark.parametrize("name", sorted(READERS.keys() & WRITERS.keys()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 1000), edits), min_size=1, max_size=3))
def test_any_byte_of_any_file(
    name: str, good: dict[str, Path], changes: list[tuple[int, tuple[float, int, bytes]]]
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(shutil.copytree(good[name], Path(temporary) / "set"))
        files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".jpg")
        for which, (place, take, put) in changes:
            path = files[which % len(files)]
            data = path.read_bytes()
            at = round(place * len(data))
            path.write_bytes(data[:at] + put + data[at + take :])
        try:
            found = examine(root, format=name, max_bad_labels=1)
        except BadData as exc:
            assert {f.code for f in exc.faults} <= {"not_recognised"}  # noqa: PT017 - which of both is not known
            return
        assert found.balanced()
        assert all(f.code in CODES and f.advice for f in found.faults)
        assert all(
            0 <= o.x1 < o.x2 <= s.width and 0 <= o.y1 < o.y2 <= s.height for s in found.samples for o in s.objects
        )
