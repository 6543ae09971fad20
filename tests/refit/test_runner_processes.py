"""Signals, deaths and families: whatever ends the runner or its command, nothing of the stage stays alive."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.refit.runner_helpers import EDGES, RUNNER, Bench, alive, children_of, python, read_number, wait_for

# A command that starts a helper (in a session of its own when "away"), then sleeps. Both write their numbers.
FAMILY = """
import subprocess
helper = subprocess.Popen(
    [sys.executable, "-S", "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"],
    start_new_session="away" in {where!r})
open(path("helper"), "w").write(str(helper.pid))
open(path("command"), "w").write(str(os.getpid()))
{then}
"""
SLEEP = "time.sleep(60)"
DEAF = (
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen(path('command'), 'w').write(str(os.getpid()))\ntime.sleep(60)"
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_stage_in_order(bench: Bench, what: signal.Signals) -> None:
    code = """
    def stop(*_):
        say("saving"); open(path("checkpoint"), "w").write("1"); sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    open(path("command"), "w").write(str(os.getpid()))
    time.sleep(60)
    """
    process = bench.start(bench.request(code))
    command = read_number(bench.out / "command")
    process.send_signal(what)
    done = bench.finish(process)
    assert (done.code, done.outcome, done.reason) == (143, "cancelled", f"stopped by {what.name}")
    assert done.result["exit_code"] == 143
    assert (bench.out / "checkpoint").exists()
    assert "saving" in done.result["log_tail"]
    assert not alive(command)


def test_a_success_that_comes_after_the_signal_is_no_success(bench: Bench) -> None:
    code = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    open(path("command"), "w").write(str(os.getpid()))
    time.sleep(60)
    """
    process = bench.start(bench.request(code))
    read_number(bench.out / "command")
    process.terminate()
    assert bench.finish(process).outcome == "cancelled"


@pytest.mark.parametrize("version", EDGES)
def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(bench: Bench, version: str) -> None:
    process = bench.start(bench.request(DEAF, grace_seconds=0.3), by=python(version))
    command = read_number(bench.out / "command")
    process.terminate()
    done = bench.finish(process)
    assert (done.code, done.outcome, done.result["exit_code"]) == (143, "cancelled", -signal.SIGKILL)
    assert "killing it" in done.output
    assert not alive(command)


def test_a_second_interrupt_means_now(bench: Bench) -> None:
    process = bench.start(bench.request(DEAF, grace_seconds=600))
    command = read_number(bench.out / "command")
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "stopping" in (bench.folder / "log.txt").read_text(), "the first interrupt is taken")
    process.send_signal(signal.SIGINT)
    assert bench.finish(process).outcome == "cancelled"
    assert not alive(command)


@pytest.mark.parametrize("version", EDGES)
@pytest.mark.parametrize("where", ["near", "away"])
def test_kill_9_of_the_runner_ends_command_and_family(bench: Bench, version: str, where: str) -> None:
    process = bench.start(bench.request(FAMILY.format(where=where, then=SLEEP)), by=python(version))
    command, helper = read_number(bench.out / "command"), read_number(bench.out / "helper")
    assert alive(command)
    assert alive(helper)
    wait_for(lambda: len(list(children_of(process.pid))) == 2, "command and guard run")
    guard = next(pid for pid in children_of(process.pid) if pid != command)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not alive(command), "the command is gone")
    wait_for(lambda: not alive(helper), "its helper is gone")
    wait_for(lambda: not alive(guard), "the guard is gone")
    assert bench.result() is None
    assert json.loads((bench.folder / "runner.pid").read_text())["command"] == command


@pytest.mark.parametrize("where", ["near", "away"])
def test_what_a_finished_command_leaves_is_ended(bench: Bench, where: str) -> None:
    request = bench.request(FAMILY.format(where=where, then=""), outputs=[{"name": "h", "path": "helper"}])
    done = bench.run(request)
    assert done.outcome == "succeeded", done.output
    assert "1 processes that the command left running were ended" in done.output
    assert not alive(read_number(bench.out / "helper"))


@pytest.mark.parametrize("where", ["near", "away"])
def test_a_family_deaf_to_sigterm_is_ended_with_its_parent(bench: Bench, where: str) -> None:
    process = bench.start(bench.request(FAMILY.format(where=where, then=SLEEP), grace_seconds=0.3))
    command, helper = read_number(bench.out / "command"), read_number(bench.out / "helper")
    process.terminate()
    assert bench.finish(process).outcome == "cancelled"
    assert not alive(command)
    assert not alive(helper)


