#!/usr/bin/env python3
"""Run the command of one stage and prove what came of it.

    python runner.py --plan plan.json --stage train     the stage of that name in a plan
    python runner.py --request request.json             one stage; "-" reads it from standard input
    REFIT_REQUEST='{...}' python runner.py              one stage, as JSON text
    python runner.py --answer FOLDER                    start nothing: hand back the result that a stage's folder holds;
                                                        with one of the above only where it has the stage's key

One file and the standard library of Python 3.6 and up, because it also runs inside images that are not ours.
In: a stage (docs/contracts.md, "Stage, request.json"). Out: `result.json` in the stage's folder, a compact copy
of at most 4,096 bytes in the file that REFIT_TERMINATION_LOG names, and an exit code: 0 succeeded; 2 bad_spec,
bad_data or rejected; 143 cancelled; 1 anything else.

How a start goes:
 1. Read and check the request. Take the stage folder's lock; a runner that is still at work there is ended first.
 2. A good result with the same key is handed back at once. An attempt that stopped early is gone on with. Anything
    else in the folder is moved aside.
 3. Replace the tokens, write the specs, start the command in a session of its own.
 4. Pass its output on with the secrets blotted out, follow `status.json`, watch for trouble, forward signals.
 5. End whatever the command left behind, judge how it went, check and hash its outputs, write the result.
"""

import argparse
import base64
import collections
import contextlib
import datetime
import errno
import glob
import hashlib
import json
import math
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
import urllib.parse
import uuid
import zipfile
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Mapping, NamedTuple, NoReturn, Optional
from typing import Pattern, Sequence, Set, Tuple, Union

try:
    import fcntl
except ImportError:  # not a POSIX system; main() refuses it
    fcntl = None  # type: ignore[assignment]

# Every outcome that a runner can give, with what a person should do about it. The same words are in
# refit/outcome.py, which also knows the outcomes of the cluster; a test holds the two together.
ADVICE = {
    "succeeded": "",
    "bad_spec": "Correct the value that the reason names and start again; the same retry would fail the same way.",
    "bad_data": "Correct or take out the data that the reason names and start again.",
    "rejected": "The stage did its work and a gate or a person refused the result: look at its figures, then improve"
    " data or training, or correct the gate's limit.",
    "out_of_memory": "Give the stage more memory, or use a smaller batch, smaller images or fewer loader workers.",
    "no_space": "Free space on the volume or make it larger, then start again: the stage goes on from what it saved.",
    "stalled": "A retry goes on from the last checkpoint. If the stage is only slow, allow it more stall_seconds.",
    "diverged": "Lower the learning rate and check the labels and the image scale; the next start begins anew.",
    "timed_out": "Allow the stage more time or give it less work; when started again it goes on from what it saved.",
    "cancelled": "Start it again when you want it: it goes on from what it saved.",
    "toolkit_error": "Read the end of log.txt in the stage's folder; a retry goes on from what the stage saved.",
}
EXIT_CODES = {"succeeded": 0, "bad_spec": 2, "bad_data": 2, "rejected": 2, "cancelled": 143}  # the others: 1

FORMATS = ("any", "json", "jsonl", "onnx", "tfrecord", "pth", "hdf5", "png", "jpg")
COMPACT_BYTES = 4096  # what Kubernetes keeps of a termination message
SUMMARY_BYTES = 3072  # with the rest of a result it stays below COMPACT_BYTES
RESERVE_BYTES = 64 * 1024  # kept free for result.json, so that a full disk can still be reported
TELL_SECONDS = 3  # between two notes of how far the stage is, for people
TICK = 0.2  # seconds between two looks at status.json, the watches and the parent
LINGER = 0.5  # seconds that processes left by a finished command have to end by themselves
LOCK_SECONDS = 10  # how long to wait for a runner that we cannot end: it may be about to finish
BAD_LOSS_REPORTS = 3  # reports in a row above loss_factor that mean divergence
TAIL_LINES = 20
LINE_BYTES = 500
MIN_SECRET = 4  # characters; blotting out anything shorter would blot out ordinary words and protect nothing
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MARK = "REFIT_ATTEMPT_ID"  # in the environment of every process of a stage: how we know them again
PRIVATE = (
    "REFIT_REQUEST",
    "REFIT_TERMINATION_LOG",
    "REFIT_AGAIN",
    MARK,
)  # the runner's own; the command does not see them

Json = Dict[str, Any]


