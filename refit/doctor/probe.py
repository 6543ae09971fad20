"""What the doctor's pods run: `python -c <this file> MODE ARGUMENT...`. Standard library of Python 3.6 and up.

Answers with a JSON list of [level, name, text, fix] as termination message and on standard output.

    image RUNNER [MODULE]       the image's Python, the runner, the package that its commands are in
    first FOLDER | second FOLDER   two pods that prove together what a workspace's volume does
    triton URL REPOSITORY       readiness, the control key (REFIT_SECRET_<name>), renames beside the repository
    disk WORKSPACE FOLDER       room and a forecast; removes FOLDER
"""

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Optional, Tuple

Row = Tuple[str, str, str, str]
OK, WARN, FAIL = "ok", "warn", "FAIL"
SECONDS = 60.0  # that one pod waits for the other
NEWEST = 20  # runs that the forecast looks at
CONTROL_HEADER = "refit-control-key"  # docs/contracts.md, "Triton"
GIB = 2.0**30


def image(runner: str, module: str = "") -> List[Row]:
    name = "python"
    if not os.path.isfile(runner):
        return [(FAIL, name, "%s is not there" % runner, "correct images.<name>.runner, or build the image anew")]
    if module and importlib.util.find_spec(module) is None:
        return [(FAIL, name, "the package %s is not in it" % module, "is this image the one of images/%s?" % module)]
    return [(OK, name, "Python %d.%d.%d, %s" % (*sys.version_info[:3], runner), "")]


# --- the volume -------------------------------------------------------------------------------------------------------


def wait_for(path: str) -> None:
    until = time.time() + SECONDS
    while not os.path.exists(path):
        if time.time() > until:
            raise OSError(errno.ETIMEDOUT, "the other pod's file did not appear within %d s" % SECONDS, path)
        with contextlib.suppress(OSError):
            os.listdir(os.path.dirname(path))  # NFS looks again; the folder itself may be what is still to come
        time.sleep(0.1)