def test_an_orphan_with_another_environment_and_session_is_ended(bench: Bench) -> None:
    code = """
    import subprocess
    inner = "setsid sleep 60 & echo $! > %s" % path("orphan")
    subprocess.run(["sh", "-c", inner], env={"PATH": os.environ["PATH"]}, start_new_session=True)
    """
    assert bench.run(bench.request(code)).outcome == "succeeded"
    assert not alive(read_number(bench.out / "orphan"))


def test_a_child_that_ends_soon_after_its_parent_is_let_finish(bench: Bench) -> None:
    code = """
    if os.fork() == 0:
        time.sleep(0.05); open(path("late"), "w").write("done"); say("late words"); os._exit(0)
    """
    done = bench.run(bench.request(code, outputs=[{"name": "late", "path": "late"}]))
    assert done.outcome == "succeeded", done.output
    assert done.result["log_tail"] == ["late words"]


def test_the_stage_ends_when_the_parent_is_gone(bench: Bench) -> None:
    parent = subprocess.Popen(["sleep", "60"])
    process = bench.start(bench.request(DEAF.split("\n", 1)[1]), arguments=("--parent", str(parent.pid)))
    command = read_number(bench.out / "command")
    parent.kill()  # a zombie until we wait for it: gone all the same
    done = bench.finish(process)
    parent.wait()
    assert (done.code, done.outcome) == (143, "cancelled")
    assert done.reason == f"stopped because the process that started it ({parent.pid}) is gone"
    assert not alive(command)


def test_a_parent_that_was_gone_before_starts_nothing(bench: Bench) -> None:
    parent = subprocess.Popen(["true"])
    parent.wait()
    done = bench.run(bench.request("open(path('started'), 'w')"), arguments=("--parent", str(parent.pid)))
    assert (done.code, done.outcome) == (143, "cancelled")
    assert not (bench.out / "started").exists()


def test_the_reader_of_the_output_may_leave(bench: Bench) -> None:
    code = (
        "open(path('command'), 'w').write('1')\nfor i in range(300): say('x' * 1000)\nopen(path('end'), 'w').write('1')"
    )
    process = bench.start(bench.request(code, outputs=[{"name": "end", "path": "end"}]))
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert bench.result()["outcome"] == "succeeded"
    assert (bench.folder / "log.txt").stat().st_size > 300_000


@pytest.mark.skipif(
    not shutil.which("unshare") or os.geteuid() != 0, reason="a process namespace needs root and unshare"
)
def test_as_process_1_it_reaps_and_answers_signals(bench: Bench) -> None:
    code = """
    import subprocess
    for _ in range(5):
        subprocess.run([sys.executable, "-S", "-c", "import os, subprocess; subprocess.Popen(['true'])"])
    time.sleep(0.5)
    stats = [open("/proc/%s/stat" % pid).read() for pid in os.listdir("/proc") if pid.isdigit()]
    states = [stat.rpartition(")")[2].split()[0] for stat in stats]
    say("runner is", os.getppid(), "zombies", states.count("Z"))
    open(path("command"), "w").write("1")
    time.sleep(60)
    """
    outside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*outside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("process namespaces are not allowed here")
    process = bench.start(bench.request(code), before=tuple(outside))
    read_number(bench.out / "command")
    runner = next(children_of(process.pid))
    os.kill(runner, signal.SIGTERM)
    done = bench.finish(process)
    assert done.outcome == "cancelled"
    assert "runner is 1 zombies 0" in done.output


# --- two starts -----------------------------------------------------------------------------------------------------


def test_the_newest_of_two_starts_wins(bench: Bench) -> None:
    code = """
    open(path("command"), "w").write(str(os.getpid()))
    while not os.path.exists(path("go")): time.sleep(0.02)
    """
    request = bench.request(code)
    first = bench.start(request)
    command = read_number(bench.out / "command")
    second = bench.start(request)
    assert first.wait(timeout=60) == 143
    assert not alive(command)
    (bench.out / "go").write_text("")
    done = bench.finish(second)
    assert done.outcome == "succeeded", done.output
    assert (done.result["attempt"], done.result["resumed"]) == (2, True)
    assert f"another runner (process {first.pid}) is at work on this stage; ending it" in done.output
    assert json.loads((bench.folder / "result.1.json").read_text())["outcome"] == "cancelled"
    first.communicate()