class Fault(Exception):
    """Why a stage did not succeed: an outcome, a reason for a person, and advice where there is better than usual."""

    def __init__(self, outcome: str, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.advice = advice or ADVICE[outcome]

    @classmethod
    def of(cls, error: OSError, doing: str) -> "Fault":
        """An operating system's error while `doing` something, in one line."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        name = " (%s)" % shown(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        return cls("no_space" if full else "toolkit_error", "cannot %s: %s%s" % (doing, error.strerror or error, name))


# --- text and files ---------------------------------------------------------------------------------------------


def native(path: str) -> str:
    """A path from JSON as this interpreter must spell it. They differ where the locale is not UTF-8 (Python 3.6)."""
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def shown(path: Union[str, bytes]) -> str:
    """A path of the file system as text for JSON and people."""
    return os.fsencode(path).decode("utf-8", "replace")


def one_line(text: str, limit: int = 1000) -> str:
    """Text with its white space run together, cut to `limit` characters."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    return line[: limit - 1] + "\u2026" if limit else ""


def encode(value: Any) -> bytes:
    """JSON in UTF-8, one line, without blanks: what travels in a termination message has little room. Lone surrogates,
    which UTF-8 does not know, become question marks."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def read_json(path: str) -> Optional[Json]:
    """The JSON object in a file; None when it is missing, cannot be read or is no object."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_file(path: str, data: bytes) -> None:
    """Make a file appear complete or not at all: written aside, synced, renamed. Raises OSError."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, ".%s.tmp-%s" % (name, os.urandom(6).hex()))  # a process's number is 1 in every pod
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def utc(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def human(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return "%.4g %s" % (size, unit)
        size /= 1024
    return "%.4g GiB" % size


def number(value: Any) -> Optional[float]:
    """A figure as float, also one written as text (TAO's rtdetr does that); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def duration(value: Any, otherwise: Optional[float]) -> Optional[float]:
    """Seconds: of a number, or of "1 day, 2:03:04.5" as Python writes a timedelta; else `otherwise`."""
    seconds = number(value)
    if seconds is not None:
        return seconds if math.isfinite(seconds) else otherwise
    match = re.match(r"(?:(\d+) days?, )?(\d+):(\d\d?):(\d\d?(?:\.\d+)?)$", str(value or "").strip())
    if match is None:
        return otherwise
    days, hours, minutes, rest = match.groups()
    return int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(rest)


# --- hashes and wholeness of outputs ----------------------------------------------------------------------------


def sha256_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def folder_files(folder: str) -> List[str]:
    """The files below a folder, as sorted relative paths with "/". Links to files count, links to folders do not.

    Raises OSError when a folder cannot be read: a part that was not seen must not be taken for "not there".
    """

    def fail(error: OSError) -> NoReturn:
        raise error

    found = []
    for parent, _, names in os.walk(folder, onerror=fail):
        for name in names:
            found.append(os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/"))
    return sorted(found, key=os.fsencode)


def sha256_folder(folder: str) -> str:
    """The hash of a folder: sha256 of its sorted lines "<sha256>  <relative path>\\n", as `sha256sum` prints them."""
    digest = hashlib.sha256()
    for name in folder_files(folder):
        digest.update(sha256_file(os.path.join(folder, name)).encode() + b"  " + os.fsencode(name) + b"\n")
    return digest.hexdigest()


def measure(path: str) -> Tuple[int, str]:
    """(bytes, sha256) of a file or a folder, as result.json records them."""
    if os.path.isdir(path):
        size = sum(os.path.getsize(os.path.join(path, name)) for name in folder_files(path))
        return size, sha256_folder(path)
    return os.path.getsize(path), sha256_file(path)


def is_whole(out: str, recorded: Mapping[str, Json]) -> str:
    """Whether the outputs of a result.json still stand in its `out/` as recorded; what is wrong, or ""."""
    for name, entry in recorded.items():
        path = os.path.join(out, native(str(entry.get("path", ""))))
        try:
            if os.path.isfile(path) and os.path.getsize(path) != entry.get("bytes"):
                return "%s has another size" % name
            if measure(path) != (entry.get("bytes"), entry.get("sha256")):
                return "%s has changed" % name
        except OSError as error:
            return "%s cannot be read (%s)" % (name, error.strerror or error)
    return ""


def check_json(path: str) -> str:
    try:
        with open(path, "rb") as file:
            json.loads(file.read().decode("utf-8"))
    except ValueError as error:
        return "is not whole JSON (%s)" % error
    return ""


def check_jsonl(path: str) -> str:
    with open(path, "rb") as file:
        for line_number, line in enumerate(file, 1):
            try:
                if line.strip():
                    json.loads(line.decode("utf-8"))
            except ValueError as error:
                return "line %d is not whole JSON (%s)" % (line_number, error)
    return ""


def check_onnx(path: str) -> str:
    """Walk the outermost fields of the protobuf message ModelProto (onnx.proto: ir_version is 1, graph is 7).

    A file that was cut off ends inside a field; one that is no protobuf has an impossible field soon.
    """
    size = os.path.getsize(path)
    seen = set()
    with open(path, "rb") as file:

        def varint() -> int:
            value = shift = 0
            while True:
                byte = file.read(1)
                if not byte or shift > 63:
                    raise ValueError
                value |= (byte[0] & 0x7F) << shift
                shift += 7
                if byte[0] < 0x80:
                    return value

        try:
            while file.tell() < size:
                tag = varint()
                field, wire = tag >> 3, tag & 7
                if wire == 0:
                    varint()
                elif wire in (1, 2, 5):
                    file.seek({1: 8, 5: 4}[wire] if wire != 2 else varint(), os.SEEK_CUR)
                else:
                    raise ValueError
                if field == 0 or file.tell() > size:
                    raise ValueError
                seen.add(field)
        except ValueError:
            return "is cut off, or is no ONNX file"
    return "" if {1, 7} <= seen else "holds no ONNX graph"


def check_tfrecord(path: str) -> str:
    """Walk the records: 8 bytes length, 4 bytes CRC, the data, 4 bytes CRC (tensorflow/core/lib/io/record_writer.h)."""
    size = os.path.getsize(path)
    at = records = 0
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(12)
            if len(head) < 12:
                return "is cut off after %d records" % records
            at += 16 + int(struct.unpack("<Q", head[:8])[0])
            if at > size:
                return "is cut off after %d records, or is no TFRecord" % records
            records += 1
    return ""


def check_pth(path: str) -> str:
    """torch.save writes a zip since PyTorch 1.6; a plain pickle from before that carries no mark of its end."""
    with open(path, "rb") as file:
        if file.read(1) == b"\x80":
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            return "" if archive.namelist() else "is an empty archive"
    except (zipfile.BadZipFile, ValueError):
        return "is cut off, or is no PyTorch file"


def check_hdf5(path: str) -> str:
    """The end of the file as its superblock says it (HDF5's file format specification, III.A)."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head.startswith(b"\x89HDF\r\n\x1a\n") or len(head) < 64:
        return "is no HDF5 file"
    version = head[8]
    # The sizes of an address, and where the base address stands; the end comes two addresses later.
    width, at = (head[13], 24 if version == 0 else 28) if version < 2 else (head[9], 12)
    end = int.from_bytes(head[at + 2 * width : at + 3 * width], "little")
    return "is cut off" if os.path.getsize(path) < end else ""


def check_png(path: str) -> str:
    return check_ends(path, b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82", "PNG")


def check_jpg(path: str) -> str:
    return check_ends(path, b"\xff\xd8", b"\xff\xd9", "JPEG")


def check_ends(path: str, first: bytes, last: bytes, name: str) -> str:
    with open(path, "rb") as file:
        head = file.read(len(first))
        file.seek(max(0, os.path.getsize(path) - 64))
        tail = file.read().rstrip(b"\0")  # some cameras pad with zeros
    return "" if head == first and tail.endswith(last) else "is cut off, or is no %s" % name


CHECKS: Dict[str, Callable[[str], str]] = {
    "json": check_json,
    "jsonl": check_jsonl,
    "onnx": check_onnx,
    "tfrecord": check_tfrecord,
    "pth": check_pth,
    "hdf5": check_hdf5,
    "png": check_png,
    "jpg": check_jpg,
}
# Which files of a folder an output's format speaks about. TAO's TF1 converters name TFRecords PREFIX-fold-000-of-002-
# shard-00000-of-00010; an index beside one begins with idx-.
NAMES = {"tfrecord": r"tfrecord|^(?!(?:.*/)?idx-).*-shard-\d+-of-\d+$", "jpg": r"\.jpe?g$"}


class Missing(Exception):
    """An expected output that is not there, or is not whole."""


def find_output(out: str, spec: Json, figures: Mapping[int, float]) -> str:
    """The path of an expected output, checked for kind, size and wholeness. Raises Missing, or OSError.

    `figures`: epoch -> the figure by which the best checkpoint is the best.
    """
    path = pick_output(out, spec, figures)
    name = shown(os.path.relpath(path, out))
    least = spec.get("min_bytes", 1)
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(out), "")):
        raise Missing("%s leads out of the stage's folder" % name)
    if spec.get("kind", "file") == "dir":
        if not os.path.isdir(path):
            raise Missing("%s is no folder" % name)
        names = folder_files(path)
        size = sum(os.path.getsize(os.path.join(path, n)) for n in names)
    elif not os.path.isfile(path):
        raise Missing("%s is no file" % name)
    else:
        names, size = [""], os.path.getsize(path)
    if size < least:
        raise Missing("%s has %d bytes, expected are at least %d" % (name, size, least))
    check = CHECKS.get(spec.get("format") or "any")
    if check:
        pattern = re.compile(NAMES.get(spec["format"], r"\.%s$" % spec["format"]), re.IGNORECASE)
        chosen = [n for n in names if not n or pattern.search(n)]
        if not chosen:
            raise Missing("%s holds no %s file" % (name, spec["format"]))
        if spec["format"] == "tfrecord" and not any(os.path.getsize(os.path.join(path, n)) for n in chosen):
            raise Missing("%s holds no record" % name)
        for n in chosen:
            wrong = check(os.path.join(path, n) if n else path)
            if wrong:
                raise Missing("%s %s" % (os.path.join(name, shown(n)) if n else name, wrong))
    return path


def epoch_of(path: str, spec: Json) -> Optional[int]:
    """How many epochs were done when a checkpoint was saved, by the number in its name; `first` is its first one's."""
    match = re.search(spec["epoch"], os.path.basename(path))
    return int(match.group(1)) + 1 - int(spec.get("first", 1)) if match else None


def pick_output(out: str, spec: Json, figures: Mapping[int, float]) -> str:
    """The one path that an output's `path` means; it may be a glob."""
    exact = os.path.join(out, native(spec["path"]))
    if os.path.lexists(exact):
        return exact
    found = sorted(glob.glob(os.path.join(glob.escape(out), native(spec["path"])), recursive=True))
    if not found:
        raise Missing("%s is missing" % spec["path"])
    if spec.get("pick") == "best":
        epochs = [(epoch_of(path, spec) or 0, os.stat(path).st_mtime, path) for path in found]
        judged = [(figures[epoch], epoch, written, path) for epoch, written, path in epochs if epoch in figures]
        if judged:
            return max(judged)[-1]
    elif len(found) > 1 and spec.get("pick") != "newest":
        names = ", ".join(shown(os.path.relpath(path, out)) for path in found[:3])
        raise Missing("%s matches %d paths (%s ...), one is expected" % (spec["path"], len(found), names))
    return max(found, key=lambda path: os.stat(path).st_mtime)


# --- secrets and output -----------------------------------------------------------------------------------------


def password(address: str) -> Optional[str]:
    """The password in an address, as it stands there."""
    try:
        return urllib.parse.urlsplit(address).password
    except ValueError:
        return None


# What an error may name of an Airflow connection, or of a service account's key. All else in one is taken for secret.
PUBLIC = {"account_name", "client_email", "client_id", "conn_type", "endpoint_url", "gcs_base_url", "host", "login"}
PUBLIC |= {"project_id", "region_name", "schema", "tenant_id", "token_uri", "type", "universe_domain"}


def inner_secrets(value: str) -> Iterator[str]:
    """The secrets inside one that is an Airflow connection, as JSON or a URI: a library's error prints its password or
    key, and never the whole."""
    try:
        if value.lstrip().startswith("{"):
            row = json.loads(value)
        elif "://" in value:
            parts = urllib.parse.urlsplit(value)
            row = dict(urllib.parse.parse_qsl(parts.query))
            row["login"], row["password"] = [urllib.parse.unquote(x or "") for x in (parts.username, parts.password)]
            yield parts.password or ""
        else:
            return
    except (ValueError, RecursionError):
        return
    login, word = row.get("login"), row.get("password")
    if isinstance(login, str) and isinstance(word, str) and word:
        yield word
        yield "%s:%s" % (login, word)  # in base64 it is HTTP's own form
    for text in leaves(row):
        for part in [text, *re.split(r"[\s&?=]", text)]:  # a header or a signed link's query has several
            if len(part) >= 2 * MIN_SECRET:
                yield part
                yield urllib.parse.unquote(part)


def leaves(value: Any, key: str = "") -> Iterator[str]:
    """The texts in a JSON value that are not PUBLIC, also those of JSON inside a text (a connection's `extra`)."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)
    elif isinstance(value, str) and value.lstrip().startswith("{"):
        yield from inner_secrets(value)
    elif isinstance(value, str) and key not in PUBLIC:
        yield value


class Scrubber:
    """Blots out the values of all REFIT_SECRET_* variables and the password in a proxy's address, also where one is
    split over two reads.

    A value is known in the forms it is likely to be printed in: as it is, as JSON text, percent-encoded, in base64,
    and line by line where it has several (a private key). Of a connection what is secret in it is known as well.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.values = {
            name[len("REFIT_SECRET_") :]: value
            for name, value in environment.items()
            if name.startswith("REFIT_SECRET_") and len(name) > len("REFIT_SECRET_")
        }
        self.weak = sorted(name for name, value in self.values.items() if 0 < len(value.strip()) < MIN_SECRET)
        proxies = [value for name, value in environment.items() if name.lower().endswith("_proxy")]
        hidden = list(self.values.values()) + list(filter(None, map(password, proxies)))
        hidden += [inner for value in self.values.values() for inner in inner_secrets(value)]
        patterns = {form for value in hidden for form in self._forms(value)}
        self.patterns = sorted(patterns, key=len, reverse=True)
        self.held = b""

    @staticmethod
    def _forms(value: str) -> Iterator[bytes]:
        raw = os.fsencode(value)
        text = raw.decode("utf-8", "replace")
        forms = [raw, raw.strip(), base64.b64encode(raw), urllib.parse.quote(raw, safe="").encode()]
        forms += [json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False)]
        for form in forms:
            if len(form.strip()) >= MIN_SECRET and len(raw.strip()) >= MIN_SECRET:
                yield form
        lines = raw.split(b"\n")
        if len(lines) > 1:  # a short line of a long secret ("}") is no secret, and is found in many places
            for line in lines:
                if len(line.strip()) >= 2 * MIN_SECRET:
                    yield line.strip()

    def text(self, text: str) -> str:
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a lone surrogate out of JSON
            data = text.encode("utf-8", "replace")
        clean = self._replace(data, self._matches(data))
        return clean.decode("utf-8", "replace")

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it scrubbed, and figures that JSON does not know made null."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def feed(self, data: bytes) -> bytes:
        """The next bytes of a stream; gives what can be shown already, and holds back what may become a secret."""
        data = self.held + data
        spans = self._matches(data)
        cut = len(data) - max([self._overhang(data, pattern) for pattern in self.patterns] or [0])
        for start, end in spans:
            if start < cut < end:
                cut = start
        self.held = data[cut:]
        return self._replace(data[:cut], [span for span in spans if span[1] <= cut])

    def flush(self) -> bytes:
        """What was held back, at the end of the stream. The beginning of a secret is given: it was no secret."""
        data, self.held = self.held, b""
        return self._replace(data, self._matches(data))

    def _matches(self, data: bytes) -> List[Tuple[int, int]]:
        """Where secrets stand: spans in order, those that overlap made one."""
        spans = []
        for pattern in self.patterns:
            at = data.find(pattern)
            while at >= 0:
                spans.append((at, at + len(pattern)))
                at = data.find(pattern, at + len(pattern))
        merged: List[Tuple[int, int]] = []
        for start, end in sorted(spans):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    @staticmethod
    def _replace(data: bytes, spans: Sequence[Tuple[int, int]]) -> bytes:
        parts, at = [], 0
        for start, end in spans:
            parts += [data[at:start], b"***"]
            at = end
        return b"".join(parts) + data[at:]

    @staticmethod
    def _overhang(data: bytes, pattern: bytes) -> int:
        """How many bytes at the end of `data` could be the beginning of `pattern`."""
        for length in range(min(len(pattern) - 1, len(data)), 0, -1):
            if data.endswith(pattern[:length]):
                return length
        return 0


ERROR_LINE = re.compile(r"^(?:\S+: )?error: (.*\S)")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Output:
    """What the stage says: passed on to standard output and `log.txt`, its last lines remembered, secrets blotted out.

    Half a line waits a moment for its other half, so that the runner's own lines do not cut it in two.
    """

    def __init__(self, scrubber: Scrubber) -> None:
        self.scrubber = scrubber
        self.tail: Deque[str] = collections.deque(maxlen=60)
        self.error = ""
        self.listen: Callable[[str], None] = lambda line: None
        self.log: Optional[int] = None
        self.stdout = True
        self._waiting = b""
        self._since = 0.0
        self._line = b""
        self._at_start = True

    def open_log(self, path: str) -> None:
        """Append to this file from now on. Raises OSError."""
        self.close_log()
        self.log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def close_log(self) -> None:
        if self.log is not None:
            os.close(self.log)
            self.log = None

    def say(self, text: str) -> None:
        """A line of the runner's own."""
        self._emit(self._waiting)
        self._waiting = b""
        lead = b"" if self._at_start else b"\n"
        self._emit(lead + self.scrubber.text(text.rstrip()).encode("utf-8", "replace") + b"\n")

    def feed(self, data: bytes) -> None:
        """Bytes from the command."""
        self._pass(self.scrubber.feed(data))

    def end(self) -> None:
        """The command's output is at its end."""
        self._pass(self.scrubber.flush())
        self._emit(self._waiting)
        self._waiting = b""
        if self._line:
            self._remember(self._line)
            self._line = b""

    def tick(self) -> None:
        if self._waiting and time.monotonic() - self._since > 0.5:
            self._emit(self._waiting)
            self._waiting = b""

    def _pass(self, clean: bytes) -> None:
        if not clean:
            return
        lines = (self._line + clean).split(b"\n")
        self._line = lines.pop()[-4 * LINE_BYTES :]
        for line in lines:
            self._remember(line)
        waiting = self._waiting + clean
        cut = max(waiting.rfind(b"\n"), waiting.rfind(b"\r")) + 1
        if len(waiting) - cut > 8192:
            cut = len(waiting)
        self._emit(waiting[:cut])
        self._waiting = waiting[cut:]
        self._since = time.monotonic()

    def _remember(self, line: bytes) -> None:
        # A progress bar draws over itself with carriage returns: its last state is what a person saw.
        last = line.rstrip(b"\r").rpartition(b"\r")[2]
        text = ESCAPES.sub("", last[: 4 * LINE_BYTES].decode("utf-8", "replace")).rstrip()[:LINE_BYTES]
        if text:
            self.tail.append(text)
            self.listen(text)
            match = ERROR_LINE.match(text)
            if match:
                self.error = match.group(1)

    def _emit(self, data: bytes) -> None:
        if not data:
            return
        self._at_start = data.endswith(b"\n")
        if self.stdout and not write_all(1, data):
            self.stdout = False  # nobody reads any more; the log still does
        if self.log is not None and not write_all(self.log, data):
            self.close_log()
            self.say("refit: log.txt cannot be written any more (is the disk full?)")


def write_all(handle: int, data: bytes) -> bool:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(handle, view) :]
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return False
    return True


# --- the request ------------------------------------------------------------------------------------------------

REQUIRED = object()
NUMBER = (int, float)
# What a shell takes as it is. TAO's commands put their words into a line for bash, unquoted
# (nvidia_tao_tf1/cv/common/entrypoint/entrypoint.py, launch_job).
WORD = re.compile(r"[A-Za-z0-9_./=:+,@%-]+")
TOKEN = re.compile(
    r"\{(python|runner|stage|out|specs|run|workspace|snapshot|checkpoint|next_epoch|input:[^{}]+|secret:[^{}]+)\}"
)


def field(data: Any, key: str, kind: Any, default: Any = REQUIRED, where: str = "request: ") -> Any:
    """One value of the request, its type checked. null counts as not given. Raises Fault("bad_spec")."""
    value = data.get(key)
    if value is None:
        if default is REQUIRED:
            raise Fault("bad_spec", "%s%s is missing" % (where, key))
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(sorted({"object" if k is dict else k.__name__ for k in kinds}))
        raise Fault("bad_spec", "%s%s must be %s, it is %.60r" % (where, key, names, value))
    return value


def texts(data: Any, key: str, default: Any = REQUIRED) -> Dict[str, str]:
    """An object of texts of the request."""
    found = field(data, key, dict, default)
    return {name: field(found, name, str, where="request: %s." % key) for name in found}


def names(data: Any, key: str, where: str) -> List[str]:
    """A list of texts of the request, or none."""
    found = field(data, key, list, [], where)
    if not all(isinstance(name, str) for name in found):
        raise Fault("bad_spec", "%s%s must be texts, they are %.80r" % (where, key, found))
    return list(found)


def patterns(data: Any, key: str, where: str) -> List[Pattern[str]]:
    """The regular expressions of the request at `key`: one, a list of them, or none."""
    found = field(data, key, (str, list), [], where)
    compiled = []
    for text in [found] if isinstance(found, str) else found:
        try:
            compiled.append(re.compile(text))
        except (re.error, TypeError) as error:
            raise Fault("bad_spec", "%s%s: %.60r is no regular expression: %s" % (where, key, text, error)) from None
    return compiled


def numbered(data: Json, where: str) -> None:
    """Check `epoch` and `first`, which say where the epoch stands in a checkpoint's name."""
    field(data, "epoch", str, where=where)
    field(data, "first", int, 1, where)
    if any(pattern.groups != 1 for pattern in patterns(data, "epoch", where)):
        raise Fault("bad_spec", "%sepoch must have one group, the number" % where)


def inside(path: str, where: str) -> str:
    """A relative path that cannot leave the folder it is meant for."""
    if not path or "\0" in path or os.path.isabs(path) or ".." in path.split("/"):
        raise Fault("bad_spec", "request: %s must be a relative path without '..', it is %.80r" % (where, path))
    return path


class Stage:
    """A checked request. Raises Fault("bad_spec") that names the first wrong value. Keys unknown here are let be."""

    def __init__(self, data: Json) -> None:
        self.data = data
        try:
            json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except ValueError as error:
            raise Fault("bad_spec", "request: holds what JSON in UTF-8 cannot say: %s" % error) from None
        if field(data, "schema", int) != 1:
            raise Fault("bad_spec", "request: schema %r is not known here; runner and plan differ" % data["schema"])
        self.name = field(data, "name", str)
        self.key = field(data, "key", str, "")
        self.argv = field(data, "argv", list)
        if not self.argv or not all(isinstance(part, str) for part in self.argv):
            raise Fault("bad_spec", "request: argv must be a list of texts and not empty")
        self.env = texts(data, "env", {})
        self.files = texts(data, "files", {})
        for name in self.files:
            inside(name, "a name in files")
        self.secrets = field(data, "secrets", list, [])
        self.environment = field(data, "environment", str, "")
        self.paths = texts(data, "paths")
        self.inputs = texts(data, "inputs", {})
        self.input_keys = texts(data, "input_keys", {})
        self.publish = field(data, "publish", str, None)
        self.progress = field(data, "progress", str, None)
        absolute = list(self.paths.items()) + list(self.inputs.items())
        optional = [("publish", self.publish), ("progress", self.progress)]
        for where, path in absolute + [(name, path) for name, path in optional if path]:
            if not os.path.isabs(path) or "\0" in path:
                raise Fault("bad_spec", "request: the path of %s must be absolute, it is %.80r" % (where, path))
        if "stage" not in self.paths:
            raise Fault("bad_spec", "request: paths.stage is missing")
        self.folder = native(self.paths["stage"]).rstrip("/")
        self.out = os.path.join(self.folder, "out")
        self.specs = os.path.join(self.folder, "specs")
        self.outputs = field(data, "outputs", list, [])
        for output in self.outputs:
            self._check_output(output)
        self.status = field(data, "status", str, None)
        self.summary = field(data, "summary", str, None)
        for name, path in (("status", self.status), ("summary", self.summary)):
            if path is not None:
                inside(path, name)
        self.success = Success(field(data, "success", dict, {}), self.status)
        self.action = field(data, "action", str, "")
        classes = texts(data, "classes", {})
        self.metrics = [
            Metric(name, field(entries, name, dict, where="request: metrics."), classes)
            for entries in [field(data, "metrics", dict, {})]
            for name in entries
        ]
        self.watch = field(data, "watch", dict, {})
        self.stall = field(self.watch, "stall_seconds", NUMBER, None, "request: watch.")
        self.timeout = field(data, "timeout_seconds", NUMBER, None)
        self.grace = max(0.0, float(field(data, "grace_seconds", NUMBER, 20)))
        self.exit_codes = texts(data, "exit_codes", {})
        for code, outcome in self.exit_codes.items():
            if outcome not in ADVICE:
                raise Fault("bad_spec", "request: exit_codes.%s: %r is no outcome" % (code, outcome))
        resume = field(data, "resume", (bool, dict), True)
        self.resume = bool(resume)
        self.told = resume if isinstance(resume, dict) else {}  # what a command that goes on only where told is told
        if self.told:
            where = "request: resume."
            inside(field(resume, "path", str, where=where), "resume.path")
            numbered(resume, where)
            if not names(resume, "argv", where) or field(resume, "format", str, "any", where) not in FORMATS:
                raise Fault("bad_spec", "%sargv must not be empty, format one of %s" % (where, ", ".join(FORMATS)))
            for name in texts(resume, "files", {}):
                inside(name, "a name in resume.files")
        self.going_on: Dict[str, str] = {}  # tokens that a start from a checkpoint has besides

    def checkpoint(self) -> str:
        """The newest whole checkpoint of an attempt that has ended early; "" where there is none."""
        found = glob.glob(os.path.join(glob.escape(self.out), native(self.told["path"])), recursive=True)
        check = CHECKS.get(self.told.get("format") or "any")
        whole = [path for path in found if epoch_of(path, self.told) and not (check and check(path))]
        return max(whole, key=lambda path: (epoch_of(path, self.told) or 0, os.stat(path).st_mtime), default="")

    def go_on_from(self, checkpoint: str) -> None:
        """Take the command and the specs that begin with a checkpoint."""
        self.argv, self.files = list(self.told["argv"]), dict(self.told.get("files") or {})
        epoch = epoch_of(checkpoint, self.told) or 0
        self.going_on = {"checkpoint": shown(checkpoint), "next_epoch": str(epoch + 1)}

    @staticmethod
    def _check_output(output: Any) -> None:
        if not isinstance(output, dict):
            raise Fault("bad_spec", "request: outputs must be objects, one is %.60r" % (output,))
        name = field(output, "name", str, where="request: outputs.")
        where = "request: outputs.%s." % name
        inside(field(output, "path", str, where=where), "outputs.%s.path" % name)
        field(output, "min_bytes", int, 0, where)
        if field(output, "kind", str, "file", where) not in ("file", "dir"):
            raise Fault("bad_spec", "%skind must be file or dir, it is %r" % (where, output["kind"]))
        if field(output, "format", str, "any", where) not in FORMATS:
            raise Fault("bad_spec", "%sformat must be one of %s" % (where, ", ".join(FORMATS)))
        if field(output, "pick", str, "newest", where) not in ("newest", "best"):
            raise Fault("bad_spec", "%spick must be newest or best, it is %r" % (where, output["pick"]))
        if output.get("pick") == "best":
            field(output, "metric", str, where=where)
            numbered(output, where)


def load_request(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Json:
    """The stage that the command line or the environment names, as JSON object. Raises Fault("bad_spec")."""
    if arguments.plan:
        plan = parse_object(read_text(arguments.plan), arguments.plan)
        stages = [s for s in field(plan, "stages", list, [], arguments.plan + ": ") if isinstance(s, dict)]
        for stage in stages:
            if stage.get("name") == arguments.stage:
                return dict(stage)
        known = ", ".join(str(s.get("name")) for s in stages) or "none"
        raise Fault("bad_spec", "%s: no stage %r; known: %s" % (arguments.plan, arguments.stage, known))
    if arguments.request:
        return parse_object(read_text(arguments.request), arguments.request)
    if environment.get("REFIT_REQUEST"):
        return parse_object(os.fsencode(environment["REFIT_REQUEST"]), "REFIT_REQUEST")
    raise Fault("bad_spec", "nothing to run: give --plan with --stage, or --request, or set REFIT_REQUEST")


def read_text(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Fault("bad_spec", "%s cannot be read: %s" % (shown(path), error.strerror)) from None


def parse_object(text: bytes, name: str) -> Json:
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise Fault("bad_spec", "%s is not JSON: %s" % (shown(name), error)) from None
    if not isinstance(value, dict):
        raise Fault("bad_spec", "%s must hold a JSON object" % shown(name))
    return value


class Tokens:
    """Replaces {python}, {out}, {input:STAGE.OUTPUT}, {secret:NAME} ... in the texts of a request.

    Each input's result.json is read here: it must have succeeded, and its outputs must stand with the recorded
    sizes. Raises Fault: "bad_spec" for a name that nobody knows, "toolkit_error" for an input that is not there.
    """

    def __init__(self, stage: Stage, secrets: Mapping[str, str]) -> None:
        self.stage = stage
        self.secrets = secrets
        self.fixed = dict(stage.paths, python=shown(sys.executable), out=shown(stage.out), specs=shown(stage.specs))
        self.fixed["runner"] = shown(os.path.abspath(__file__))
        self.fixed.update(stage.going_on)
        self.results = {
            name: self._read_input(name, folder, stage.input_keys.get(name)) for name, folder in stage.inputs.items()
        }

    def replace(self, text: str, where: str, secrets: bool) -> str:
        """`text` with its tokens replaced; {secret:NAME} only where `secrets` may stand."""

        def value(match: Any) -> str:
            kind, _, name = match.group(1).partition(":")
            if kind == "input":
                return self._input(name, where)
            if kind == "secret":
                return self._secret(name, where, secrets)
            if kind not in self.fixed:
                raise Fault("bad_spec", "%s: {%s} is used, but paths.%s is not given" % (where, kind, kind))
            return self.fixed[kind]

        return TOKEN.sub(value, text)

    def _secret(self, name: str, where: str, allowed: bool) -> str:
        if not allowed:
            raise Fault(
                "bad_spec", "%s: {secret:%s} would be written to a file; pass it by env or argv" % (where, name)
            )
        if name not in self.stage.secrets:
            raise Fault("bad_spec", "%s: {secret:%s} is not among the stage's secrets" % (where, name))
        if name not in self.secrets:
            raise Fault("bad_spec", "%s: secret %s is not set (variable REFIT_SECRET_%s)" % (where, name, name))
        in_shell = self.stage.environment.partition("_")[0] == "tao" and where.startswith("argv")
        if in_shell and not WORD.fullmatch(self.secrets[name]):
            raise Fault(
                "bad_spec",
                "%s: secret %s (not shown) is empty or has characters other than A-Z a-z 0-9 _ . / = : + , @ %% -; "
                "TAO's commands put it unquoted into a line for a shell, which would change it or run a part of it; "
                "use another key" % (where, name),
            )
        return self.secrets[name]

    def _input(self, name: str, where: str) -> str:
        if name in self.results:
            return os.path.join(self.stage.inputs[name], "out")
        stage, _, output = name.rpartition(".")
        if stage not in self.results:
            known = ", ".join(sorted(self.results)) or "none"
            raise Fault("bad_spec", "%s: {input:%s}: no such input; known: %s" % (where, name, known))
        outputs = self.results[stage]["outputs"]
        if output not in outputs:
            known = ", ".join(sorted(outputs)) or "none"
            raise Fault("bad_spec", "%s: {input:%s}: no such output of %s; known: %s" % (where, name, stage, known))
        return os.path.join(self.stage.inputs[stage], "out", outputs[output]["path"])

    @staticmethod
    def _read_input(name: str, folder: str, key: Optional[str]) -> Json:
        result = read_json(os.path.join(native(folder), "result.json"))
        if result is None:
            raise Fault("toolkit_error", "input %s: %s/result.json is missing or unreadable" % (name, folder))
        if result.get("outcome") != "succeeded":
            raise Fault("toolkit_error", "input %s: its outcome is %s (%s)" % (name, result.get("outcome"), folder))
        if key is not None and result.get("key") != key:
            raise Fault(
                "toolkit_error",
                "input %s: %s holds another result than the one that this run was planned with" % (name, folder),
                "The stage was run again with other settings since; clear bind together with what follows.",
            )
        result.setdefault("outputs", {})
        for output, entry in result["outputs"].items():
            path = os.path.join(native(folder), "out", native(str(entry.get("path"))))
            where = "input %s: its output %s (%s)" % (name, output, shown(path))
            if not os.path.exists(path):
                raise Fault("toolkit_error", where + " is gone")
            if os.path.isfile(path) and os.path.getsize(path) != entry.get("bytes"):
                size = os.path.getsize(path)
                raise Fault("toolkit_error", "%s has %d bytes, not %s" % (where, size, entry.get("bytes")))
        return result


# --- success and metrics, by the request's rules ----------------------------------------------------------------


def table(value: Any) -> Json:
    """A JSON object; an empty one where the value is something else."""
    return value if isinstance(value, dict) else {}


class Success:
    """What must be seen besides exit code 0 and good outputs: an entry `success` of the request."""

    def __init__(self, data: Json, status_file: Optional[str]) -> None:
        where = "request: success."
        self.status = field(data, "status", str, None, where)
        self.message = field(data, "message", str, None, where)
        self.messages = patterns(data, "message", where)
        self.denials = patterns(data, "denied_by", where)
        self.denied = ""  # the first line of the log that denies it
        if (self.status or self.message) and not status_file:
            raise Fault("bad_spec", "request: success.status and success.message need status, the file to look in")

    def add_line(self, text: str) -> None:
        if not self.denied and any(pattern.search(text) for pattern in self.denials):
            self.denied = text

    def missing(self, progress: "Progress", status_file: Optional[str]) -> List[str]:
        """What speaks against a success, as clauses for a person."""
        found = []
        if self.denied:
            found.append("its log says %r" % one_line(self.denied, 300))
        if self.status and progress.status != self.status:
            last = "the last status in %s is %s" % (status_file, progress.status)
            last = last if progress.status else "there is no status in %s" % status_file
            found.append("%s, not %s" % (last, self.status))
        elif self.messages and not any(pattern.search(progress.message) for pattern in self.messages):
            last = "the last message in %s is %r" % (status_file, progress.message)
            last = last if progress.status else "there is no message in %s" % status_file
            found.append("%s; a success says /%s/" % (last, self.message))
        return found


class Metric:
    """Where one of Refit's metrics stands in what the toolkit says: an entry of `metrics` in the request.

    `kpi` and `classes` name figures in status.json, `log` is a pattern for a line of the log, `file` a JSON object
    below out/. `classes`, `prefix` and a `log` of two groups give a figure for each class, under the names that the
    request has for the command's: TAO writes some of them in lower case.
    """

    def __init__(self, name: str, data: Json, classes: Mapping[str, str]) -> None:
        where = "request: metrics.%s." % name
        self.name = name
        self.kpi = names(data, "kpi", where)
        self.classes = names(data, "classes", where)
        self.log = patterns(data, "log", where)
        self.file = field(data, "file", str, None, where)
        self.key = field(data, "key", str, None, where)
        self.prefix = field(data, "prefix", str, None, where)
        self.mean = field(data, "mean", str, None, where)
        self.scale = float(field(data, "scale", NUMBER, 1.0, where))
        self.most = field(data, "most", NUMBER, None, where)
        self.labels = {said.lower(): label for said, label in classes.items()}
        if self.file is not None:
            inside(self.file, "metrics.%s.file" % name)
            if not self.key and self.prefix is None:
                raise Fault("bad_spec", "%skey or prefix must say what in %s is meant" % (where, self.file))
        for pattern in self.log:
            if pattern.groups not in (1, 2):
                raise Fault("bad_spec", "%slog must have a group, or one for the class before it" % where)
        if not (self.kpi or self.classes or self.log or self.file or self.mean or self.prefix):
            raise Fault("bad_spec", "%skpi, classes, log, file, prefix or mean must say where to look" % where)

    def in_status(self, figures: Json, categorical: Mapping[str, Json]) -> List[Tuple[str, float]]:
        """What a line of status.json has of it: (name, figure) pairs."""
        found = [(self.name, figures[name]) for name in self.kpi if name in figures][:1]
        for name in self.classes:
            found += self._by_class(table(categorical.get(name)))
        return self._scaled(found if self.file else found + self._named(figures))

    def in_line(self, text: str) -> List[Tuple[str, float]]:
        """What a line of the log has of it; of two groups the first is the class."""
        found: List[Tuple[str, Any]] = []
        for match in filter(None, (pattern.search(text) for pattern in self.log)):
            label, value = (None,) + match.groups() if len(match.groups()) == 1 else match.groups()
            found += [(self.name, value)] if label is None else self._by_class({label: value})
        return self._scaled(found)

    def in_file(self, out: str) -> List[Tuple[str, float]]:
        return self._scaled(self._named(read_json(os.path.join(out, native(self.file))) or {})) if self.file else []

    def _named(self, figures: Json) -> List[Tuple[str, Any]]:
        """What an object of figures has of it, by `key` or `prefix`."""
        if self.prefix is None:
            return [(self.name, figures[self.key])] if self.key in figures else []
        length = len(self.prefix)
        return self._by_class({name[length:]: v for name, v in figures.items() if name.startswith(self.prefix)})

    def _by_class(self, figures: Json) -> List[Tuple[str, Any]]:
        """Figures by class under the request's class names; another name is no class, where the request has any."""
        named = {self.labels.get(label.lower(), "" if self.labels else label): v for label, v in figures.items()}
        return [("%s/%s" % (self.name, label), value) for label, value in named.items() if label]

    def _scaled(self, found: Iterable[Tuple[str, Any]]) -> List[Tuple[str, float]]:
        figures = [(name, number(value)) for name, value in found]
        return [(name, figure * self.scale) for name, figure in figures if figure is not None]

    def is_among(self, names: Iterable[str]) -> bool:
        return any(name == self.name or name.startswith(self.name + "/") for name in names)

    def too_much(self, metrics: Mapping[str, float]) -> str:
        """What is wrong where a figure is above `most`, for a person."""
        figure = metrics.get(self.name)
        if self.most is None or figure is None or figure <= self.most:
            return ""
        if self.name == "kept":
            text = "kept %.5g %% of the parameters, at most %.5g %% was wanted: nothing was pruned"
            return text % (100 * figure, 100 * self.most)
        return "%s is %.5g, at most %.5g was wanted" % (self.name, figure, self.most)

    def absence(self) -> str:
        """That it is missing, and where it should have been, for a person."""
        places = ["%s in status.json's kpi" % " or ".join(map(repr, self.kpi))] if self.kpi else []
        places += ["%s in its categorical" % " or ".join(map(repr, self.classes))] if self.classes else []
        places += ["/%s/ in the log" % pattern.pattern for pattern in self.log]
        named = "%s*" % self.prefix if self.prefix else repr(self.key)
        places += ["%s in %s" % (named, self.file or "status.json's kpi")] if self.file or self.prefix else []
        places += ["the mean of %s/*" % self.mean] if self.mean else []
        return "no %s (%s)" % (self.name, ", nor ".join(places))


# --- status.json and the watches --------------------------------------------------------------------------------


class StatusFile:
    """Follows a growing file of JSON lines. A half-written last line waits for its end; what is no object is let be."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.inode = 0
        self.offset = 0
        self.partial = b""

    def read(self, last: bool = False) -> List[Json]:
        """The new records; with `last`, also one whose line end was never written."""
        try:
            state = os.stat(self.path)
            if state.st_ino != self.inode or state.st_size < self.offset:  # written anew
                self.inode, self.offset, self.partial = state.st_ino, 0, b""
            if state.st_size > self.offset:
                with open(self.path, "rb") as file:
                    file.seek(self.offset)
                    data = file.read()
                self.offset += len(data)
                self.partial += data
        except OSError:
            self.inode = 0  # gone; the next one may get the same inode
        lines = self.partial.split(b"\n")
        self.partial = b"" if last else lines.pop()
        records = []
        for line in lines:
            with contextlib.suppress(ValueError):
                record = json.loads(line.decode("utf-8", "replace"))
                if isinstance(record, dict):
                    records.append(record)
        return records


def one_based(record: Json) -> Tuple[Optional[int], Optional[int]]:
    """(epoch, max_epoch) of a line of status.json, as epochs that are done and epochs in all.

    TAO's Keras and TF2 loggers count so, and DetectNet_v2's, which writes "epoch 0 of 12" as the first one begins.
    PyTorch's counts from 0 and gives the last epoch's number as max_epoch; only its lines have max_step
    (nvidia_tao_pytorch/core/callbacks/loggers.py).
    """
    more = 1 if "max_step" in record else 0
    epoch, most = number(record.get("epoch")), number(record.get("max_epoch"))
    if epoch is None or not math.isfinite(epoch):
        return None, None
    return int(epoch) + more, int(most) + more if most is not None and math.isfinite(most) else None


class Epochs:
    """One figure by the number of epochs that were done.

    TF1's and PyTorch's loggers write it on the line that ends an epoch, or on a line before that (nvidia_tao_tf1/cv/
    common/callbacks/loggers.py, detectnet_v2/tfhooks/validation_hook.py; nvidia_tao_pytorch/cv/rtdetr/model/
    pl_rtdetr_model.py); TF2's on a line after it (nvidia_tao_tf2/cv/efficientdet/callback/eval_callback.py), and only
    its epoch lines have `loss` at the top. All repeat it on later lines: only another value is another evaluation.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.by_epoch: Dict[int, float] = {}
        self._value: Optional[float] = None
        self._waiting: Optional[float] = None
        self._epoch: Optional[int] = None
        self._most: Optional[int] = None
        self._comes_after = False

    def add(self, record: Json, figures: Mapping[str, float]) -> None:
        value = figures.get(self.name)
        new = None if value == self._value else value
        self._value = self._value if value is None else value
        epoch, most = one_based(record)
        if epoch is not None:
            self._epoch, self._most, self._comes_after = epoch, most, "loss" in record
            new = self._waiting if new is None else new
            self._waiting = None
        elif not self._comes_after:
            self._waiting = self._waiting if new is None else new
            return
        if new is not None and self._epoch is not None:
            self.by_epoch[self._epoch] = new

    def end(self) -> None:
        """DetectNet_v2 writes no line for the end of its last epoch."""
        if self._waiting is not None and self._most is not None:
            self.by_epoch[self._most] = self._waiting


class Progress:
    """What status.json and the log say: metrics, the last epoch, the last status; and whether training went wrong.

    Lines of earlier attempts give metrics only; the watches begin with this start. `metrics` holds the figures under
    the toolkit's own names, or under Refit's where the request says how to find those (`wanted`). TAO's loggers keep
    a figure and repeat it on every later line, so a repetition is neither a new loss nor another evaluation.
    """

    def __init__(self, watch: Json, wanted: Sequence["Metric"] = (), by_epoch: str = "") -> None:
        self.wanted = wanted
        self.epochs = Epochs(by_epoch)
        self.loss_factor = field(watch, "loss_factor", NUMBER, None, "request: watch.")
        self.zero_metric = field(watch, "zero_metric", str, None, "request: watch.")
        self.zero_evaluations = field(watch, "zero_evaluations", int, 5, "request: watch.")
        self.least_epochs = field(watch, "epochs", int, 0, "request: watch.")
        self.metrics: Dict[str, float] = {}
        self.seen: Set[str] = set()  # names of the metrics that this start gave
        self.last: Dict[str, Any] = {}
        self.status = ""
        self.message = ""
        self.failure = ""
        self.trouble = ""
        self.eta: Optional[float] = None  # seconds
        self._before: Optional[int] = None  # the last epoch of earlier starts
        self._most_before = 0
        self._smallest = math.inf
        self._bad_losses = 0
        self._evaluations = 0
        self._evaluates = ""
        self._alive = False

    def add_old(self, record: Json) -> None:
        """A line from before this start."""
        epoch, most = one_based(record)
        if epoch is not None:
            self._before = max(self._before or 0, epoch)
            self._most_before = most or self._most_before
        self.epochs.add(record, self._figures(record))

    def untrained(self) -> str:
        """Why a training that went on from something and says success has trained nothing; "" where it has.

        This start told of no epoch, and those before it had not come to the last. One less is enough: a kill may come
        between a checkpoint and its line, and DetectNet_v2's last line says how many epochs were done before it.
        """
        most = max(self.least_epochs, self._most_before)
        if not self.least_epochs or "epoch" in self.last or (self._before is not None and self._before >= most - 1):
            return ""
        had = (
            "no start before it told of one"
            if self._before is None
            else "it had come to epoch %d of %d" % (self._before, most)
        )
        return "the training trained nothing: it went on from what it found, and tells of no epoch; %s" % had

    def add_line(self, text: str) -> None:
        """A line of the command's output."""
        for metric in self.wanted:
            self.seen.update(self._take(metric.in_line(text)))

    def complete(self, out: str) -> None:
        """At the end of a success: the metrics that stand in files of `out`, means, and the order of the request."""
        self.epochs.end()
        for metric in self.wanted:
            self.seen.update(self._take(metric.in_file(out)))
        for metric in self.wanted:
            if metric.mean and metric.name not in self.seen:
                parts = [self.metrics[name] for name in self.seen if name.startswith(metric.mean + "/")]
                self.seen.update(self._take([(metric.name, sum(parts) / len(parts))] if parts else []))
        order = {metric.name: place for place, metric in enumerate(self.wanted)}
        ordered = sorted(self.metrics, key=lambda name: order.get(name.partition("/")[0], len(order)))
        self.metrics = {name: self.metrics[name] for name in ordered}

    def _take(self, found: Iterable[Tuple[str, Any]]) -> Dict[str, float]:
        """Note figures; gives those that are any."""
        figures = {}
        for name, value in found:
            figure = number(value)
            if figure is None or not math.isfinite(figure):
                continue
            figures[name] = self.metrics[name] = figure
            if name == self.zero_metric and figure:
                self._alive = True
        return figures

    def _figures(self, record: Json) -> Dict[str, float]:
        """Note the figures of a line of status.json; gives them."""
        kpi, categorical = table(record.get("kpi")), table(record.get("categorical"))
        found: List[Tuple[str, Any]] = []
        if self.wanted:
            figures = dict(table(record.get("graphical")), **kpi)
            for metric in self.wanted:
                found += metric.in_status(figures, categorical)
        else:
            found += [(str(name), value) for name, value in kpi.items()]
            for name, classes in categorical.items():
                found += [("%s/%s" % (name, label), value) for label, value in table(classes).items()]
        return self._take(found)

    def add(self, record: Json) -> Optional[str]:
        """A new line; gives the text to show when it begins a new epoch."""
        figures = self._figures(record)
        self.epochs.add(record, figures)
        self.seen.update(figures)
        if isinstance(record.get("status"), str):
            self.status = record["status"].upper()
            self.message = one_line(str(record.get("message") or ""))
            if self.status == "FAILURE":
                self.failure = self.message
        self.eta = duration(record.get("eta"), self.eta)
        loss = self._loss_of(record)
        if self.zero_metric in figures or self.zero_metric in table(record.get("kpi")):
            self._watch_zero(record)
        epoch, most = one_based(record)
        if epoch is None:
            return None
        fresh = epoch != self.last.get("epoch")
        if self._before and "epoch" not in self.last:
            self.last["resumed_after"] = self._before
            self.last["repeated_epochs"] = max(0, self._before - epoch + 1)
        self.last["epoch"] = epoch
        if most is not None:
            self.last["max_epoch"] = most
        return self._line(record, loss) if fresh else None

    def _loss_of(self, record: Json) -> Optional[float]:
        """The loss that a line names, watched where it is a new one.

        It stands at the top (TF2), in `graphical` (TF1), or in `kpi` as train_loss (PyTorch); later lines repeat the
        last two.
        """
        kept = dict(table(record.get("graphical")), **table(record.get("kpi")))
        loss = number(record.get("loss"))
        repeated = loss is None
        if loss is None:
            loss = number(kept.get("loss", kept.get("train_loss")))
        if loss is not None and not (repeated and loss == self.last.get("loss")):
            self.last["loss"] = loss
            self._watch_loss(loss)
        return loss

    def _watch_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.trouble = self.trouble or "the loss became %s" % loss
            return
        limit = self._smallest * self.loss_factor if self.loss_factor and self._smallest > 0 else math.inf
        self._bad_losses = self._bad_losses + 1 if loss > limit else 0
        if self._bad_losses >= BAD_LOSS_REPORTS and not self.trouble:
            text = "the loss is %.4g in %d reports in a row, more than %g times its smallest (%.4g)"
            self.trouble = text % (loss, self._bad_losses, self.loss_factor, self._smallest)
        self._smallest = min(self._smallest, loss)

    def _watch_zero(self, record: Json) -> None:
        # Lines of the kind that came first report evaluations; others repeat the figure.
        kind = "epoch" if "epoch" in record else "message %s" % record.get("message")
        self._evaluates = self._evaluates or kind
        if kind != self._evaluates:
            return
        self._evaluations += 1
        if not self._alive and self._evaluations >= self.zero_evaluations and not self.trouble:
            self.trouble = "%s is still 0 after %d evaluations" % (self.zero_metric, self._evaluations)

    def _line(self, record: Json, loss: Optional[float]) -> str:
        """ "epoch 3/18  loss 0.12  eta 0:01:05" """
        text = "epoch %d" % self.last["epoch"]
        if "max_epoch" in self.last:
            text += "/%d" % self.last["max_epoch"]
        if loss is not None:
            text += "  loss %.4g" % loss
        eta = record.get("eta")
        seconds = number(eta)
        if seconds is not None and math.isfinite(seconds):
            eta = str(datetime.timedelta(seconds=int(seconds)))
        if isinstance(eta, str) and eta:
            text += "  eta %s" % one_line(eta, 24).partition(".")[0]
        return text


# --- processes --------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    parent: int
    group: int
    state: str
    started: int  # clock ticks after boot


def read_process(pid: int) -> Optional[Process]:
    """A line of /proc/<pid>/stat (man 5 proc); None when there is no such process."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything
        return Process(int(fields[1]), int(fields[2]), fields[0].decode(), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def is_alive(pid: int, started: Optional[int] = None) -> bool:
    """Whether a process lives, and is the one that began at `started`: numbers are used again."""
    process = read_process(pid)
    return process is not None and process.state not in "ZX" and started in (None, process.started)


def all_processes() -> Dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = read_process(int(name))
            if process and process.state not in "ZX":
                found[int(name)] = process
    return found


def is_marked(pid: int, mark: str) -> bool:
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return ("%s=%s" % (MARK, mark)).encode() in file.read().split(b"\0")
    except OSError:
        return False  # gone, or another user's: not ours


def below(root: int, processes: Mapping[int, Process]) -> Set[int]:
    """The descendants of a process."""
    children: Dict[int, List[int]] = collections.defaultdict(list)
    for pid, process in processes.items():
        children[process.parent].append(pid)
    found, open_ = set(), list(children[root])
    while open_:
        pid = open_.pop()
        if pid not in found:
            found.add(pid)
            open_ += children[pid]
    return found


def stage_processes(mark: str, group: int = 0, root: int = 0, spare: Sequence[int] = ()) -> Dict[int, Process]:
    """Every living process of a stage: of its group, below its runner, or marked by its environment.

    The mark also finds those that went into a session of their own and lost their parents.
    """
    processes = all_processes()
    family = below(root, processes) if root else set()
    return {
        pid: process
        for pid, process in processes.items()
        if pid != os.getpid() and pid not in spare
        if pid in family or (group and process.group == group) or is_marked(pid, mark)
    }


def kill_all(pids: Iterable[int], what: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, what)


def kill_until_gone(mark: str, group: int, seconds: float = 5.0) -> None:
    """SIGKILL to every process of a stage, again and again: one may be forking just now."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pids = stage_processes(mark, group)
        if not pids:
            return
        kill_all(pids, signal.SIGKILL)
        time.sleep(0.02)


def here() -> str:
    """Names this machine since its boot, and this container: where a process number means something."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def load_prctl() -> Callable[[int, int], None]:
    """prctl(2) by ctypes; one that does nothing where the interpreter was built without it."""
    try:
        import ctypes

        call = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda option, value: None
    return lambda option, value: call(option, value, 0, 0, 0)


def start_guard(mark: str, group: int, keep: Sequence[int]) -> Tuple[int, int]:
    """Fork a small process that ends the whole stage when the runner is gone without a word (kill -9).

    The kernel kills the command itself (PR_SET_PDEATHSIG), but not what the command has started. Gives (its process
    number, a pipe): a byte in the pipe sends it home, the end of the pipe means that the runner died. It keeps the
    files `keep` open: the stage folder's lock stays taken until the stage is really ended.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ours)
        return pid, theirs
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for which in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(which, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(null, handle)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != ours and int(name) not in keep:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        if not os.read(ours, 1):
            kill_until_gone(mark, group)
    finally:
        os._exit(0)


class MemoryLimit:
    """The memory counters of the control group that this process is in, version 1 or 2 (man 7 cgroups)."""

    def __init__(self, proc: str = "/proc") -> None:
        self.folder, self.version = self._find(proc)

    @staticmethod
    def _find(proc: str) -> Tuple[str, int]:
        """The group's folder. In a container the mount shows only a part of the tree that /proc/self/cgroup names."""
        groups = {}
        try:
            with open(os.path.join(proc, "self/cgroup")) as file:
                for line in file:
                    _, controllers, path = line.rstrip("\n").split(":", 2)
                    groups["2" if controllers == "" else controllers] = path
            with open(os.path.join(proc, "self/mountinfo")) as file:
                mounts = [line.split() for line in file]
        except (OSError, ValueError):
            return "", 0
        for mount in mounts:
            kind = mount[mount.index("-") + 1]
            options = mount[-1].split(",")
            if kind == "cgroup" and "memory" in options:
                path, version, counter = groups.get("memory", ""), 1, "memory.oom_control"
            elif kind == "cgroup2":
                path, version, counter = groups.get("2", ""), 2, "memory.events"
            else:
                continue
            root, mounted = mount[3], mount[4]
            inner = os.path.relpath(path, root) if (path + "/").startswith(root.rstrip("/") + "/") else "."
            folder = os.path.normpath(os.path.join(mounted, inner))
            if os.path.exists(os.path.join(folder, counter)):
                return folder, version
        return "", 0

    def kills(self) -> int:
        """How many processes of the group the kernel has ended for want of memory, so far."""
        path = os.path.join(self.folder, "memory.events" if self.version == 2 else "memory.oom_control")
        return self._counter(path) if self.folder else 0

    @classmethod
    def machine_kills(cls) -> int:
        """The same for the whole machine."""
        return cls._counter("/proc/vmstat")

    def limit(self) -> Optional[int]:
        """The group's limit in bytes; None when there is none."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        try:
            with open(os.path.join(self.folder, name)) as file:
                value = int(file.read())
        except (OSError, ValueError):  # "max"
            return None
        return value if value < 1 << 60 else None  # version 1 says "none" by a huge number

    @staticmethod
    def _counter(path: str) -> int:
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        return 0


class Command:
    """The stage's command: started in a session of its own, its output in one pipe, its whole family in hand."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.pid = 0
        self.pipe = -1
        self.exit_code: Optional[int] = None
        self.peak = 0  # bytes
        self._guard = 0
        self._guard_pipe = -1
        self._next_sample = 0.0

    def start(self, argv: List[bytes], env: Dict[bytes, bytes], folder: str, keep: Sequence[int]) -> None:
        """Raises Fault when the program cannot be started."""
        prctl = load_prctl()
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the stage become our children: found, counted, reaped
        runner = os.getpid()

        def in_child() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != runner:  # it died before the line above
                os._exit(1)

        self.pipe, write_end = os.pipe()
        os.set_blocking(self.pipe, False)
        env[MARK.encode()] = self.mark.encode()
        try:
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - the runner has no threads
            )
        except (OSError, ValueError) as error:
            raise self._not_started(argv[0], error) from None
        finally:
            os.close(write_end)
        self.pid = process.pid
        process.returncode = 0  # we wait for it ourselves, see reap(); tells Popen not to
        if runner != 1:  # a container whose process 1 dies is ended by the kernel as a whole
            self._guard, self._guard_pipe = start_guard(self.mark, self.pid, keep)

    @staticmethod
    def _not_started(program: bytes, error: Exception) -> Fault:
        name = program.decode("utf-8", "replace")
        reason = "the command %r cannot be started: %s" % (name, getattr(error, "strerror", None) or error)
        busy = isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM)
        return Fault("toolkit_error" if busy else "bad_spec", reason)

    def reap(self) -> None:
        """Take the exit codes of all children that ended; remember the command's. As process 1 nobody else would."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.exit_code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if pid == self._guard:
                self._guard = 0
            else:
                self.peak = max(self.peak, usage.ru_maxrss * 1024)  # of the largest single process

    def processes(self) -> Dict[int, Process]:
        """The living processes of the stage; those whose parents are gone are our own children now."""
        return stage_processes(self.mark, root=os.getpid(), spare=[self._guard])

    def signal(self, what: int) -> None:
        """Send a signal to the command's group and to those of its family that left the group."""
        outside = [pid for pid, process in self.processes().items() if process.group != self.pid]
        if self.exit_code is None:  # until it is reaped, its number is not given to another
            with contextlib.suppress(OSError):
                os.killpg(self.pid, what)
        kill_all(outside, what)

    def sample_memory(self) -> None:
        """Note the memory of the whole family, shared pages counted once. Takes less than 1 % of a core."""
        if time.monotonic() < self._next_sample:
            return
        began = time.process_time()
        pids = below(os.getpid(), all_processes()) - {self._guard}
        self.peak = max(self.peak, sum(memory_of(pid) for pid in pids))
        self._next_sample = time.monotonic() + max(0.5, 100 * (time.process_time() - began))

    def end_family(self, grace: float, tick: Callable[[], object]) -> int:
        """After the command's own end: let the processes it left finish, then end them. Gives how many were ended."""
        deadline = time.monotonic() + grace
        while self._living() and time.monotonic() < deadline:
            tick()
            time.sleep(0.02)
        left = self._living()
        deadline = time.monotonic() + 5  # a process in the kernel's hands (state D) may outlive even that
        while self._living() and time.monotonic() < deadline:
            kill_all(self.processes(), signal.SIGKILL)
            time.sleep(0.02)
        return len(left)

    def _living(self) -> Dict[int, Process]:
        self.reap()
        return self.processes()

    def release(self) -> None:
        """Send the guard home."""
        if self._guard_pipe >= 0:
            with contextlib.suppress(OSError):
                os.write(self._guard_pipe, b".")
            os.close(self._guard_pipe)
            self._guard_pipe = -1
            if self._guard:
                with contextlib.suppress(OSError):
                    os.waitpid(self._guard, 0)
                self._guard = 0
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


def memory_of(pid: int) -> int:
    """Bytes of memory of one process: its proportional share, or all resident pages where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/%d/smaps_rollup" % pid) as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/%d/statm" % pid) as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


# --- the stage's folder -----------------------------------------------------------------------------------------


class Folder:
    """A stage's folder: one runner at a time, good results kept, other attempts never mixed in or overwritten."""

    def __init__(self, stage: Stage, say: Callable[[str], None]) -> None:
        self.stage = stage
        self.say = say
        self.attempt = 1
        self.resumed = False
        self.lock = -1
        self._reserve = os.path.join(stage.folder, ".reserve")

    def path(self, name: str) -> str:
        return os.path.join(self.stage.folder, name)

    def take(self, stopped: Callable[[], bool]) -> None:
        """Make the folder and take its lock. Raises Fault when another runner has it and cannot be ended, or OSError.

        The newest start wins: an orphan of a killed Airflow worker must not keep the retry from its work. The lock is
        a file beside the folder, because the folder itself may be moved aside.
        """
        os.makedirs(self.stage.folder, exist_ok=True)
        parent, name = os.path.split(self.stage.folder)
        self.lock = os.open(os.path.join(parent, ".%s.lock" % name), os.O_RDWR | os.O_CREAT, 0o664)
        asked_at, killed = 0.0, False
        began = time.monotonic()
        while not self._try_lock():
            if stopped():
                raise Fault("cancelled", "stopped while waiting for another runner of this stage to end")
            other = read_json(self.path("runner.pid")) or {}
            pid = self._alive_here(other)
            waited = time.monotonic() - began
            if pid and not asked_at:
                self.say("refit: another runner (process %d) is at work on this stage; ending it" % pid)
                asked_at = time.monotonic()
                kill_all([pid], signal.SIGTERM)
            elif pid and not killed and time.monotonic() - asked_at > self.stage.grace + 5:
                killed = True
                kill_all([pid], signal.SIGKILL)
            if waited > (self.stage.grace + 15 if asked_at else LOCK_SECONDS):
                where = other.get("host", "an unknown machine")
                raise Fault("toolkit_error", "another runner is at work on this stage, on %s; end it first" % where)
            time.sleep(0.05)
        self._end_leftovers()

    @staticmethod
    def _alive_here(other: Json) -> int:
        """The process number of a runner.pid whose runner lives on this machine; else 0."""
        pid = other.get("pid")
        if not isinstance(pid, int) or pid == os.getpid() or other.get("where") != here():
            return 0
        return pid if is_alive(pid, other.get("started")) else 0

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # A file system without locks: runner.pid is all that protects us there.
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def _end_leftovers(self) -> None:
        """End what an earlier runner of this folder, killed without a word, has left running on this machine."""
        other = read_json(self.path("runner.pid"))
        if not other or other.get("where") != here() or not isinstance(other.get("mark"), str):
            return
        pid = self._alive_here(other)
        if pid:  # only where the file system has no locks
            kill_all([pid], signal.SIGKILL)
        if stage_processes(other["mark"]):
            self.say("refit: ending the processes that an earlier start of this stage left behind")
            kill_until_gone(other["mark"], 0)

    def good_result(self) -> Optional[Json]:
        """The result of an earlier start that can be handed back as it is; none where the work is wanted again."""
        if os.environ.get("REFIT_AGAIN"):
            return None
        result = read_json(self.path("result.json"))
        if not result or not self.stage.key or result.get("key") != self.stage.key:
            return None
        if result.get("outcome") != "succeeded":
            return None
        outputs = result.get("outputs")
        if not isinstance(outputs, dict) or not all(isinstance(entry, dict) for entry in outputs.values()):
            return None
        expected = {output["name"] for output in self.stage.outputs}
        wrong = is_whole(self.stage.out, outputs)
        if not expected <= set(outputs):
            wrong = "%s is not in it" % ", ".join(sorted(expected - set(outputs)))
        if wrong:
            self.say("refit: the earlier result cannot be reused: %s" % wrong)
            return None
        return result

    def prepare(self) -> None:
        """Make the folder ready for a new attempt: go on with an unfinished one of the same key, or begin anew."""
        result = read_json(self.path("result.json"))
        request = read_json(self.path("request.json"))
        runner = read_json(self.path("runner.pid")) or {}
        before = result or request or {}
        same = bool(self.stage.key) and before.get("key") == self.stage.key
        if same:
            past = [number(attempt.get("attempt")) or 0 for attempt in (result or {}, runner)]
            self.attempt = int(max([1.0] + past)) + 1
        ended = (result or {}).get("outcome")
        used = os.path.isdir(self.stage.out) and bool(os.listdir(self.stage.out))
        checkpoint = self.stage.checkpoint() if self.stage.told else ""
        goes_on = bool(checkpoint) if self.stage.told else self.stage.resume
        if not same or ended in ("succeeded", "diverged", "rejected") or not goes_on:
            if used or before:
                self._move_aside()
        else:
            self.resumed = used
            if checkpoint:
                self.stage.go_on_from(checkpoint)
                self.say("refit: going on from %s" % shown(os.path.relpath(checkpoint, self.stage.out)))
        os.makedirs(self.stage.out, exist_ok=True)
        if os.path.exists(self.path("result.json")):
            # Whoever reads result.json while this attempt runs must not take the last one's for ours.
            os.replace(self.path("result.json"), self.path("result.%d.json" % (self.attempt - 1)))
        for name in os.listdir(self.stage.folder):
            if name.startswith(".") and ".tmp-" in name:
                os.unlink(self.path(name))
        shutil.rmtree(self.stage.specs, ignore_errors=True)
        os.makedirs(self.stage.specs)
        with open(self._reserve, "wb") as file:
            file.write(b"\0" * RESERVE_BYTES)

    def _move_aside(self) -> None:
        self.free_reserve()
        count = 1
        while os.path.lexists("%s.%d" % (self.stage.folder, count)):
            count += 1
        os.rename(self.stage.folder, "%s.%d" % (self.stage.folder, count))
        os.makedirs(self.stage.folder)
        sync_folder(os.path.dirname(self.stage.folder))
        self.say("refit: an older attempt was moved to %s.%d" % (shown(os.path.basename(self.stage.folder)), count))

    def note(self, mark: str, command: int) -> None:
        """Write runner.pid: who works here, and how to know its processes again."""
        me = read_process(os.getpid())
        entry = {
            "pid": os.getpid(),
            "started": me.started if me else None,
            "where": here(),
            "host": socket.gethostname(),
            "command": command,
            "mark": mark,
            "attempt": self.attempt,
        }
        write_file(self.path("runner.pid"), encode(entry))

    def write_result(self, result: Json) -> bytes:
        """Write result.json; on a full disk into the room that was kept for it. Raises OSError."""
        data = encode(result)
        try:
            write_file(self.path("result.json"), data)
        except OSError:
            self.free_reserve()
            data = encode(dict(result, log_tail=result["log_tail"][-3:]))
            write_file(self.path("result.json"), data)
        return data

    def free_reserve(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._reserve)

    def leave(self) -> None:
        """Tidy up and give the lock back; the attempt's number stays in result.json."""
        if self.lock >= 0:
            self.free_reserve()
            if read_json(self.path("result.json")):
                with contextlib.suppress(OSError):
                    os.unlink(self.path("runner.pid"))
            os.close(self.lock)
            self.lock = -1


# --- one run of a stage -----------------------------------------------------------------------------------------

CUDA_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUDNN_STATUS_ALLOC_FAILED"
    r"|OutOfMemoryError|OOM when allocating tensor|ResourceExhaustedError"
)
HOST_MEMORY = re.compile(
    r"^MemoryError\b|std::bad_alloc|not enough memory: you tried to allocate|can't allocate memory"
    r"|Cannot allocate memory|_ArrayMemoryError"
)
EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception)\b: \S")
EPILOGUE = re.compile(r"Execution status: |HYDRA_FULL_ERROR|[Tt]elemetry|\[Error\]: ")  # of TAO's entry points
EXCESS_ADVICE = {"kept": "Prune with a larger threshold (prune.threshold), or leave the stages prune and retrain out."}
UNTRAINED_ADVICE = "Clear the stage: what it found is put aside, and it trains from the beginning."
NO_SPACE = re.compile(r"No space left on device|\bENOSPC\b|Disk quota exceeded")


