"""The verdict: no exit code is believed alone, outputs are proven, and the reason is one that a person can use."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit.runner import CHECKS, MemoryLimit, Missing, check_hdf5, describe_exit, find_output
from tests.refit.runner_helpers import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


CODES = {"2": "bad_spec", "3": "bad_data", "4": "rejected"}


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        ("note(status='FAILURE', message='no  such\\nclass')", "toolkit_error", "no such class"),
        ("note(status='FAILURE')", "toolkit_error", "FAILURE in status.json, exit code 0, and no output"),
        ("note(status='FAILURE', message='a'); note(status='SUCCESS')", "succeeded", ""),
        ("note(status='RUNNING', message='finished successfully.')", "succeeded", ""),
        ("note(status='FAILURE', message='first'); say('error: second'); sys.exit(1)", "toolkit_error", "first"),
        ("say('tool.py: error: bad flag'); say('bye'); sys.exit(2)", "bad_spec", "bad flag"),
        ("say('error: one'); say('error: two'); say('error: '); sys.exit(7)", "toolkit_error", "two"),
        ("say('some words'); say(''); sys.exit(7)", "toolkit_error", "some words (exit code 7)"),
        ("sys.exit(7)", "toolkit_error", "exit code 7, and no output"),
        ("say('x'); os.kill(os.getpid(), 11)", "toolkit_error", "x (ended by signal 11, SIGSEGV)"),
        ("sys.exit(139)", "toolkit_error", "exit code 139, perhaps SIGSEGV, and no output"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "cancelled", "the command was stopped by SIGTERM from outside"),
        ("sys.exit(143)", "cancelled", "the command was stopped by SIGTERM from outside"),
        ("raise MemoryError", "out_of_memory", "MemoryError (exit code 1)"),
        (
            "say('E: CUDA out of memory.'); say('by'); sys.exit(1)",
            "out_of_memory",
            "E: CUDA out of memory. (exit code 1)",
        ),
        ("say('Cannot allocate memory'); say('error: a'); sys.exit(1)", "out_of_memory", "a (Cannot allocate memory)"),
        ("say('MemoryError is a class'); sys.exit(4)", "rejected", "MemoryError is a class (exit code 4)"),
        ("raise OSError('No space left on device')", "no_space", "OSError: No space left on device (exit code 1)"),
        ("say('x')\nnote(status='FAILURE', message='Disk quota exceeded')", "no_space", "Disk quota exceeded"),
    ],
)
def test_the_outcome_and_its_reason(bench: Bench, code: str, outcome: str, reason: str) -> None:
    done = bench.run(bench.request(code, exit_codes=CODES))
    assert (done.outcome, done.reason) == (outcome, reason), done.output
    assert done.code == {"succeeded": 0, "bad_spec": 2, "rejected": 2, "cancelled": 143}.get(outcome, 1)
    assert bool(done.result["advice"]) is (outcome != "succeeded")


def test_a_kill_from_outside_says_what_is_known_and_no_more(bench: Bench) -> None:
    done = bench.run(bench.request("os.kill(os.getpid(), 9)"))
    assert (done.outcome, done.result["exit_code"]) == ("toolkit_error", -9)
    assert done.reason.startswith("the command was ended by SIGKILL, not by Refit; its memory was at most ")
    assert "If the machine ran out of memory" in done.result["advice"]


def test_gpu_memory_has_its_own_advice(bench: Bench) -> None:
    done = bench.run(bench.request("say('torch.cuda.OutOfMemoryError: CUDA out of memory.'); sys.exit(1)"))
    assert done.outcome == "out_of_memory"
    assert done.result["advice"].startswith("The GPU's memory is too small")


def test_exit_0_with_missing_outputs_names_all_of_them(bench: Bench) -> None:
    outputs = [
        {"name": "model", "path": "*.pth"},
        {"name": "log", "path": "log.txt"},
        {"name": "status", "path": "status.json"},
    ]
    done = bench.run(bench.request("say('Execution status: FAIL'); note(status='RUNNING')", outputs=outputs))
    assert (done.code, done.outcome, done.result["outputs"]) == (1, "toolkit_error", {})
    assert done.reason == (
        "the command ended with exit code 0, but its outputs are not right: "
        "model: *.pth is missing; log: log.txt is missing"
    )


def test_a_summary_too_large_fails_the_stage_and_a_nan_in_it_is_nothing(bench: Bench) -> None:
    large = "json.dump({'x': 'y' * 3072}, open(path('s.json'), 'w'))"
    done = bench.run(bench.request(large, summary="s.json"))
    assert (done.outcome, done.result["summary"]) == ("toolkit_error", {})
    assert done.reason == "s.json has 3080 bytes, 3072 are allowed"
    done = bench.run(bench.request("open(path('s.json'), 'w').write('{\"x\": NaN}')", summary="s.json", key="b" * 64))
    assert done.result["summary"] == {"x": None}


# --- which path an output means -------------------------------------------------------------------------------------


def find(out: Path, **spec: Any) -> str:
    return str(Path(find_output(str(out), {"name": "x", **spec}, {})).relative_to(out))


def why(out: Path, **spec: Any) -> str:
    with pytest.raises(Missing) as caught:
        find(out, **spec)
    return str(caught.value)


def test_globs(tmp_path: Path) -> None:
    out = tmp_path / "out [1]"
    (out / "weights" / "deep").mkdir(parents=True)
    for name in ("weights/a_001.pth", "weights/a_002.pth", "weights/deep/b[1].hdf5"):
        (out / name).write_text("x")
    os.utime(out / "weights/a_001.pth", (2e9, 2e9))
    assert find(out, path="weights/*_002.pth") == "weights/a_002.pth"
    assert find(out, path="weights/*.pth", pick="newest") == "weights/a_001.pth"
    assert find(out, path="**/*.hdf5") == "weights/deep/b[1].hdf5"
    assert find(out, path="weights/deep/b[1].hdf5") == "weights/deep/b[1].hdf5"
    assert why(out, path="weights/*.pth") == (
        "weights/*.pth matches 2 paths (weights/a_001.pth, weights/a_002.pth ...), one is expected"
    )


def test_kinds_sizes_and_links(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "empty").mkdir(parents=True)
    (out / "file").write_text("12345")
    (out / "zero").write_text("")
    (tmp_path / "outside").write_text("12345")
    (out / "away").symlink_to(tmp_path / "outside")
    (out / "near").symlink_to("file")
    (out / "nowhere").symlink_to("no-such-file")
    assert why(out, path="file", kind="dir") == "file is no folder"
    assert why(out, path="empty") == "empty is no file"
    assert why(out, path="empty", kind="dir") == "empty has 0 bytes, expected are at least 1"
    assert why(out, path="zero") == "zero has 0 bytes, expected are at least 1"
    assert why(out, path="file", min_bytes=6) == "file has 5 bytes, expected are at least 6"
    assert why(out, path="away") == "away leads out of the stage's folder"
    assert why(out, path="nowhere") == "nowhere is no file"
    assert find(out, path="near", min_bytes=5) == "near"
    assert find(out, path="zero", min_bytes=0) == "zero"


# --- wholeness ------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def onnx() -> bytes:
    """ModelProto: ir_version 8, producer_name, a graph of 300 bytes, an opset."""
    return b"\x08\x08\x12\x05refit" + b"\x3a" + varint(300) + bytes(300) + b"\x42\x04\x0a\x00\x10\x11"


def tfrecord() -> bytes:
    return b"".join(struct.pack("<Q", n) + bytes(4) + bytes(n) + bytes(4) for n in (5, 0, 200))


def hdf5(version: int, addresses: int) -> bytes:
    """A superblock of that version, whose addresses of 8 bytes begin there: base, another, the end; and 100 bytes."""
    head = b"\x89HDF\r\n\x1a\n" + bytes([version])
    head += bytes([0, 0, 0, 0, 8, 8]) if version < 2 else bytes([8, 8, 0])
    return (head.ljust(addresses + 16, b"\0") + struct.pack("<Q", 196)).ljust(196, b"\0")


def png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def pth(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", "x" * 100)
        archive.writestr("model/data/0", bytes(500))
    return path.read_bytes()


def samples(folder: Path) -> dict[str, bytes]:
    return {
        "json": b'{"a": [1, 2]}\n',
        "jsonl": b'{"a": 1}\n\n{"a": 2}\n{"a": [3]}',
        "onnx": onnx(),
        "tfrecord": tfrecord(),
        "pth": pth(folder / "sample.zip"),
        "hdf5": hdf5(0, 24),
        "png": png(),
        "jpg": b"\xff\xd8\xff\xe0" + bytes(100) + b"\xff\xd9",
    }


@pytest.mark.parametrize(("version", "addresses"), [(0, 24), (1, 28), (2, 12), (3, 12)])
def test_every_version_of_hdf5s_superblock_says_where_the_file_ends(
    tmp_path: Path, version: int, addresses: int
) -> None:
    path = tmp_path / "model.hdf5"
    path.write_bytes(hdf5(version, addresses))
    assert check_hdf5(str(path)) == ""
    path.write_bytes(hdf5(version, addresses)[:-1])
    assert check_hdf5(str(path)) == "is cut off"


@pytest.mark.parametrize("kind", sorted(CHECKS))
def test_a_file_cut_off_anywhere_is_not_whole(tmp_path: Path, kind: str) -> None:
    data = samples(tmp_path)[kind]
    path = tmp_path / f"output.{kind}"
    path.write_bytes(data)
    assert CHECKS[kind](str(path)) == ""
    # A jsonl or tfrecord file that ends between two records cannot be told from a whole one, nor JSON without its "\n".
    ends = {
        "json": {0, len(data) - 1},
        "jsonl": {0, 8, 9, 10, 18, 19},
        "tfrecord": {0, 21, 37},
        # An ONNX file whose last fields are missing, but whose graph is whole, would be taken; the opset is small.
        "onnx": {len(data) - 6},
    }.get(kind, set())
    wrong = [
        n
        for n in range(1, len(data), 1 + len(data) // 200)
        if n not in ends and (path.write_bytes(data[:n]), CHECKS[kind](str(path)))[1] == ""
    ]
    assert wrong == []


@pytest.mark.parametrize("kind", sorted(CHECKS))
def test_a_file_of_another_kind_is_found_out(tmp_path: Path, kind: str) -> None:
    for other, data in {**samples(tmp_path), "text": b"Not Found\n" * 20, "zeros": bytes(5000)}.items():
        path = tmp_path / "output"
        path.write_bytes(data)
        alike = {kind, "jsonl" if kind == "json" else "", "json" if kind == "jsonl" else ""}
        if other not in alike:
            assert CHECKS[kind](str(path)) != "" or (kind, other) == ("tfrecord", "zeros"), (kind, other)


def test_real_tools_agree_on_what_is_whole(tmp_path: Path) -> None:
    onnx_module = pytest.importorskip("onnx")
    helper, tensor = onnx_module.helper, onnx_module.TensorProto
    values = helper.make_tensor_value_info("x", tensor.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [values],
        [helper.make_tensor_value_info("y", tensor.FLOAT, [1])],
    )
    path = tmp_path / "m.onnx"
    onnx_module.save(helper.make_model(graph), str(path))
    assert CHECKS["onnx"](str(path)) == ""
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut off" in CHECKS["onnx"](str(path))


def test_a_pickle_of_old_pytorch_is_taken_unseen(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert CHECKS["pth"](str(path)) == ""


def test_a_folder_is_checked_file_by_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "records" / "val").mkdir(parents=True)
    spec = {"path": "records", "kind": "dir", "format": "tfrecord"}
    (out / "records" / "readme.txt").write_text("about")
    assert why(out, **spec) == "records holds no tfrecord file"
    (out / "records" / "train.tfrecord").write_bytes(tfrecord())
    (out / "records" / "val" / "tag-00000-of-00002.tfrecord").write_bytes(tfrecord())
    assert find(out, **spec) == "records"
    (out / "records" / "val" / "tag-00000-of-00002.tfrecord").write_bytes(tfrecord()[:-1])
    assert why(out, **spec) == "records/val/tag-00000-of-00002.tfrecord is cut off after 2 records, or is no TFRecord"


def test_tfrecords_as_tf1_names_them(tmp_path: Path) -> None:
    """Fold 0 is empty where Refit has split the data; the warnings and ssd's indexes beside the records are none."""
    out = tmp_path / "out"
    (out / "records").mkdir(parents=True)
    (out / "records" / "part_warning.json").write_text('{"0.jpg": "no objects"}')
    (out / "records" / "idx-part-fold-000-of-002-shard-00000-of-00001").write_text("0 37")
    spec = {"path": "records", "kind": "dir", "format": "tfrecord"}
    assert why(out, **spec) == "records holds no tfrecord file"
    (out / "records" / "part-fold-000-of-002-shard-00000-of-00001").write_bytes(b"")
    assert why(out, **spec) == "records holds no record"
    (out / "records" / "part-fold-001-of-002-shard-00000-of-00001").write_bytes(tfrecord())
    assert find(out, **spec) == "records"