def write(path: str, text: str) -> None:
    aside = path + ".tmp"
    with open(aside, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def first(folder: str) -> List[Row]:
    """Writes, and holds a lock until the other pod has tried it."""
    os.umask(int(os.environ["REFIT_UMASK"], 8))
    rows = []
    os.makedirs(folder + "/shared", exist_ok=True)
    write(folder + "/shared/file", "one\n")
    rows.append((OK, "rename and fsync", "files appear whole", ""))
    try:
        os.link(folder + "/shared/file", folder + "/shared/link")
        count = os.stat(folder + "/shared/file").st_nlink
        rows.append((OK if count == 2 else WARN, "hard links", "%d links to one file" % count, ""))
    except OSError as error:
        text = "snapshots copy their images instead of linking them: %s" % error.strerror
        rows.append((WARN, "hard links", text, "a volume with hard links (NFS 4.1, CephFS) saves that room"))
    mode = stat.S_IMODE(os.stat(folder + "/shared").st_mode)
    if not mode & stat.S_IWGRP:
        rows.append((FAIL, "umask", "folders get mode %o: not writable by the group" % mode, "security.umask: '0002'"))
    with open(folder + "/shared/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write(folder + "/shared/held", "")
        wait_for(folder + "/shared/tried")
    write(folder + "/shared/released", "")
    wait_for(folder + "/shared/done")
    return rows


def second(folder: str) -> List[Row]:
    """Another pod, as another user of the same group."""
    os.umask(int(os.environ["REFIT_UMASK"], 8))
    rows = []
    advice = "mount it with locks that reach other nodes: NFS 4.1, not 3 and not nolock"
    wait_for(folder + "/shared/held")
    with open(folder + "/shared/file") as file:
        seen = file.read() == "one\n"
    rows.append((OK if seen else FAIL, "seen by a second pod", "what the first one wrote", ""))
    with open(folder + "/shared/lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rows.append((FAIL, "locks", "two pods held one lock at once", advice))
        except OSError as error:
            held = error.errno in (errno.EAGAIN, errno.EACCES)
            text = "a lock keeps the second pod out" if held else "flock: %s" % error.strerror
            rows.append((OK if held else FAIL, "locks", text, "" if held else advice))
        write(folder + "/shared/tried", "")
        wait_for(folder + "/shared/released")
    try:
        with open(folder + "/shared/file", "a") as file:
            file.write("two\n")
        os.rename(folder + "/shared/file", folder + "/shared/renamed")
        rows.append((OK, "group", "another user of the group changes and renames the files", ""))
    except OSError as error:
        text = "another user of the group cannot change what a stage wrote: %s" % error.strerror
        rows.append((FAIL, "group", text, "security.umask, security.fs_group; NFS: no all_squash"))
    write(folder + "/shared/done", "")
    return rows


# --- room -------------------------------------------------------------------------------------------------------------


def run_bytes(workspace: str) -> List[int]:
    """Bytes of each of the newest runs of a workspace's pipelines."""
    runs = []
    for pipeline in os.listdir(workspace):
        folder = os.path.join(workspace, pipeline, "runs")
        if os.path.isdir(folder):
            runs += [os.path.join(folder, name) for name in os.listdir(folder)]
    runs = sorted((r for r in runs if os.path.isdir(r)), key=os.path.getmtime)[-NEWEST:]
    return [sum(file_bytes(os.path.join(d, n)) for d, _, names in os.walk(run) for n in names) for run in runs]


def file_bytes(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:  # a run is at work
        return 0


def room(workspace: str) -> Row:
    """Free space, and how many runs like the newest it has room for."""
    free = shutil.disk_usage(workspace).free
    text = "%.1f GiB free" % (free / GIB)
    advice = "refit gc --dry-run; or enlarge the volume"
    sizes = run_bytes(workspace)
    if not sizes or not sum(sizes):
        text += "; no run yet to forecast from"
        return (OK, "room", text, "") if free > 2 * GIB else (WARN, "room", text, advice)
    mean = sum(sizes) / float(len(sizes))
    fits = int(free / mean)
    text += "; the last %d runs took %.2f GiB each, so %s more fit" % (len(sizes), mean / GIB, "{:,}".format(fits))
    level = FAIL if fits < 1 else WARN if fits < 10 else OK
    return (level, "room", text, "" if level == OK else advice)


def disk(workspace: str, folder: str) -> List[Row]:
    row = room(workspace)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        return [row, (WARN, "tidying", "%s stays: %s" % (folder, error.strerror), "remove it by hand")]
    return [row]


# --- Triton -----------------------------------------------------------------------------------------------------------


def ask(url: str, post: bool = False, key: str = "") -> int:
    request = urllib.request.Request(url, data=b"{}" if post else None)  # noqa: S310  always http
    if key:
        request.add_header(CONTROL_HEADER, key)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def triton(url: str, repository: str) -> List[Row]:
    return [*control(url), beside(repository)]


def control(url: str) -> List[Row]:
    key = next((v for k, v in os.environ.items() if k.startswith("REFIT_SECRET_")), "")
    try:
        status = ask(url + "/v2/health/ready")
        if status != 200:
            return [(FAIL, "answers", "%s/v2/health/ready says %d" % (url, status), "kubectl logs of Triton's pods")]
        opened = ask(url + "/v2/repository/index", post=True)
        allowed = ask(url + "/v2/repository/index", post=True, key=key)
    except OSError as error:
        why = getattr(error, "reason", error)
        fix = "kubectl get endpoints, networkpolicies; correct triton.url"
        return [(FAIL, "answers", "%s cannot be reached: %s" % (url, why), fix)]
    rows = [(OK, "answers", "%s is ready" % url, "")]
    if opened != 403:
        level = FAIL if key else WARN
        text = "without the key the control API says %d, not 403: whoever reaches Triton can load models" % opened
        rows.append((level, "control", text, "--http-restricted-api, as the chart gives it to Triton"))
    elif allowed != 200:
        text = "with the key of the Secret the control API says %d" % allowed
        rows.append(
            (FAIL, "control", text, "kubectl rollout restart of Triton's Deployment, after a change of the key")
        )
    else:
        rows.append((OK, "control", "refused without the key, open with it", ""))
    return rows


def beside(repository: str) -> Row:
    """A release stages beside the repository and renames into it: one volume, writable."""
    if not os.path.isdir(repository):
        return (FAIL, "models", "%s is not there" % repository, "correct triton.repository and volumes.models")
    aside = os.path.join(os.path.dirname(repository), ".refit-doctor-%d" % time.time())
    inside = os.path.join(repository, os.path.basename(aside))
    try:
        os.mkdir(aside)
        os.rename(aside, inside)
        os.rmdir(inside)
    except OSError as error:
        text = "a release cannot write beside and rename into %s: %s" % (repository, error.strerror)
        return (FAIL, "models", text, "security.fs_group, the claim of volumes.models")
    return (OK, "models", "a release can write beside %s and rename into it" % repository, "")


MODES: Dict[str, Callable[..., List[Row]]] = {
    "image": image,
    "first": first,
    "second": second,
    "triton": triton,
    "disk": disk,
}


def main(argv: List[str]) -> int:
    rows: Any
    try:
        rows = MODES[argv[0]](*argv[1:])
    except OSError as error:
        rows = [(FAIL, argv[0], str(error), "")]
    text = json.dumps(rows)
    log: Optional[str] = os.environ.get("REFIT_TERMINATION_LOG")
    if log:
        with open(log, "w") as file:
            file.write(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
