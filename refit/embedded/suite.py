"""``make test``: pytest in each environment, a few at a time, the outputs kept apart, one line that sums up.

    python -m refit.embedded.suite [--again] [PATH ...] [PYTEST OPTION ...]

Without paths all of tests/ runs. With --again, as CI does, tests that failed run once more when the others are done,
with nothing beside them: one that passes then is named as such, and is no failure. Exit codes: 0 all passed (or were
skipped, with the reason printed), 1 otherwise.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import types
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from refit.config import Settings
from refit.embedded.processes import catch_signals


@dataclass(frozen=True)
class Group:
    """Folders of tests/ that one pytest process runs, and its environment."""

    environment: str
    folders: tuple[str, ...] = ()
    instead: str | None = None  # where the machine cannot have the environment: there the tests say why they skip

    def python(self, envs: Path) -> Path:
        own = envs / self.environment / "bin" / "python"
        return envs / self.instead / "bin" / "python" if self.instead and not own.exists() else own


REST = "tools"
# The longest first, so that the processors end together; `tools` takes the folders that nobody names.
GROUPS = {
    REST: Group("tools"),
    "serving": Group("tools", ("triton", "prove", "predict", "planted")),
    "tao": Group("tools", ("tao", "engine", "ngc")),
    "airflow": Group("airflow", ("operators", "dags", "plugins", "pods")),
    "cpu": Group("cpu", ("cpu", "postprocess")),
    "embedded": Group("tools", ("embedded",)),
    "helm": Group("helm", ("helm", "e2e", "chaos"), instead="tools"),
}
ORDER = list(GROUPS)
AT_ONCE = 2 if (os.cpu_count() or 1) < 4 else len(GROUPS)
STOP_SECONDS = 20
if os.environ.get("REFIT_E2E") == "1":
    ORDER = ["helm", *(name for name in GROUPS if name != "helm")]  # the longest on a cluster, where it waits for pods
    AT_ONCE = 2  # they share one cluster and its few GPUs
    STOP_SECONDS = 200  # until Airflow, the chart's release and the namespace are gone
HANG_SECONDS = 300  # a test that takes longer has its stack traces printed
NOTHING_COLLECTED = 5  # pytest's exit code
TELL_SECONDS = 60
AGAIN = "--again"


@dataclass
class Count:
    """Results of tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