class Signals:
    """The signals that ask the runner to stop. A pipe wakes select() up; the second Ctrl-C means "now"."""

    def __init__(self) -> None:
        self.received: List[int] = []
        self.wake, write_end = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for which in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(which, lambda caught, _: self.received.append(caught))
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake up
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    @property
    def impatient(self) -> bool:
        return self.received.count(signal.SIGINT) > 1


class Parent:
    """The process at whose end the stage ends too (--parent)."""

    def __init__(self, pid: Optional[int]) -> None:
        self.pid = pid
        process = read_process(pid) if pid else None
        self.started = process.started if process else -1

    def gone(self) -> bool:
        return self.pid is not None and not is_alive(self.pid, self.started)


class Run:
    """One start of a stage, from the request to the result."""

    def __init__(self, stage: Stage, output: Output, signals: Signals, parent: Parent) -> None:
        self.stage = stage
        self.output = output
        self.signals = signals
        self.parent = parent
        self.folder = Folder(stage, output.say)
        self.command = Command()
        judged_by = next((output["metric"] for output in stage.outputs if output.get("metric")), "")
        self.progress = Progress(stage.watch, stage.metrics, judged_by)
        self.status = StatusFile(os.path.join(stage.out, native(stage.status))) if stage.status else None
        self.memory = MemoryLimit()
        self.kills = (self.memory.kills(), self.memory.machine_kills())
        self.started = time.time()
        self.began = time.monotonic()
        self.stopped: Optional[Fault] = None
        self.deadline = math.inf
        self._killed = False
        self._active = self.began
        self._signature: Optional[Tuple[int, int, int]] = None
        self._next_look = 0.0
        self._next_tell = 0.0

    def execute(self) -> Json:
        """Do it all; gives the result that was written. Raises Fault when not even that was possible."""
        try:
            self.folder.take(lambda: self._wish_to_stop() is not None)
            earlier = self.folder.good_result()
            if earlier is not None:
                self.output.say("refit: %s: an earlier result with the same key is whole: reused" % self.stage.name)
                self._publish(earlier, None)
                self._tell("succeeded", earlier.get("metrics") or {})
                return earlier
            self.folder.prepare()
            self.output.open_log(self.folder.path("log.txt"))
        except OSError as error:
            raise Fault.of(error, "use the stage's folder %s" % shown(self.stage.folder)) from None
        outputs: Json = {}
        fault: Optional[Fault]
        try:
            self._start()
            self._follow()
            outputs = self._judge()
            fault = None
        except Fault as error:
            fault = error
        except OSError as error:
            fault = Fault.of(error, "run the stage")
        finally:
            self._end_command()
        return self._finish(fault, outputs)

    def leave(self) -> None:
        self._end_command()
        self.folder.leave()

    # -- start --

    def _start(self) -> None:
        stage, output = self.stage, self.output
        again = ", goes on from attempt %d" % (self.folder.attempt - 1) if self.folder.resumed else ""
        output.say("refit: %s: attempt %d%s, %s" % (stage.name, self.folder.attempt, again, utc(self.started)))
        for name in output.scrubber.weak:
            output.say("refit: secret %s is too short to be hidden in the output" % name)
        try:
            write_file(self.folder.path("request.json"), encode(stage.data))
            self.folder.note(self.command.mark, 0)
        except OSError as error:
            raise Fault.of(error, "write request.json") from None
        tokens = Tokens(stage, output.scrubber.values)
        for name, text in stage.files.items():
            content = tokens.replace(text, "files.%s" % name, secrets=False)
            self._write_spec(name, content.encode("utf-8", "surrogateescape"))
        argv = [tokens.replace(part, "argv[%d]" % i, secrets=True) for i, part in enumerate(stage.argv)]
        env = {name: tokens.replace(text, "env.%s" % name, secrets=True) for name, text in stage.env.items()}
        if self.status:
            for record in self.status.read(last=True):  # a half line of a killed attempt is done with
                self.progress.add_old(record)
        if self._wish_to_stop():
            raise Fault("cancelled", "stopped before the command was started")
        words = [one_line(shlex.quote(part), 120) for part in stage.argv]  # tokens unreplaced: no secret in them
        output.say("refit: %s" % " ".join(words))
        output.listen = self._hear
        self.command.start(
            [part.encode("utf-8", "surrogateescape") for part in argv],
            self._environment(env),
            stage.folder,
            [self.folder.lock],
        )
        self.folder.note(self.command.mark, self.command.pid)

    def _write_spec(self, name: str, data: bytes) -> None:
        path = os.path.join(self.stage.specs, native(name))
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, data)
        except OSError as error:
            raise Fault.of(error, "write the spec %s" % name) from None

    @staticmethod
    def _environment(extra: Mapping[str, str]) -> Dict[bytes, bytes]:
        env = {
            name: value
            for name, value in os.environb.items()
            if not name.startswith(b"REFIT_SECRET_") and os.fsdecode(name) not in PRIVATE
        }
        env.setdefault(b"PYTHONUNBUFFERED", b"1")  # else a Python command's lines come minutes late
        env.update((name.encode("utf-8"), value.encode("utf-8", "surrogateescape")) for name, value in extra.items())
        return env

    # -- follow --

    def _follow(self) -> None:
        """Until the command has ended: pass its output on, and look at everything else in each tick."""
        self._active = time.monotonic()
        if self.stage.stall is not None:
            self._grown(self._active)  # how the folder is now, to compare with
        with selectors.DefaultSelector() as selector:
            selector.register(self.command.pipe, selectors.EVENT_READ)
            selector.register(self.signals.wake, selectors.EVENT_READ)
            while self.command.exit_code is None:
                for key, _ in selector.select(TICK):
                    if key.fd == self.command.pipe:
                        if self._read_output() < 0:
                            selector.unregister(self.command.pipe)
                    else:
                        with contextlib.suppress(OSError):
                            os.read(self.signals.wake, 4096)
                self.command.reap()
                self._look()
        self._after_the_end()

    def _read_output(self) -> int:
        """Take some of the command's output: how many bytes; 0 when none is there now, -1 at its end."""
        try:
            data = os.read(self.command.pipe, 1 << 16)
        except BlockingIOError:
            return 0
        self._active = time.monotonic()
        self.output.feed(data)
        return len(data) or -1

    def _look(self) -> None:
        now = time.monotonic()
        if self.signals.impatient:
            self.deadline = 0
        if now > self.deadline and not self._killed:
            self._killed = True
            self.output.say("refit: the command did not stop in time; killing it")
        if self._killed:
            self.command.signal(signal.SIGKILL)
        if now < self._next_look and not self.signals.received:
            return
        self._next_look = now + TICK
        self.output.tick()
        self.command.sample_memory()
        self._read_status()
        if now >= self._next_tell:
            self._next_tell = now + TELL_SECONDS
            self._tell("running", self.progress.metrics)
        if self.stopped is None and self.command.exit_code is None:
            fault = self._wish_to_stop() or self._trouble(now)
            if fault:
                self.stopped = fault
                self.deadline = now + self.stage.grace
                self.output.say("refit: stopping: %s" % fault.reason)
                self.command.signal(signal.SIGTERM)

    def _hear(self, text: str) -> None:
        """A line of the command's output."""
        self.stage.success.add_line(text)
        self.progress.add_line(text)

    def _read_status(self, last: bool = False) -> None:
        for record in self.status.read(last) if self.status else ():
            self._active = time.monotonic()
            line = self.progress.add(record)
            if line:
                self.output.say(line)

    def _wish_to_stop(self) -> Optional[Fault]:
        if self.signals.received:
            return Fault("cancelled", "stopped by %s" % signal.Signals(self.signals.received[0]).name)
        if self.parent.gone():
            return Fault("cancelled", "stopped because the process that started it (%s) is gone" % self.parent.pid)
        return None

    def _trouble(self, now: float) -> Optional[Fault]:
        if self.progress.trouble:
            return Fault("diverged", self.progress.trouble)
        if self.stage.timeout is not None and now - self.began > self.stage.timeout:
            return Fault("timed_out", "still running after %g seconds" % self.stage.timeout)
        if self.stage.stall is not None and now - self._active > self.stage.stall and not self._grown(now):
            text = "no new line in the status file or the log, and no file written, for %g seconds"
            return Fault("stalled", text % self.stage.stall)
        return None

    def _grown(self, now: float) -> bool:
        """Whether out/ has changed since the last sign of life. It walks the folder: asked when all else is silent."""
        count = size = newest = 0
        for parent, _, names in os.walk(self.stage.out):
            for name in [""] + names:  # a folder's own time tells of files made, renamed and removed in it
                with contextlib.suppress(OSError):
                    state = os.stat(os.path.join(parent, name))
                    count, size, newest = count + 1, size + state.st_size, max(newest, state.st_mtime_ns)
        before, self._signature = self._signature, (count, size, newest)
        written = now - max(0.0, time.time() - newest / 1e9)
        if written > self._active:
            self._active = written
        elif before is not None and before != self._signature:  # the file server's clock may differ from ours
            self._active = now
        return now - self._active <= (self.stage.stall or 0)

    # -- end --

    def _after_the_end(self) -> None:
        """The command has ended: end its family, take the rest of its output and status."""
        grace = max(0.0, self.deadline - time.monotonic()) if self.stopped else LINGER
        left = self.command.end_family(grace, self._read_rest)
        if left and not self._killed:
            self.output.say("refit: %d processes that the command left running were ended" % left)
        deadline = time.monotonic() + 1
        while self._read_rest() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.command.release()
        self.output.end()
        self._read_status(last=True)

    def _read_rest(self) -> bool:
        """Take all output that is there now; False when its end was reached."""
        count = 1
        while count > 0:
            count = self._read_output()
        return count == 0

    def _end_command(self) -> None:
        """Whatever happened, no process of the stage stays."""
        if self.command.pid and self.command.exit_code is None:
            self.command.signal(signal.SIGKILL)
        if self.command.pid:
            self.command.end_family(0, lambda: None)
        self.command.release()

    def _judge(self) -> Json:
        """The outputs, hashed; raises Fault when the stage did not succeed. An exit code of 0 alone proves nothing."""
        code = self.command.exit_code or 0
        if self.stopped:
            raise self.stopped
        failed = code != 0 or self.progress.status == "FAILURE"
        if failed:
            raise self._failure(code)
        self.progress.complete(self.stage.out)
        figures = self.progress.epochs.by_epoch
        found, wrong = {}, []
        for spec in self.stage.outputs:
            try:
                found[spec["name"]] = find_output(self.stage.out, spec, figures)
            except Missing as error:
                wrong.append("%s: %s" % (spec["name"], error))
        doubts = self.stage.success.missing(self.progress, self.stage.status)
        if wrong:
            doubts.append("its outputs are not right: %s" % "; ".join(wrong))
        if self.stage.action.startswith("evaluate"):
            doubts += [m.absence() for m in self.stage.metrics if not m.is_among(self.progress.seen)]
        if doubts:
            reason = "the command ended with exit code 0, but %s" % "; ".join(doubts)
            if self.stage.success.denied:
                reason += "; in its log: %s" % (self._last_words() or "nothing else")
            raise self._evidence(code, reason, "") or Fault("toolkit_error", one_line(reason))
        untrained = self.progress.untrained() if self.folder.resumed else ""
        if untrained:
            raise Fault("rejected", untrained, UNTRAINED_ADVICE)
        too_large = self._summary()[1]
        if too_large:
            raise Fault("toolkit_error", too_large)
        for metric in self.stage.metrics:
            excess = metric.too_much(self.progress.metrics)
            if excess:
                raise Fault("rejected", excess, EXCESS_ADVICE.get(metric.name, ""))
        outputs = {}
        for name, path in found.items():
            size, digest = measure(path)
            outputs[name] = {"path": shown(os.path.relpath(path, self.stage.out)), "bytes": size, "sha256": digest}
        for spec in self.stage.outputs:
            if spec.get("pick") == "best":
                taken = outputs[spec["name"]]
                taken["picked"] = self._picked(spec, found[spec["name"]], figures)
                self.output.say("refit: %s: %s: %s" % (spec["name"], taken["path"], taken["picked"]))
        return outputs

    @staticmethod
    def _picked(spec: Json, path: str, figures: Mapping[int, float]) -> str:
        """Why it is this checkpoint, for a person."""
        epoch = epoch_of(path, spec) or 0
        if epoch not in figures:
            return "the newest checkpoint: the training gave no %s by which one would be better" % spec["metric"]
        return "epoch %s, whose %s of %.4f is the best of the checkpoints" % (epoch, spec["metric"], figures[epoch])

    def _failure(self, code: int) -> Fault:
        stated = self.progress.failure or self.output.error
        how = describe_exit(code) if code else "FAILURE in %s, exit code 0" % self.stage.status
        last = self._last_words()
        if stated.endswith("was interrupted") and last:
            # TAO writes that also where it ended itself by sys.exit, for a faulty spec (detectnet_v2/scripts/train.py).
            stated = "%s; in its log: %s" % (stated, last)
        said = stated or ("%s (%s)" % (last, how) if last else "%s, and no output" % how)
        mapped = self.stage.exit_codes.get(str(code))
        if mapped and mapped != "succeeded":
            return Fault(mapped, one_line(said))
        known = self._evidence(code, stated, how)
        if known:
            return known
        caught = signal_of(code)
        if caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return Fault("cancelled", "the command was stopped by %s from outside" % signal.Signals(caught).name)
        if caught == signal.SIGKILL:
            reason = "the command was ended by SIGKILL, not by Refit; its memory was at most %s" % human(
                self.command.peak
            )
            return Fault(
                "toolkit_error", reason, "If the machine ran out of memory, that is why; see the kernel's log."
            )
        return Fault("toolkit_error", one_line(said))

    def _last_words(self) -> str:
        """The last exception in the end of the output, else its last line; a launcher's own words follow both."""
        lines = [line for line in list(self.output.tail)[-TAIL_LINES:] if not EPILOGUE.search(line)]
        return next((line for line in reversed(lines) if EXCEPTION.search(line)), lines[-1] if lines else "")

    def _evidence(self, code: int, stated: str, how: str) -> Optional[Fault]:
        """Want of memory or space, where the kernel's counters or the output's last lines show it.

        `stated` is the reason that the command itself gave, `how` it ended.
        """
        text = list(self.output.tail)[-TAIL_LINES:] + [self.progress.failure, self.output.error]
        kills = self.memory.kills() - self.kills[0]
        if kills > 0:
            limit = self.memory.limit()
            reason = "the kernel ended %d of its processes for want of memory" % kills
            reason += " (limit %s)" % human(limit) if limit else ""
            return Fault("out_of_memory", reason)
        if signal_of(code) == signal.SIGKILL and self.memory.machine_kills() > self.kills[1]:
            reason = "ended by SIGKILL while the kernel was ending processes for want of memory on this machine"
            return Fault("out_of_memory", reason)
        for pattern, outcome, advice in (
            (NO_SPACE, "no_space", ""),
            (CUDA_MEMORY, "out_of_memory", "The GPU's memory is too small for this: use a smaller batch or image."),
            (HOST_MEMORY, "out_of_memory", ""),
        ):
            for line in reversed(text):
                if pattern.search(line):
                    reason = stated if line in stated else "%s (%s)" % ((stated, line) if stated else (line, how))
                    return Fault(outcome, one_line(reason), advice)
        return None

    # -- result --

    def _finish(self, fault: Optional[Fault], outputs: Json) -> Json:
        """Write result.json, and the pointer to it. Raises Fault when the result cannot be written."""
        ended = time.time()
        code = self.command.exit_code
        result: Json = {
            "schema": 1,
            "pipeline": self.stage.data.get("pipeline", ""),
            "run": self.stage.data.get("run", ""),
            "name": self.stage.name,
            "key": self.stage.key,
            "outcome": fault.outcome if fault else "succeeded",
            "reason": fault.reason if fault else "",
            "advice": fault.advice if fault else "",
            "exit_code": code,
            "attempt": self.folder.attempt,
            "resumed": self.folder.resumed,
            "started": utc(self.started),
            "ended": utc(ended),
            "seconds": round(time.monotonic() - self.began, 3),
            "peak_memory_bytes": self.command.peak,
            "metrics": self.progress.metrics,
            "summary": self._summary()[0],
            "outputs": outputs,
            "progress": self.progress.last,
            "log_tail": list(self.output.tail)[-TAIL_LINES:],
        }
        result = self.output.scrubber.value(result)
        try:
            data = self.folder.write_result(result)
        except OSError as error:
            raise Fault.of(error, "write result.json (the stage's outcome was %s)" % result["outcome"]) from None
        self._publish(result, data)
        self._tell(result["outcome"], result["metrics"])
        peak = ", memory up to %s" % human(self.command.peak) if self.command.peak else ""
        self.output.say("refit: %s: %s after %.1f s%s" % (self.stage.name, result["outcome"], result["seconds"], peak))
        return result

    def _tell(self, state: str, metrics: Json) -> None:
        """How far the stage is, for people (docs/contracts.md, "Published"). It does without where that cannot be."""
        if not self.stage.progress:
            return
        said = dict(self.progress.last, run=self.stage.data.get("run", ""), stage=self.stage.name, state=state)
        said.update(eta=self.progress.eta, message=self.progress.message, metrics=metrics, at=utc(time.time()))
        said.update(started=utc(self.started), attempt=self.folder.attempt)
        path = native(self.stage.progress)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, encode(self.output.scrubber.value(said)))
        except (OSError, ValueError):
            self.stage.progress = None

    def _summary(self) -> Tuple[Json, str]:
        """What the stage says in short, and why it cannot travel: who needs it must not learn that by its absence."""
        if not self.stage.summary:
            return {}, ""
        summary = read_json(os.path.join(self.stage.out, native(self.stage.summary))) or {}
        try:
            size = len(encode(summary))
        except ValueError:  # NaN and the like; made null later
            size = len(json.dumps(summary))
        if size > SUMMARY_BYTES:
            return {}, "%s has %d bytes, %d are allowed" % (self.stage.summary, size, SUMMARY_BYTES)
        return summary, ""

    def _publish(self, result: Json, data: Optional[bytes]) -> None:
        """Point to a good result by its key, so that later runs can reuse it. The result stands without it too."""
        if not self.stage.publish or result["outcome"] != "succeeded":
            return
        path = native(self.stage.publish)
        try:
            if data is None:
                if os.path.exists(path):
                    return
                with open(self.folder.path("result.json"), "rb") as file:
                    data = file.read()
            pointer = {
                "run": result.get("run", ""),
                "stage_dir": self.stage.paths["stage"],
                "result_sha256": hashlib.sha256(data).hexdigest(),
            }
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, encode(pointer))
        except OSError as error:
            self.output.say("refit: the pointer for reuse was not written: %s" % Fault.of(error, "write it").reason)


