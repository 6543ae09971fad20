"""The local runtime: a stage as a subprocess, its lines, its result, and its end when somebody stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit.outcome import Outcome, Result
from refit.runtime.local import REPOSITORY, WAY_OUT, EnvironmentMissing, StageProcess, interpreter
from tests.refit.runner_helpers import Bench, alive, read_number, wait_for

PYTHON = Path(sys.executable)
SLEEP = "open(path('command'), 'w').write(str(os.getpid()))\ntime.sleep(60)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


def run(request: dict[str, Any], **how: Any) -> tuple[Result, list[str]]:
    lines: list[str] = []
    result = StageProcess(request=request, python=PYTHON, on_line=lines.append, **how).run()
    return result, lines


def test_a_stage_by_its_request(bench: Bench) -> None:
    request = bench.request("say('größe'); open(path('m'), 'w').write('1')", outputs=[{"name": "m", "path": "m"}])
    request["files"] = {"big.yaml": "x" * 1_000_000}  # more than a variable may hold
    result, lines = run(request)
    assert result == Result.read(bench.folder / "result.json")
    assert (result.outcome, list(result.outputs), list(result.log_tail)) == (Outcome.SUCCEEDED, ["m"], ["größe"])
    assert "größe" in lines
    assert lines[-1].startswith("refit: train: succeeded after")


def test_a_stage_by_its_plan(bench: Bench) -> None:
    plan = bench.root / "plan.json"
    plan.write_text(json.dumps({"stages": [bench.request("say(1)")]}))
    lines: list[str] = []
    result = StageProcess(plan=plan, stage="train", python=PYTHON, on_line=lines.append).run()
    assert result.succeeded
    assert StageProcess(plan=plan, stage="train", python=PYTHON, on_line=lines.append).run() == result  # reused
    missing = StageProcess(plan=plan, stage="trian", python=PYTHON, on_line=lines.append).run()
    assert (missing.outcome, missing.reason) == ("bad_spec", f"{plan}: no stage 'trian'; known: train")


def test_a_failure_is_a_result(bench: Bench) -> None:
    result, lines = run(bench.request("say('error: bad boxes'); sys.exit(3)", exit_codes={"3": "bad_data"}))
    assert (result.outcome, result.reason, result.exit_code, result.retryable) == ("bad_data", "bad boxes", 3, False)
    assert [line for line in lines if "bad boxes" in line] == ["error: bad boxes"], "the caller tells the rest"
    assert "error: bad_data: bad boxes" in (bench.folder / "log.txt").read_text()


@pytest.mark.parametrize("plan", ["no file", "[1]", '{"stages": 5}', "{"])
def test_a_bad_plan_is_a_result(tmp_path: Path, plan: str) -> None:
    path = tmp_path / "plan.json"
    if plan != "no file":
        path.write_text(plan)
    result = StageProcess(plan=path, stage="train", python=PYTHON, on_line=lambda line: None).run()
    assert result.outcome is Outcome.BAD_SPEC
    assert str(path) in result.reason


def test_an_interpreter_that_is_not_there_is_a_result(bench: Bench) -> None:
    result = StageProcess(request=bench.request(""), python=bench.root / "python", on_line=print).run()
    assert result.outcome is Outcome.TOOLKIT_ERROR
    assert result.reason == f"{bench.root / 'python'} cannot be started: No such file or directory"


def test_what_to_run_must_be_said_once(bench: Bench) -> None:
    for wrong in (
        {},
        {"plan": bench.root},
        {"stage": "x", "request": {}},
        {"plan": bench.root, "stage": "x", "request": {}},
    ):
        with pytest.raises(ValueError, match="give plan and stage, or request"):
            StageProcess(python=PYTHON, **wrong)  # type: ignore[arg-type]
    process = StageProcess(request=bench.request("pass"), python=PYTHON, on_line=lambda line: None)
    process.run()
    with pytest.raises(RuntimeError, match="one start"):
        process.run()


def test_an_old_result_is_not_taken_for_the_answer(bench: Bench) -> None:
    run(bench.request("pass"))
    request = bench.request("pass", outputs=[{"name": "m"}])  # cannot be used: the runner does not touch the folder
    result, _ = run(request)
    assert result.outcome is Outcome.BAD_SPEC
    assert result.reason == "request: outputs.m.path is missing"


# --- environment ----------------------------------------------------------------------------------------------------


def test_the_way_to_ngc_behind_a_proxy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both spellings, as curl and Python's urllib have them; its password is in no line that the stage prints."""
    address = "http://me:a-pass-word@proxy.example:3128"
    named = {"HTTPS_PROXY": address, "https_proxy": address, "NO_PROXY": ".svc", "SSL_CERT_FILE": "/etc/ca.pem"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    code = "json.dump(dict(os.environ), open(path('env.json'), 'w')); say(os.environ['HTTPS_PROXY'])"
    result, lines = run(bench.request(code))
    assert result.outcome == "succeeded"
    seen = json.loads((bench.out / "env.json").read_text())
    assert {name: seen.get(name) for name in named} == named
    assert "http://me:***@proxy.example:3128" in lines
    assert not [line for line in lines if "a-pass-word" in line]


def test_the_stage_sees_a_clean_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "DATABASE_URL", "AWS_TOKEN", "PYTHONSTARTUP", "REFIT_REQUEST"):
        monkeypatch.setenv(name, "secret stuff")
    monkeypatch.setenv("REFIT_WORKSPACE", "/w")
    monkeypatch.setenv("REFIT_SECRET_OTHER", "not for this stage")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    code = "json.dump(dict(os.environ), open(path('env.json'), 'w'))"
    run(bench.request(code), env={"EXTRA": "1", "REFIT_HOME": "/h"})
    env = json.loads((bench.out / "env.json").read_text())
    assert env.keys() <= {
        "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "CUDA_VISIBLE_DEVICES", "EXTRA", "PYTHONPATH",
        "PYTHONUNBUFFERED", *WAY_OUT, *(name for name in env if name.startswith("REFIT_")),
    }  # fmt: skip
    assert (env["PYTHONPATH"], env["REFIT_WORKSPACE"], env["REFIT_HOME"], env["EXTRA"]) == (
        str(REPOSITORY),
        "/w",
        "/h",
        "1",
    )
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert not {"REFIT_REQUEST", "REFIT_SECRET_OTHER", "REFIT_TERMINATION_LOG"} & env.keys()