def test_a_truncated_output_fails_the_stage(bench: Bench) -> None:
    code = f"open(path('model.onnx'), 'wb').write(bytes.fromhex('{onnx()[:-50].hex()}'))"
    done = bench.run(bench.request(code, outputs=[{"name": "model", "path": "model.onnx", "format": "onnx"}]))
    assert (done.code, done.outcome) == (1, "toolkit_error")
    assert done.reason.endswith("model: model.onnx is cut off, or is no ONNX file")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (9, "exit code 9"),
        (-9, "ended by signal 9, SIGKILL"),
        (137, "exit code 137, perhaps SIGKILL"),
        (-64, "ended by signal 64, "),
        (255, "exit code 255"),
    ],
)
def test_exit_codes_in_words(code: int, text: str) -> None:
    assert describe_exit(code).startswith(text)


# --- control groups -------------------------------------------------------------------------------------------------


def fake_group(tmp_path: Path, groups: str, mounts: str, folder: str, files: dict[str, str]) -> MemoryLimit:
    """/proc and /sys as recorded from real machines, below tmp_path."""
    proc = tmp_path / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(mounts.replace("/sys/", f"{tmp_path}/sys/"))
    (tmp_path / folder).mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / folder / name).write_text(text)
    return MemoryLimit(str(tmp_path / "proc"))


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 %s /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"
POD = "/kubepods/burstable/pod1/abc"