def signal_of(code: int) -> int:
    """The signal behind an exit code, also where a shell in between made it 128 + number; 0 when there is none."""
    return -code if code < 0 else code - 128 if 128 < code < 193 else 0


def describe_exit(code: int) -> str:
    """9 -> "exit code 9"; -11 -> "ended by signal 11, SIGSEGV"; 137 -> "exit code 137, perhaps SIGKILL"."""
    caught = signal_of(code)
    try:
        name = signal.Signals(caught).name
    except ValueError:
        name = "unknown to Python"
    if code < 0:
        return "ended by signal %d, %s" % (caught, name)
    return "exit code %d, perhaps %s" % (code, name) if caught else "exit code %d" % code


# --- the compact result -----------------------------------------------------------------------------------------


def most(count: int, fits: Callable[[int], bool]) -> int:
    """The greatest n <= count for which fits(n), where a smaller n fits whenever a greater one does; at least 0."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def compact(result: Json, limit: int = COMPACT_BYTES) -> bytes:
    """A result as JSON of at most `limit` bytes: only what must be left out is, and then "truncated" says so.

    In this order, each only as far as needed: log_tail, progress, metrics beyond the first, outputs beyond name and
    sha256, the length of reason and advice. Only a result of absurd size loses more: its summary, outputs, metrics,
    and the ends of its names.
    """
    small = result

    def fits(**changes: Any) -> bool:
        return len(encode(dict(small, **changes))) <= limit

    def entries(key: str) -> List[Tuple[str, Any]]:
        return list((small.get(key) or {}).items())

    def shorten(key: str, least: int) -> None:
        found = entries(key)
        count = most(len(found), lambda n: fits(**{key: dict(found[:n])}))
        small[key] = dict(found[: max(count, least)])

    def shorten_words(least: int) -> None:
        words = {key: str(small.get(key) or "") for key in ("reason", "advice")}

        def cut(count: int) -> Json:
            return {key: one_line(text, count) for key, text in words.items()}

        count = most(max(len(text) for text in words.values()), lambda n: fits(**cut(n)))
        small.update(cut(max(count, least)))

    steps: List[Callable[[], object]] = [
        lambda: small.pop("log_tail", None),
        lambda: small.pop("progress", None),
        lambda: shorten("metrics", 1),
        lambda: small.update(outputs={name: {"sha256": entry.get("sha256")} for name, entry in entries("outputs")}),
        lambda: shorten_words(200),
        lambda: small.pop("summary", None),
        lambda: shorten("outputs", 0),
        lambda: shorten("metrics", 0),
        lambda: small.update({key: one_line(text, 64) for key, text in small.items() if isinstance(text, str)}),
    ]
    if not fits():
        small = dict(result, truncated=True)
    for step in steps:
        if fits():
            break
        step()
    return encode(small)


def write_termination_log(result: Json, say: Callable[[str], None]) -> None:
    """The compact result, written in place: Kubernetes mounts that very file, so it cannot be renamed over."""
    path = os.environ.get("REFIT_TERMINATION_LOG")
    if not path:
        return
    try:
        with open(path, "wb") as file:
            file.write(compact(result))
    except OSError as error:
        say("refit: REFIT_TERMINATION_LOG: %s" % Fault.of(error, "write it").reason)


# --- main -------------------------------------------------------------------------------------------------------


def failed_result(fault: Fault, request: Json) -> Json:
    """A result for a start that came to nothing; only the termination log sees it."""
    result: Json = {key: str(request.get(key, "")) for key in ("pipeline", "run", "name", "key")}
    now = utc(time.time())
    result.update(schema=1, outcome=fault.outcome, reason=fault.reason, advice=fault.advice, exit_code=None)
    result.update(attempt=1, resumed=False, started=now, ended=now, seconds=0.0, peak_memory_bytes=0)
    result.update(metrics={}, summary={}, outputs={}, progress={}, log_tail=[])
    return result


def answer(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Hand back the result that a stage's folder holds, as the runner that wrote it did; exit code 4: there is none.

    Where a stage is named as well, a result of another key is none.
    """
    folder = arguments.answer
    result = read_json(os.path.join(folder, "result.json"))
    if not result or not isinstance(result.get("outcome"), str):
        print("refit: %s holds no result" % folder)
        return 4
    if arguments.plan or arguments.request or environment.get("REFIT_REQUEST"):
        try:
            wanted = load_request(arguments, environment).get("key")
        except Fault as fault:
            print("refit: %s" % fault.reason)
            return 4
        if result.get("key") != wanted:
            print("refit: the result in %s has key %s, the stage has %s" % (folder, result.get("key"), wanted))
            return 4
    write_termination_log(result, print)
    print("refit: %s: %s" % (result.get("name"), result["outcome"]))
    return 0