@dataclass
class Part:
    """The tests of one group, in one pytest process; output and report lie in `folder`."""

    name: str
    paths: Sequence[str]
    options: Sequence[str]
    settings: Settings
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    began: float = 0

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def report(self) -> Path:
        return self.folder / f"{self.name}.xml"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.report.unlink(missing_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW__")}
        env |= self.settings.environment()
        env["PYTHONPATH"] = str(self.settings.repository)
        env["AIRFLOW_HOME"] = str(self.folder / f"{self.name}-airflow")  # importing Airflow makes files there
        python = GROUPS[self.name].python(self.settings.envs)
        argv = [
            *(str(python), "-m", "pytest", "-rs", "--color=no"),
            *("-o", f"faulthandler_timeout={HANG_SECONDS}", f"--junit-xml={self.report}"),
            *self.options,
            *self.paths,
        ]
        self.began = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=self.settings.repository,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def count(self) -> Count:
        """What the report says; a process that died without one, or failed for another reason, is a failure."""
        code = self.process.returncode if self.process else 1
        if code == NOTHING_COLLECTED and self.options:
            return Count()
        try:
            counted = read_report(self.report)
        except (OSError, ET.ParseError):
            return Count(failed=1)
        return counted if code == 0 or counted.failed else counted + Count(failed=1)

    def stop(self) -> None:
        """End pytest and what its tests started."""
        if self.process is not None and self.running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def failed(self) -> list[str]:
        """The paths of the tests that failed, as pytest takes them; all of the part's where the report does not say."""
        try:
            return read_failed(self.report, self.settings.repository) or list(self.paths)
        except (OSError, ET.ParseError):
            return list(self.paths)


def read_failed(file: Path, root: Path) -> list[str]:
    """``tests/a/test_b.py::Class::test_c[d]`` of each failure of a JUnit XML report; only the file where that could not
    be collected. Raises OSError and ParseError."""
    found = []
    for case in ET.parse(file).getroot().iter("testcase"):  # noqa: S314  pytest wrote it
        if case.find("failure") is None and case.find("error") is None:
            continue
        module, name = case.get("classname", ""), case.get("name", "")
        if not module:
            module, name = name, ""
        parts = module.split(".")
        size = next((n for n in range(len(parts), 0, -1) if (root / Path(*parts[:n])).with_suffix(".py").is_file()), 0)
        if not size:
            raise OSError(f"{file}: {module} is no test file")
        path = Path(*parts[:size]).with_suffix(".py").as_posix()
        found.append("::".join([path, *parts[size:], *([name] if name else [])]))
    return list(dict.fromkeys(found))


def read_report(file: Path) -> Count:
    """The counts of a JUnit XML report. Raises OSError and ParseError."""
    counted = Count()
    for suite in ET.parse(file).getroot().iter("testsuite"):  # noqa: S314  pytest wrote it
        number = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        failed = number["failures"] + number["errors"]
        counted += Count(number["tests"] - failed - number["skipped"], failed, number["skipped"])
    return counted


def divide(tests: Path, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Paths for each group, and the words that are options for pytest.

    Args:
        tests: the folder of all tests.
        words: paths and options as a person types them; no path means all.
    """
    owner = {folder: name for name, group in GROUPS.items() for folder in group.folders}
    paths = [w for w in words if not w.startswith("-") and (tests.parent / w.partition("::")[0]).exists()]
    options = [w for w in words if w not in paths]
    named = paths or [f"{tests.name}/{p.name}" for p in sorted(tests.iterdir()) if _has_tests(p)]
    found: dict[str, list[str]] = {}
    for path in named:
        parts = Path(path.partition("::")[0]).parts
        if len(parts) < 2:  # `tests` itself
            return divide(tests, options)
        found.setdefault(owner.get(parts[1], REST), []).append(path)
    return found, options


def _has_tests(path: Path) -> bool:
    return any(path.rglob("test_*.py")) if path.is_dir() else path.match("test_*.py")


def main(words: Sequence[str] | None = None) -> int:
    settings = Settings.from_env()
    given = list(sys.argv[1:] if words is None else words)
    paths, options = divide(settings.repository / "tests", [word for word in given if word != AGAIN])
    folder = settings.home / "tests"
    parts = [Part(name, paths[name], options, settings, folder) for name in ORDER if name in paths]
    catch_signals(_interrupt)
    began = time.monotonic()
    try:
        counted = run(parts, AT_ONCE)
        total = sum(counted.values(), Count())
        if AGAIN in given and total.failed:
            total = total + again([part for part in parts if counted[part.name].failed])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    print(f"\nall tests took {time.monotonic() - began:.0f} s\n{total}", flush=True)
    return 1 if total.failed or not (total.passed or total.skipped) else 0


def run(parts: Sequence[Part], at_once: int) -> dict[str, Count]:
    """Run parts, so many at a time, and print what each says when it ends. Raises KeyboardInterrupt, when all have."""
    waiting, running = list(parts), list[Part]()
    counted = {}
    began = told = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.pop(0))
                running[-1].start()
                print(f"{running[-1].name}: {' '.join(running[-1].paths)}", flush=True)
            time.sleep(0.2)
            for part in [p for p in running if not p.running()]:
                running.remove(part)
                counted[part.name] = part.count()
                print(f"\n===== {part.name}: {counted[part.name]}, {time.monotonic() - part.began:.0f} s =====")
                print(part.log.read_text(errors="replace").rstrip(), flush=True)
                told = time.monotonic()
            if running and time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                print(f"... {', '.join(p.name for p in running)}: {told - began:.0f} s so far", flush=True)
    except KeyboardInterrupt:
        for part in running:
            part.stop()
            print(f"\n===== {part.name}: interrupted =====\n{part.log.read_text(errors='replace')[-3000:]}")
        raise
    return counted


def again(parts: Sequence[Part]) -> Count:
    """Run the failed tests of these parts once more, alone, and name those that pass now. Returns what that changes of
    the counts."""
    print("\n===== what failed, once more and alone =====", flush=True)
    changed = Count()
    for part in parts:
        first, alone = part.count(), replace(part, paths=part.failed(), folder=part.folder / "again", process=None)
        second = run([alone], 1)[part.name]
        changed += Count(second.passed, second.failed - first.failed, second.skipped)
        still = alone.failed() if second.failed else []
        for test in alone.paths:
            if test not in still:
                print(f"FAILED BESIDE OTHERS, PASSED ALONE: {test}", flush=True)
    return changed


def _interrupt(signum: int, frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
