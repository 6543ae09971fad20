"""No process is left behind, whatever it did to hide and however its owner ended. Real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refit.embedded.processes import Child, processes

ROOT = Path(__file__).resolve().parents[2]

# A service that starts a grandchild in a session of its own and lets its parent die: a classic daemon.
DAEMON = """
import os, subprocess, sys, time
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1] + "/daemon", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.waitpid(middle, 0)
open(sys.argv[1] + "/service", "w").write(str(os.getpid()))
time.sleep(600)
"""

# An owner of such a service; what it does then, is said on its command line.
OWNER = """
import os, signal, sys, time
from pathlib import Path
from refit.embedded import processes
folder = Path(sys.argv[1])
processes.become_subreaper()
child = processes.Child("service", [sys.executable, "-c", sys.argv[2], str(folder)], folder / "log", os.environ, folder)
child.start()
said = [folder / "daemon", folder / "service"]
while not all(file.exists() and file.read_text() for file in said):
    time.sleep(0.02)
if sys.argv[3] == "wait":
    print("ready", flush=True)
    time.sleep(600)
processes.kill_rest([child])
print(len(processes.descendants(os.getpid())), flush=True)
"""


def alive(pid):
    return pid in processes()


def gone(*pids, seconds=20):
    until = time.monotonic() + seconds
    while any(alive(p) for p in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(alive(p) for p in pids)


def owner(tmp_path, what):
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), DAEMON, what],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def pids(tmp_path):
    return int((tmp_path / "service").read_text()), int((tmp_path / "daemon").read_text())


def test_a_daemon_of_a_service_is_found_and_killed(tmp_path):
    process = owner(tmp_path, "kill")
    out, _ = process.communicate(timeout=60)
    assert out.strip() == "0"
    assert gone(*pids(tmp_path), seconds=0)


def test_a_service_ends_with_its_owner_also_after_kill_9(tmp_path):
    process = owner(tmp_path, "wait")
    assert process.stdout.readline().strip() == "ready"
    service, daemon = pids(tmp_path)
    try:
        process.kill()
        process.wait()
        assert gone(service), "the kernel's signal did not end the service"
        assert alive(daemon), "this is why the launcher is a subreaper, too"
    finally:
        os.kill(daemon, signal.SIGKILL)


def test_the_log_of_the_time_before_is_kept(tmp_path):
    for text in ("first", "second"):
        child = Child("x", [sys.executable, "-c", f"print('{text}')"], tmp_path / "x.log", os.environ, tmp_path)
        child.start()
        child.process.wait()
    assert child.log_tail() == "second"
    assert (tmp_path / "x.log.1").read_text() == "first\n"
    assert not child.running()


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        Child("x", ["/nowhere/program"], tmp_path / "x.log", os.environ, tmp_path).start()


def test_every_process_has_its_parent():
    assert processes()[os.getpid()] == os.getppid()


def test_a_second_launcher_is_told_who_holds_the_place(tmp_path):
    hold = (
        "import json, sys, time\n"
        "from refit.embedded.launcher import Busy, only_one\n"
        "from refit.embedded.settings import Embedded\n"
        "try:\n"
        "    with only_one(Embedded.from_env()):\n"
        "        print('holding', flush=True)\n"
        "        time.sleep(float(sys.argv[1]))\n"
        "except Busy as exc: print(json.dumps(str(exc)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "REFIT_HOME": str(tmp_path), "AIRFLOW_PORT": "18080"}

    def launcher(seconds):
        argv = [sys.executable, "-c", hold, str(seconds)]
        return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True)

    first = launcher(600)
    assert first.stdout.readline().strip() == "holding"
    try:
        out, _ = launcher(0).communicate(timeout=60)
        assert f"pid {first.pid}, http://127.0.0.1:18080" in json.loads(out)
    finally:
        first.kill()
        first.wait()
    out, _ = launcher(0).communicate(timeout=60)
    assert out.strip() == "holding", "the kernel frees the lock of a killed holder"