def take_umask(text: Optional[str]) -> None:
    """Stages that share a volume share a group, and must be able to change each other's files. Raises ValueError."""
    if text:
        os.umask(int(text, 8))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="runner.py",
        description="Run the command of one Refit stage, watch it, check what it made, and write result.json.",
        epilog="Exit codes: 0 succeeded; 2 bad_spec, bad_data or rejected; 143 cancelled; 1 anything else.",
    )
    parser.add_argument("--plan", metavar="FILE", help="a plan.json; needs --stage")
    parser.add_argument("--stage", metavar="NAME", help="the stage of the plan to run")
    parser.add_argument("--request", metavar="FILE", help="one stage as JSON; - is standard input")
    parser.add_argument("--answer", metavar="FOLDER", help="only hand back the result of this stage folder")
    parser.add_argument("--parent", metavar="PID", type=int, help="stop when this process is gone")
    arguments = parser.parse_args(argv)
    if bool(arguments.plan) != bool(arguments.stage) or (arguments.plan and arguments.request):
        parser.error("give --plan together with --stage, or --request alone")
    if fcntl is None or not os.path.isdir("/proc/self"):
        parser.error("this runs on Linux only, with /proc")
    try:
        take_umask(os.environ.get("REFIT_UMASK"))
    except ValueError:
        parser.error("REFIT_UMASK=%s: write an octal number such as 0002" % os.environ["REFIT_UMASK"])
    if arguments.answer:
        return answer(arguments, os.environ)
    parent = Parent(arguments.parent)
    signals = Signals()
    scrubber = Scrubber(os.environ)
    output = Output(scrubber)
    request: Json = {"name": arguments.stage or ""}
    run: Optional[Run] = None
    try:
        request = load_request(arguments, os.environ)
        run = Run(Stage(request), output, signals, parent)
        result = run.execute()
    except Fault as fault:
        result = scrubber.value(failed_result(fault, request))
    except Exception as error:  # a mistake of ours: say so, with what is needed to mend it
        output.say(traceback.format_exc())
        mistake = Fault("toolkit_error", "the runner itself failed: %s: %s" % (type(error).__name__, error))
        result = scrubber.value(failed_result(mistake, request))
    finally:
        if run:
            run.leave()
    if result["outcome"] != "succeeded":
        if arguments.parent:
            output.stdout = False  # whoever started us reads the answer and tells it; log.txt has it too
        output.say("error: %s: %s" % (result["outcome"], result["reason"]))
        output.say("refit: %s" % result["advice"])
    write_termination_log(result, output.say)
    output.close_log()
    return EXIT_CODES.get(result["outcome"], 1)


if __name__ == "__main__":
    sys.exit(main())