def secret_file(bench: Bench, mode: int) -> dict[str, str]:
    folder = bench.root / "home" / "secrets"
    folder.mkdir(parents=True)
    (folder / "KEY").write_text("from the file\n")
    (folder / "KEY").chmod(mode)
    return {"REFIT_HOME": str(bench.root / "home")}


def test_a_secret_comes_from_a_variable_else_from_its_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    home = secret_file(bench, 0o600)
    monkeypatch.delenv("REFIT_SECRET_KEY", raising=False)
    code = "open(path('got'), 'w').write(os.environ['K'])"
    how = {"secrets": ["KEY", "NOT_SET"], "env": {"K": "{secret:KEY}"}}
    assert run(bench.request(code, **how), env=home)[0].succeeded
    assert (bench.out / "got").read_text() == "from the file"
    monkeypatch.setenv("REFIT_SECRET_KEY", "from the variable")
    assert run(bench.request(code, key="b" * 64, **how), env=home)[0].succeeded
    assert (bench.out / "got").read_text() == "from the variable"


def test_a_secret_that_others_can_read_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    home = secret_file(bench, 0o640)
    monkeypatch.delenv("REFIT_SECRET_KEY", raising=False)
    result, lines = run(bench.request("pass", secrets=["KEY"]), env=home)
    path = bench.root / "home" / "secrets" / "KEY"
    assert (result.outcome, result.reason) == ("bad_spec", f"the secret {path} can be read by others: chmod 600 {path}")
    assert lines == []


def test_interpreters_of_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_ENVS", str(tmp_path))
    with pytest.raises(
        EnvironmentMissing, match=r"environment 'cpu' has no Python at .*/cpu/bin/python: run `sh bin/setup cpu`"
    ):
        interpreter("cpu")
    path = tmp_path / "cpu" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.symlink_to(sys.executable)
    assert interpreter("cpu") == path  # not resolved: a venv is known by its own path
    monkeypatch.delenv("REFIT_ENVS")
    monkeypatch.setenv("REFIT_HOME", str(tmp_path / "home"))
    with pytest.raises(EnvironmentMissing, match=str(tmp_path / "home" / "envs")):
        interpreter("cpu")