V2_FILES = {"memory.events": EVENTS, "memory.max": "67108864\n"}
V1_FILES = {"memory.oom_control": CONTROL, "memory.limit_in_bytes": "9"}
NO_LIMIT = {"memory.max": "max\n", "memory.limit_in_bytes": "9223372036854771712"}


@pytest.mark.parametrize(
    ("groups", "mounts", "folder", "files", "known"),
    [
        pytest.param("0::/\n", V2, "", V2_FILES, (2, 1 << 26), id="v2 in a container"),
        pytest.param("0::/user.slice/a\n", V2, "user.slice/a", V2_FILES | NO_LIMIT, (2, None), id="v2 on a host"),
        pytest.param(f"4:memory:{POD}\n0::/\n", V1 % POD, "memory", V1_FILES, (4, 9), id="v1 in a container"),
        pytest.param(f"4:memory:{POD}\n", V1 % "/", "memory" + POD, V1_FILES | NO_LIMIT, (4, None), id="v1 on a host"),
        pytest.param("0::/\n", "", "", {}, (0, None), id="no control groups"),
    ],
)
def test_the_groups_counters_are_found(
    tmp_path: Path, groups: str, mounts: str, folder: str, files: dict[str, str], known: tuple[int, int | None]
) -> None:
    memory = fake_group(tmp_path, groups, mounts, f"sys/fs/cgroup/{folder}", files)
    assert (memory.kills(), memory.limit()) == known


def test_this_machine_has_counters_or_none() -> None:
    memory = MemoryLimit()
    assert memory.kills() >= 0
    assert MemoryLimit.machine_kills() >= 0
    assert memory.limit() is None or memory.limit() > 0