def test_many_starts_at_once_run_one_after_the_other(bench: Bench) -> None:
    code = """
    other = os.path.exists(path("busy"))
    open(path("busy"), "w").close()
    time.sleep(0.05)
    os.unlink(path("busy"))
    sys.exit(5 if other else 0)
    """
    starts = [bench.start(bench.request(code, resume=False)) for _ in range(4)]
    for process in starts:
        process.communicate(timeout=60)
    assert {p.returncode for p in starts} <= {0, 143}
    assert bench.result()["outcome"] == "succeeded"


def test_leftovers_of_a_killed_runner_are_ended_first(bench: Bench) -> None:
    """Without its guard (killed too), the family of the first start is found by the second."""
    request = bench.request(FAMILY.format(where="away", then=SLEEP))
    first = bench.start(request)
    command, helper = read_number(bench.out / "command"), read_number(bench.out / "helper")
    wait_for(lambda: len(list(children_of(first.pid))) == 2, "command and guard run")
    guard = next(pid for pid in children_of(first.pid) if pid != command)
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot note the guard's end
    os.kill(guard, signal.SIGKILL)
    first.kill()
    first.communicate()
    wait_for(lambda: not alive(command), "the command is gone")
    assert alive(helper)
    done = bench.run(bench.request("say('second')"))
    assert done.outcome == "succeeded"
    assert "ending the processes that an earlier start of this stage left behind" in done.output
    assert (done.result["attempt"], done.result["resumed"]) == (2, True)
    assert not alive(helper)


def test_a_runner_elsewhere_is_named_and_left_alone(bench: Bench) -> None:
    bench.run_dir.mkdir(parents=True)
    bench.folder.mkdir()
    (bench.folder / "runner.pid").write_text(json.dumps({"pid": 1, "where": "another boot", "host": "node-7"}))
    lock = (bench.run_dir / ".03-train.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    source = RUNNER.read_text()
    assert "\nLOCK_SECONDS = 10 " in source
    changed = bench.root / "runner.py"
    changed.write_text(source.replace("\nLOCK_SECONDS = 10 ", "\nLOCK_SECONDS = 0.3 "))  # nobody waits 10 s in a test
    request = bench.root / "given.json"
    request.write_text(json.dumps(bench.request("say('started')")))
    command = [sys.executable, str(changed), "--request", str(request)]
    with lock:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "error: toolkit_error: another runner is at work on this stage, on node-7; end it first" in done.stdout
    assert "started" not in done.stdout.splitlines()


# --- memory ---------------------------------------------------------------------------------------------------------


def test_peak_memory_counts_the_whole_family(bench: Bench) -> None:
    code = """
    block = bytearray(60_000_000)
    if os.fork() == 0:
        own = bytearray(60_000_000); time.sleep(1.6); os._exit(0)
    time.sleep(1.6)
    """
    peak = bench.run(bench.request(code)).result["peak_memory_bytes"]
    assert 120_000_000 < peak < 170_000_000  # 180 and more if the shared block were counted twice


def _memory_group() -> Path | None:
    """A fresh control group with 64 MiB, version 1 or 2, where this machine lets us make one."""
    name = f"refit-test-{os.getpid()}-{time.monotonic_ns()}"
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        try:
            (root / name).mkdir()
            (root / name / limit).write_text(str(64 << 20))
        except OSError:
            if (root / name).is_dir():
                (root / name).rmdir()
            continue
        return root / name
    return None


def test_the_kernels_word_on_memory_is_believed(bench: Bench) -> None:
    """A worker is killed by the kernel; the command itself ends with a plain 1, as data loaders do."""
    group = _memory_group()
    if group is None:
        pytest.skip("control groups cannot be made here")
    code = """
    pid = os.fork()
    if pid == 0:
        block = b"".join(os.urandom(1 << 20) for _ in range(200)); os._exit(0)
    say("worker ended with", os.waitpid(pid, 0)[1]); sys.exit(1)
    """
    enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    try:
        done = bench.run(bench.request(code), before=("sh", "-c", enter, "sh"))
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()
    assert (done.code, done.outcome) == (1, "out_of_memory"), done.output
    assert done.reason == "the kernel ended 1 of its processes for want of memory (limit 64 MiB)"
    assert "more memory" in done.result["advice"]