# --- stopping -------------------------------------------------------------------------------------------------------


def in_thread(process: StageProcess) -> tuple[threading.Thread, list[Result]]:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(process.run()))
    thread.start()
    return thread, results


@pytest.mark.parametrize("code", [SLEEP, DEAF])
def test_stop_from_another_thread(bench: Bench, code: str) -> None:
    process = StageProcess(request=bench.request(code, grace_seconds=0.3), python=PYTHON, on_line=lambda line: None)
    thread, results = in_thread(process)
    command = read_number(bench.out / "command")
    process.stop()
    assert not alive(command)
    thread.join(timeout=60)
    assert (results[0].outcome, results[0].reason) == ("cancelled", "stopped by SIGTERM")
    process.stop()  # again: nothing happens


def test_stop_without_patience_kills_the_runner_and_the_command_goes_too(bench: Bench) -> None:
    process = StageProcess(request=bench.request(DEAF, grace_seconds=600), python=PYTHON, on_line=lambda line: None)
    thread, results = in_thread(process)
    command = read_number(bench.out / "command")
    process.stop(grace=0)
    thread.join(timeout=60)
    wait_for(lambda: not alive(command), "the command is gone")
    assert (results[0].outcome, results[0].reason) == ("cancelled", "the runner ended without a result (SIGKILL)")


def test_stop_before_the_start(bench: Bench) -> None:
    process = StageProcess(request=bench.request("pass"), python=PYTHON, on_line=print)
    process.stop()
    assert process.run().outcome is Outcome.CANCELLED
    assert not bench.folder.exists()


def test_an_error_of_on_line_stops_the_stage(bench: Bench) -> None:
    def on_line(line: str) -> None:
        if line == "ready":
            raise BrokenPipeError

    code = "open(path('command'), 'w').write(str(os.getpid()))\nsay('ready')\ntime.sleep(60)"
    with pytest.raises(BrokenPipeError):
        StageProcess(request=bench.request(code), python=PYTHON, on_line=on_line).run()
    assert not alive(int((bench.out / "command").read_text()))


STARTER = """
    import json, pathlib, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    from refit.runtime.local import StageProcess
    process = StageProcess(request=json.load(open(sys.argv[1])), python=pathlib.Path(sys.executable))
    {handler}
    try: print("outcome", process.run().outcome, flush=True)
    except KeyboardInterrupt: print("interrupted", flush=True); sys.exit(130)
"""
CHATTY = "open(path('command'), 'w').write(str(os.getpid()))\nwhile True: say('x' * 1000)"


def start(bench: Bench, code: str, handler: str = "") -> subprocess.Popen[str]:
    file = bench.root / "given.json"
    file.write_text(json.dumps(bench.request(code)))
    script = textwrap.dedent(STARTER).format(handler=handler)
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (bench.root / "output").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(file)], stdout=output, stderr=output, env=env, text=True
        )


@pytest.mark.parametrize("code", [SLEEP, CHATTY])
def test_stop_inside_a_signal_handler_of_the_waiting_thread(bench: Bench, code: str) -> None:
    """As Airflow's on_kill does it; the pipe must not fill up meanwhile."""
    starter = start(bench, code, "signal.signal(signal.SIGTERM, lambda *_: process.stop())")
    command = read_number(bench.out / "command")
    starter.terminate()
    assert starter.wait(timeout=60) == 0
    assert (bench.root / "output").read_text().endswith("outcome cancelled\n")
    assert bench.result()["reason"] == "stopped by SIGTERM"
    assert not alive(command)


def test_ctrl_c_stops_the_stage(bench: Bench) -> None:
    starter = start(bench, SLEEP)
    command = read_number(bench.out / "command")
    starter.send_signal(signal.SIGINT)
    assert starter.wait(timeout=60) == 130
    assert not alive(command)
    assert bench.result()["outcome"] == "cancelled"


def test_kill_9_of_the_starter_ends_the_stage(bench: Bench) -> None:
    starter = start(bench, SLEEP)
    command = read_number(bench.out / "command")
    starter.kill()
    starter.wait()
    wait_for(lambda: not alive(command), "the command is gone")
    wait_for(bench.result, "the result is written")
    assert bench.result()["reason"] == f"stopped because the process that started it ({starter.pid}) is gone"
