"""`make run`: services up, data in, the run shown live, its table, Triton's answer; then it serves until Ctrl-C.

    python -m refit.embedded [--pipeline FILE] [--data PATH] [--once]

Exit codes: 0 the run was good, 1 it failed or a service did, 2 bad input, 130 ended by Ctrl-C before the run was over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refit import pipeline as pipelines
from refit import plan as plans
from refit.config import ConfigError
from refit.embedded import airflow, data
from refit.embedded.api import Airflow, ApiError
from refit.embedded.data import DataError, Source
from refit.embedded.follow import DAG_PREFIX, ENDED, Follower, ended_by_hand
from refit.embedded.launcher import Busy, ServicesProcess, only_one
from refit.embedded.processes import catch_signals
from refit.embedded.settings import Embedded
from refit.embedded.view import View, choose
from refit.outcome import Outcome
from refit.pipeline import Pipeline
from refit.runtime import report
from refit.specs import SpecError

GOOD, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DAG_SECONDS = 120  # for a DAG to appear once everything is up
ARRIVAL_SECONDS = 90  # for the watcher to start a run; then one is started by hand
POLL = 0.5


class Trouble(RuntimeError):
    """What ends `make run`; the message is for the user."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make run", description="Runs a pipeline on this machine, with everything.")
    parser.add_argument("--pipeline", help="a file in specs/pipelines (default: specs/pipelines/demo.yaml)")
    parser.add_argument("--data", help="a folder of labelled images, read in place (default: the pipeline's source)")
    parser.add_argument("--once", action="store_true", help="end after the run, with its status as exit code")
    args = parser.parse_args(argv)
    catch_signals(_interrupt)
    try:
        place = Embedded.from_env()
        file = Path(os.path.abspath(args.pipeline or place.refit.pipelines / f"{data.DEMO}.yaml"))
        pipeline = load(place, file)
        place = data.allow(place, *_named_folders(pipeline, args.data))
        if pipeline.name != data.DEMO:
            data.source(place, pipeline, args.data)  # a missing folder is told before anything is started
        with only_one(place) as lock, choose() as view:
            return Session(place, pipeline, args.data, view, lock).run(args.once)
    except (SpecError, ConfigError, DataError) as exc:
        return _error(exc, BAD_INPUT)
    except Trouble as exc:
        return _error(exc, exc.code)
    except (Busy, ApiError) as exc:
        return _error(exc, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def load(place: Embedded, file: Path) -> Pipeline:
    """The pipeline of a file that Airflow can see. Raises SpecError and DataError."""
    folder = place.refit.pipelines
    if not file.is_file():
        known = ", ".join(p.name for p in pipelines.files(folder)) if folder.is_dir() else "none"
        raise DataError(f"PIPELINE={file}: no such file; {folder} has {known}")
    if file.parent.resolve() != folder.resolve():
        raise DataError(f"PIPELINE={file}: Airflow reads pipeline files from {folder} only: copy it there")
    pipeline: Pipeline = pipelines.load(file)
    if pipeline.runtime != "local":
        raise DataError(
            f"PIPELINE={file}: its runtime is {pipeline.runtime}, and this Airflow has no cluster: install the chart "
            "(helm/refit/README.md), or use runtime: local"
        )
    return pipeline


def _named_folders(pipeline: Pipeline, given: str | None) -> list[Path]:
    """The folders that this call names: the user's, and an absolute source of the pipeline."""
    own = Path(pipeline.dataset.source)
    return [Path(os.path.abspath(p)) for p in (given, own if own.is_absolute() else None) if p]


class Session:
    """One `make run`, from the services' start to their end."""

    def __init__(self, place: Embedded, pipeline: Pipeline, given: str | None, view: View, lock: int) -> None:
        self.place, self.pipeline, self.given, self.view, self._lock = place, pipeline, given, view, lock
        self._began = datetime.now(UTC).isoformat()  # comparable with Airflow's times
        self.dag = DAG_PREFIX + str(pipeline.name)
        self.airflow = Airflow(place.airflow_url, airflow.USER, airflow.password(place))

    def run(self, once: bool) -> int:
        """The exit code; everything that was started is ended."""
        code, interrupted = INTERRUPTED, False
        with ServicesProcess(self.place, self._lock) as services:
            self._services = services
            try:
                source = self._prepare()
                code = self._follow(self._choose(source))
                if code == GOOD and self.follower.plan is None:
                    self.view.say("that run found nothing new and was skipped")
                    code = self._follow(self._trigger(source))
                self._summary()
                if not once:
                    self.view.say(self._goes_on())
                while not once:
                    self._check()
                    time.sleep(POLL)
            except KeyboardInterrupt:
                interrupted = True
                self.view.wait("ending everything (Ctrl-C again: at once) ...")
        if interrupted:
            kept = "; what was finished is kept, `make run` goes on from there" if code == INTERRUPTED else ""
            self.view.say(f"everything has ended{kept}")
        return code

    def _check(self) -> None:
        failed = self._services.check()
        if failed is not None:
            log = f"\nits log: {failed['log']}" if failed.get("log") else ""
            raise Trouble(f"{failed['service']}: {failed['reason']}{log}")

    def _prepare(self) -> Source:
        """Data in the inbox, services up, the DAG known to Airflow."""
        self.view.wait("starting Airflow and Triton, and looking at the data ...")
        source = data.source(self.place, self.pipeline, self.given)
        up = False
        while not up:
            self._check_event(event := self._services.event(0.2))
            up = event is not None and event["event"] == "up"
            if up and event is not None:
                self.view.say(f"Airflow and Triton are up after {event['seconds']} s: {self._login()}")
        self._wait_for_dag()
        return source

    def _check_event(self, event: dict[str, Any] | None) -> None:
        if event is not None and event["event"] == "failed":
            self._check()

    def _wait_for_dag(self) -> None:
        self.view.wait(f"waiting for Airflow to read {self.pipeline.name}.yaml ...")
        until = time.monotonic() + DAG_SECONDS
        while True:
            self._check()
            try:
                if not self.airflow.get(f"/dags/{self.dag}")["is_stale"]:
                    return
            except ApiError as exc:
                if exc.status != 404:
                    raise
            if time.monotonic() > until:
                errors = "\n".join(f"{e['filename']}: {e['stack_trace']}" for e in self.airflow.import_errors())
                raise Trouble(f"Airflow has no DAG {self.dag} after {DAG_SECONDS} s\n{errors}".rstrip())
            time.sleep(POLL)

    def _choose(self, source: Source) -> str:
        """The run to follow: one that is not over yet, the one that the arrival starts, or one that is started here."""
        runs = self.airflow.runs(self.dag)
        open_runs = [r for r in runs if r["state"] not in ENDED]
        noticed = f"Airflow noticed the new data in {source.folder} and started"
        if open_runs:
            run = str(open_runs[-1]["dag_run_id"])
            fresh = str(open_runs[-1]["queued_at"] or "") >= self._began
            self.view.say(f"{noticed if fresh else 'going on with'} {run}")
            return run
        if runs and runs[0]["state"] == "failed" and not source.arrives and self._was_cancelled(runs[0]):
            run = str(runs[0]["dag_run_id"])
            self.airflow.clear_failed(self.dag, run)
            self.view.say(f"going on with {run}, which was interrupted")
            return run
        if source.arrives:
            began = time.time()
            self.view.wait("waiting for Airflow to notice the new data ...")
            before = {r["dag_run_id"] for r in runs}
            while time.time() - began < ARRIVAL_SECONDS:
                self._check()
                new = [r for r in self.airflow.runs(self.dag) if r["dag_run_id"] not in before]
                if new:
                    run = str(new[-1]["dag_run_id"])
                    self.view.say(f"{noticed} {run}")
                    return run
                time.sleep(POLL)
            self.view.say(f"Airflow has not noticed the data in {source.folder} within {ARRIVAL_SECONDS} s")
        return self._trigger(source)

    def _trigger(self, source: Source) -> str:
        run = self.airflow.trigger(self.dag, source.conf)
        why = "nothing new in the inbox; " if self.pipeline.schedule == "on_arrival" and not source.arrives else ""
        self.view.say(f"{why}started {run} by hand")
        return run

    def _was_cancelled(self, run: Mapping[str, Any]) -> bool:
        """Whether a failed run failed only because it was told to end: once too often for Airflow's retries."""
        follower = self._follower(str(run["dag_run_id"]))
        tasks = self.airflow.tasks(self.dag, str(run["dag_run_id"]))
        follower.update(tasks)
        failures = follower.failures()
        return (
            bool(failures)
            and not ended_by_hand(tasks)
            and all(reason.startswith(Outcome.CANCELLED) for _, reason, _, _ in failures)
        )

    def _follower(self, run: str) -> Follower:
        return Follower(self.place.refit.workspace / str(self.pipeline.name), run, plans.skeleton(self.pipeline))

    def _follow(self, run: str) -> int:
        """Show the run until it is over; the exit code that it asks for."""
        self.follower = self._follower(run)
        while True:
            self._check()
            state = str(self.airflow.run(self.dag, run)["state"])
            self.follower.update(self.airflow.tasks(self.dag, run))
            self.view.show(self.follower.steps.values())
            if state in ENDED:
                break
            time.sleep(POLL)
        self.view.leave()
        self.state, self.run_id = state, run
        if state == "success":
            return GOOD
        bind = report.read_json(self.follower.folder / "00-bind" / "result.json") or {}
        return BAD_INPUT if bind.get("outcome") in ("bad_spec", "bad_data") else FAILED

    def _summary(self) -> None:
        """The table, what went wrong, Triton's answer, and where to look further."""
        say = self.view.say
        if self.follower.plan:
            say("\n" + "\n".join(report.table(report.rows(self.follower.plan))))
        if self.state == "success":
            say(f"\n{self.dag} {self.run_id}: {self._duration()}")
            self._answer()
        else:
            self._explain()
        say(f"\n{self._login()}\n  this run: {self.place.airflow_url}/dags/{self.dag}/runs/{self.run_id}")
        say(f"  its model: {self.place.airflow_url}/dags/{self.dag}/plugin/model")
        say(f"  Triton: {self.place.refit.triton_url}")

    def _duration(self) -> str:
        run = self.airflow.run(self.dag, self.run_id)
        seconds = run.get("duration")
        return f"good, {seconds:.0f} s" if isinstance(seconds, int | float) else "good"

    def _explain(self) -> None:
        logs = self.place.airflow / "logs" / f"dag_id={self.dag}" / f"run_id={self.run_id}"
        failures = self.follower.failures()
        for step, reason, advice, folder in failures:
            text = f"\nfailed: {step.name}: {reason or self._last_words(step.name, step.attempt)}"
            text += f"\n        {advice}" if advice else ""
            stage_log = folder / "log.txt"
            self.view.say(f"{text}\n        its log: {stage_log if stage_log.exists() else logs}")
        if not failures:
            self.view.say(f"\nfailed: {self.dag} {self.run_id}; its logs: {logs}")

    def _last_words(self, name: str, attempt: int) -> str:
        """The last error in a task's log, for one that never came to a result of its own."""
        try:
            tasks = self.airflow.tasks(self.dag, self.run_id)
            task = next(str(t["task_id"]) for t in tasks if str(t["task_id"]).rpartition(".")[2] == name)
            return self.airflow.last_error(self.dag, self.run_id, task, attempt)
        except (ApiError, StopIteration):
            return ""

    def _answer(self) -> None:
        """One picture of the val split, answered by Triton, the boxes drawn."""
        plan, release = self.follower.plan, self.pipeline.release
        step = self.follower.steps.get("release")
        if plan is None or release is None or step is None or step.state not in ("done", "reused"):
            return
        image = validation_image(Path(plan["snapshot"]))
        picture = self.follower.folder / "triton-answer.png"
        url = release.triton.url if release.triton else str(self.place.refit.triton_url)
        done = subprocess.run(
            [
                *(self.place.python("tools"), "-m", "refit.triton", "infer", "--url", url),
                *("--model", release.model or str(self.pipeline.name), "--image", str(image), "--out", str(picture)),
            ],
            check=False,
            env=self.place.environment(),
            cwd=self.place.refit.repository,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Trouble(f"Triton does not answer: {done.stderr.strip()}")
        answer = json.loads(done.stdout)
        say = self.view.say
        who = f"Triton, {answer['model']} version {answer['version']}"
        say(f"\n{who}, {answer['milliseconds']:.1f} ms for {image.name}:")
        for found in answer["detections"]:
            box = ", ".join(f"{v:.0f}" for v in found["box"])
            say(f"  {found['class']:<12} {found['score']:.2f}  at ({box})")
        if not answer["detections"]:
            say("  nothing found")
        say(f"  drawn: {picture}")

    def _goes_on(self) -> str:
        """What can be done while everything stays up."""
        dataset = self.pipeline.dataset
        marker = f", {dataset.arrival.marker} last," if dataset.arrival.marker else ""
        inbox = self.place.refit.source(dataset.source).text
        new = f"new data in {inbox}{marker} starts the next run; " if self.pipeline.schedule == "on_arrival" else ""
        return f"\neverything stays up: {new}Ctrl-C ends it"

    def _login(self) -> str:
        return f"{self.place.airflow_url}  login {airflow.USER}, password {airflow.password(self.place)}"


def validation_image(snapshot: Path) -> Path:
    """The picture of the val split that has most objects (the first of them): one that shows something.

    Raises:
        Trouble: the snapshot has none.
    """
    best: tuple[int, str] | None = None
    with open(snapshot / "annotations.jsonl", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["split"] == "val" and (best is None or len(row["objects"]) > best[0]):
                best = (len(row["objects"]), row["file"])
    if best is None:
        raise Trouble(f"{snapshot} has no image in its val split")
    return snapshot / "images" / best[1]


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _error(message: object, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
