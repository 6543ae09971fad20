"""The runner's main road: a request in, a proven result out, on every Python it must run on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refit.outcome import Outcome, Result
from tests.refit.runner_helpers import RUNNER, VERSIONS, Bench, python

GOOD = """
for epoch in (1, 2, 3):
    kpi = {"val_mAP50": epoch / 10}
    note(status="RUNNING", epoch=epoch, max_epoch=3, loss=1 / epoch, eta="0:00:0%d" % (3 - epoch), kpi=kpi)
note(status="SUCCESS", kpi={"mAP": "0.5", "mAP50": 0.75, "name": "x"}, categorical={"AP50": {"RBC": 0.8, "WBC": 0.7}})
open(path("model.pth"), "w").write("x" * 2000)
json.dump({"parameters": 7}, open(path("summary.json"), "w"))
say("Größe: 5 µm")
"""
MODEL = {"name": "model", "path": "model.pth", "kind": "file", "min_bytes": 1000}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(tmp_path) as made:
        yield made


@pytest.mark.parametrize("version", VERSIONS)
def test_a_good_stage_on_every_python(bench: Bench, version: str) -> None:
    request = bench.request(
        GOOD, outputs=[MODEL], summary="summary.json", files={"deep/train.yaml": "out: {out}\nrest: {other} {}\n"}
    )
    done = bench.run(request, by=python(version))
    assert (done.code, done.outcome) == (0, "succeeded"), done.output
    result = done.result
    assert result["metrics"] == {
        "val_mAP50": 0.3,
        "mAP": 0.5,
        "mAP50": 0.75,
        "AP50/RBC": 0.8,
        "AP50/WBC": 0.7,
    }
    digest = hashlib.sha256(b"x" * 2000).hexdigest()
    assert result["outputs"] == {"model": {"path": "model.pth", "bytes": 2000, "sha256": digest}}
    assert result["progress"] == {"epoch": 3, "max_epoch": 3, "loss": pytest.approx(1 / 3)}
    assert result["summary"] == {"parameters": 7}
    assert (result["exit_code"], result["attempt"], result["resumed"]) == (0, 1, False)
    assert result["peak_memory_bytes"] > 1 << 20
    assert result["log_tail"] == ["Größe: 5 µm"]
    assert "epoch 3/3  loss 0.3333  eta 0:00:00" in done.output.splitlines()
    assert (bench.folder / "specs/deep/train.yaml").read_text() == f"out: {bench.out}\nrest: {{other}} {{}}\n"
    assert json.loads((bench.folder / "request.json").read_text()) == request
    log = (bench.folder / "log.txt").read_text()
    assert log in done.output
    assert "Größe" in log
    assert sorted(os.listdir(bench.folder)) == ["log.txt", "out", "request.json", "result.json", "specs"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_failing_stage_on_every_python(bench: Bench, version: str) -> None:
    done = bench.run(
        bench.request("say('error: no such class: WBC'); sys.exit(3)", exit_codes={"3": "bad_data"}), by=python(version)
    )
    assert (done.code, done.outcome, done.reason) == (2, "bad_data", "no such class: WBC")
    assert done.output.count("Traceback") == 0
    assert f"error: bad_data: {done.reason}" in done.output


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.13"])
def test_names_beyond_ascii_in_a_plain_locale(tmp_path: Path, version: str) -> None:
    bench = Bench(tmp_path / "Ünïcode 路径")
    bench.root.mkdir()
    request = bench.request(
        'open(path("modèle.txt"), "w").write(os.environ["WORD"])',
        env={"WORD": "naïve"},
        files={"spéc.yaml": "ü"},
        outputs=[{"name": "model", "path": "*.txt"}],
    )
    request["argv"][1] = "-Xutf8" if version != "3.6" else "-B"  # the command's own affair; 3.6 has no such switch
    if version == "3.6":
        request["argv"][3] = (
            request["argv"][3].replace("modèle.txt", "model.txt").replace('os.environ["WORD"]', '"naive"')
        )
    done = bench.run(request, by=python(version), env={"LC_ALL": "C", "LANG": "C"})
    assert done.outcome == "succeeded", done.output
    assert (bench.folder / "specs" / "spéc.yaml").read_text(encoding="utf-8") == "ü"
    if version != "3.6":
        assert done.result["outputs"]["model"]["path"] == "modèle.txt"
        assert (bench.out / "modèle.txt").read_bytes() == "naïve".encode()


def test_the_result_is_what_refit_reads(bench: Bench) -> None:
    done = bench.run(bench.request(GOOD, outputs=[MODEL]))
    whole = Result.read(done.folder / "result.json")
    compact = Result.from_json(bench.compact.read_bytes())
    assert whole == compact
    assert (whole.outcome, whole.succeeded, whole.retryable) == (Outcome.SUCCEEDED, True, False)


def test_the_command_lives_in_a_clean_corner(bench: Bench) -> None:
    code = """
    found = [dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid(), sys.stdin.read()]
    json.dump(found, open(path("env.json"), "w"))
    """
    secrets = {"REFIT_SECRET_ONE": "hunter-2-one", "REFIT_SECRET_TWO": "hunter-2-two", "REFIT_HOME": "/h"}
    request = bench.request(code, env={"KEY": "<{secret:ONE}>", "WHERE": "{stage}"}, secrets=["ONE"])
    bench.run(request, env=secrets)
    env, cwd, leads, stdin = json.loads((bench.out / "env.json").read_text())
    assert (env["KEY"], env["WHERE"]) == ("<hunter-2-one>", str(bench.folder))
    names = {name for name in env if name.startswith("REFIT_")}
    assert names == {"REFIT_HOME", "REFIT_ATTEMPT_ID"}
    assert (cwd, leads, stdin) == (str(bench.folder), True, "")


def test_inputs_come_from_the_upstream_result(bench: Bench) -> None:
    upstream = _upstream(bench)
    code = 'open(path("args.json"), "w").write(json.dumps(sys.argv[1:]))'
    request = bench.request(code, inputs={"augment": str(upstream)}, files={"s": "{input:augment.data}"})
    request["input_keys"] = {"augment": "k1"}
    request["argv"] += ["{input:augment}", "{input:augment.data}/x", "{run}", "{workspace}", "{specs}/s"]
    done = bench.run(request)
    assert done.outcome == "succeeded", done.output
    arguments = json.loads((bench.out / "args.json").read_text())
    data = str(upstream / "out" / "data.bin")
    folders = [bench.run_dir, bench.root, bench.folder / "specs" / "s"]
    assert arguments == [str(bench.out), str(upstream / "out"), data + "/x", *map(str, folders)]
    assert (bench.folder / "specs" / "s").read_text() == data


def _upstream(bench: Bench, outcome: str = "succeeded") -> Path:
    folder = bench.run_dir / "02-augment"
    (folder / "out").mkdir(parents=True)
    (folder / "out" / "data.bin").write_bytes(b"12345")
    entry = {"path": "data.bin", "bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
    result = {"schema": 1, "name": "augment", "key": "k1", "outcome": outcome, "outputs": {"data": entry}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(
    ("spoil", "outcome", "reason"),
    [
        ("no result", "toolkit_error", "result.json is missing"),
        ("failed", "toolkit_error", "its outcome is diverged"),
        ("gone", "toolkit_error", "data.bin) is gone"),
        ("grown", "toolkit_error", "has 6 bytes, not 5"),
        ("rerun", "toolkit_error", "holds another result than the one that this run was planned with"),
        ("stage", "bad_spec", "{input:prune}: no such input; known: augment"),
        ("output", "bad_spec", "{input:augment.model}: no such output of augment; known: data"),
    ],
)
def test_a_bad_input_is_named(bench: Bench, spoil: str, outcome: str, reason: str) -> None:
    upstream = _upstream(bench, "diverged" if spoil == "failed" else "succeeded")
    request = bench.request("say('started')", inputs={"augment": str(upstream)})
    match spoil:
        case "no result":
            (upstream / "result.json").unlink()
        case "gone":
            (upstream / "out" / "data.bin").unlink()
        case "grown":
            (upstream / "out" / "data.bin").write_bytes(b"123456")
        case "rerun":
            request["input_keys"] = {"augment": "k2"}
        case "stage":
            request["argv"].append("{input:prune}")
        case "output":
            request["argv"].append("{input:augment.model}")
    done = bench.run(request)
    assert done.outcome == outcome
    assert reason in done.reason
    assert "\nstarted" not in done.output


def _changed(**changes: Any) -> dict[str, Any]:
    return changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (_changed(schema=2), "schema 2 is not known"),
        (_changed(name=None), "name is missing"),
        (_changed(name=5), "name must be str, it is 5"),
        (_changed(argv=[]), "argv must be a list of texts"),
        (_changed(argv=["x", 1]), "argv must be a list of texts"),
        (_changed(env={"A": 1}), "env.A must be str, it is 1"),
        (_changed(files={"../x": ""}), "a name in files must be a relative path"),
        (_changed(files={"/etc/x": ""}), "a name in files must be a relative path"),
        (_changed(paths={"stage": "relative"}), "path of stage must be absolute"),
        (_changed(paths={"run": "/tmp"}), "paths.stage is missing"),
        (_changed(outputs=[{"name": "m"}]), "outputs.m.path is missing"),
        (_changed(outputs=[{"name": "m", "path": "a/../../b"}]), "outputs.m.path must be a relative path"),
        (_changed(outputs=[{"name": "m", "path": "m", "kind": "link"}]), "request: outputs.m.kind must be file or dir"),
        (_changed(outputs=[{"name": "m", "path": "m", "format": "tar"}]), "outputs.m.format must be one of"),
        (_changed(status="/s.json"), "status must be a relative path"),
        (_changed(timeout_seconds="1h"), "timeout_seconds must be float or int"),
        (_changed(timeout_seconds=True), "timeout_seconds must be float or int"),
        (_changed(watch={"loss_factor": "big"}), "watch.loss_factor must be"),
        (_changed(exit_codes={"9": "sad"}), "exit_codes.9: 'sad' is no outcome"),
        (_changed(publish="keys/x.json"), "path of publish must be absolute"),
        (_changed(progress="progress/x.json"), "path of progress must be absolute"),
        (_changed(name="\ud800"), "UTF-8 cannot say"),
        (_changed(grace_seconds=float("inf")), "UTF-8 cannot say"),
    ],
)
def test_a_bad_request_names_the_value(bench: Bench, changes: dict[str, Any], reason: str) -> None:
    done = bench.run(bench.request("say('started')", **changes))
    assert done.code == 2
    compact = json.loads(bench.compact.read_bytes())
    assert compact["outcome"] == "bad_spec"
    assert reason in compact["reason"]
    assert compact["reason"].count("request: ") == 1
    assert "Traceback" not in done.output
    assert not (bench.folder / "out").exists()


def test_null_means_not_given(bench: Bench) -> None:
    names = ("env", "files", "secrets", "inputs", "outputs", "status", "summary", "watch", "timeout_seconds", "publish")
    request = bench.request("pass") | dict.fromkeys((*names, "grace_seconds", "exit_codes", "resume"))
    assert bench.run(request).outcome == "succeeded"


@pytest.mark.parametrize("program", ["no-such-program", "/etc/passwd", "a\0b"])
def test_a_command_that_cannot_start(bench: Bench, program: str) -> None:
    done = bench.run(bench.request(argv=[program]))
    assert (done.code, done.outcome) == (2, "bad_spec")
    assert "cannot be started" in done.reason
    assert done.result["exit_code"] is None


# --- the command line -----------------------------------------------------------------------------------------------


def call(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(RUNNER), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        check=False,
    )


def test_the_stage_of_a_plan(bench: Bench) -> None:
    plan = bench.root / "plan.json"
    plan.write_text(json.dumps({"schema": 1, "stages": [bench.request("pass", name="bind"), bench.request("pass")]}))
    assert call("--plan", str(plan), "--stage", "train").returncode == 0
    assert bench.result()["name"] == "train"
    unknown = call("--plan", str(plan), "--stage", "trian")
    assert unknown.returncode == 2
    assert "no stage 'trian'; known: bind, train" in unknown.stdout


def test_the_request_by_variable_and_by_standard_input(bench: Bench) -> None:
    text = json.dumps(bench.request("say(sorted(k for k in os.environ if k.startswith('REFIT')))"))
    done = call(env={"REFIT_REQUEST": text})
    assert done.returncode == 0, done.stdout
    assert "'REFIT_ATTEMPT_ID'" in done.stdout
    assert "'REFIT_REQUEST'" not in done.stdout
    assert "reused" in call("--request", "-", stdin=text).stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        ([], "", "nothing to run"),
        (["--plan", "p.json"], "", "give --plan together with --stage"),
        (["--plan", "p.json", "--stage", "x", "--request", "r"], "", "give --plan together with --stage"),
        (["--request", "/no/such.json"], "", "/no/such.json cannot be read: No such file"),
        (["--request", "-"], "{", "- is not JSON"),
        (["--request", "-"], "[]", "- must hold a JSON object"),
    ],
)
def test_a_start_with_nothing_to_do_says_so_in_one_line(arguments: list[str], stdin: str, says: str) -> None:
    done = call(*arguments, stdin=stdin)
    assert done.returncode == 2
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_help_tells_the_exit_codes() -> None:
    shown = " ".join(call("--help").stdout.split())
    assert "Exit codes: 0 succeeded; 2 bad_spec, bad_data or rejected; 143 cancelled; 1 anything else." in shown


def test_an_unwritable_folder_is_said_in_one_line(bench: Bench) -> None:
    bench.run_dir.parent.mkdir()
    bench.run_dir.write_text("a file where the run's folder should be")
    done = bench.run(bench.request("pass"))
    assert done.code == 1
    compact = json.loads(bench.compact.read_bytes())
    assert compact["outcome"] == "toolkit_error"
    assert compact["reason"].startswith(f"cannot use the stage's folder {bench.folder}")
    assert "Traceback" not in done.output
