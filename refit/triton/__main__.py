"""`python -m refit.triton`: release and rollback, a local server in the foreground, one inference.

Exit codes: 0 good; 2 a bad spec, argument or target; 3 bad data; 4 the model was rejected; 143 ended by SIGTERM;
1 anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from refit import command
from refit.command import Action
from refit.config import ConfigError, Settings
from refit.specs import SpecError
from refit.triton.errors import InstallationError, PortTaken, TritonError

ACTIONS = {
    "release": Action(
        "refit.triton.specs:ReleaseSpec",
        "refit.triton.stage:run_release",
        "make a model the champion of a Triton server, or leave everything as it was",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    by_hand: dict[str, Callable[[Sequence[str]], int]] = {"rollback": _rollback, "serve": _serve, "infer": _infer}
    if words and words[0] in by_hand:
        try:
            return by_hand[words[0]](words[1:])
        except command.StageError as exc:
            return _error(exc, exc.exit_code)
        except command.Cancelled:
            return _error("stopped by SIGTERM", command.CANCELLED)
        except (ConfigError, SpecError) as exc:
            return _error(exc, command.BAD_SPEC)
        except (TritonError, OSError) as exc:
            return _error(exc, command.FAILED)
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m refit.triton {release,rollback,serve,infer} ...; each has --help")
        return 0 if words else command.BAD_SPEC
    return command.main("refit.triton", ACTIONS, words)


def _error(message: object, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _rollback(argv: Sequence[str]) -> int:
    from pydantic import ValidationError

    from refit.cluster import load
    from refit.triton.ledger import Ledger
    from refit.triton.lock import actor
    from refit.triton.rollback import rollback
    from refit.triton.specs import RollbackSpec
    from refit.triton.stage import stage_errors, write_report

    parser = argparse.ArgumentParser(prog="python -m refit.triton rollback", description="go back to an older version")
    parser.add_argument("--model", required=True, help="the model's name in Triton")
    parser.add_argument("--to", type=int, help="the version (default: the one that served before)")
    parser.add_argument("--url", help="Triton's HTTP address (default: the cluster profile's)")
    parser.add_argument("--repository", type=Path, help="its model repository (default: the cluster profile's)")
    parser.add_argument(
        "--ledger", type=Path, help="<workspace>/<pipeline>/releases (default: the one that has the model)"
    )
    parser.add_argument("--cluster", default="local", help="the cluster profile (default: local)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for the load (default: 300)")
    parser.add_argument("-r", dest="out", type=Path, help="folder for release.json and summary.json")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _cancel)
    settings = Settings.from_env()
    profile = None if args.url and args.repository else load(args.cluster, settings).triton
    if profile is not None and not args.url:
        _use_secret(settings, profile.control_key_secret)
    folders = [args.ledger] if args.ledger else sorted(settings.workspace.glob("*/releases"))
    holding = next((f for f in folders if args.ledger or Ledger(f).records(args.model)), None)
    if holding is None:
        raise command.BadSpec(
            f"no ledger below {settings.workspace} knows the model {args.model}; name it with --ledger"
        )
    try:
        spec = RollbackSpec(
            model=args.model,
            to=args.to,
            url=args.url or (profile.url if profile else ""),
            repository=args.repository or Path(profile.repository if profile else ""),
            ledger=holding,
            timeout_seconds=args.timeout,
        )
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        raise command.BadSpec(
            f"--{'.'.join(map(str, fault['loc']))}: {fault['msg']} (it is {fault['input']!r})"
        ) from None
    who = actor()
    with stage_errors():
        report = rollback(spec, f"{who['user']}@{who['host']}", lambda message: print(message, flush=True))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_report(report, args.out)
    print(report.sentence())
    return command.OK


def _use_secret(settings: Settings, name: str | None) -> None:
    """The profile's control key into the environment, from where the local runtime keeps secrets."""
    from refit.triton.server import CONTROL_KEY_VARIABLE

    if name is None or os.environ.get(CONTROL_KEY_VARIABLE):
        return
    value = os.environ.get(f"REFIT_SECRET_{name}")
    file = settings.home / "secrets" / name
    if value is None and file.exists():
        value = file.read_text(encoding="utf-8").strip()
    if value:
        os.environ[CONTROL_KEY_VARIABLE] = value


def _serve(argv: Sequence[str]) -> int:
    from refit.triton.server import CONTROL_KEY_VARIABLE, TritonServer

    parser = argparse.ArgumentParser(
        prog="python -m refit.triton serve",
        description=f"a Triton server on 127.0.0.1, until SIGTERM or Ctrl-C; {CONTROL_KEY_VARIABLE} is its control key",
    )
    parser.add_argument("--repository", type=Path, required=True, help="the model repository (made when it is missing)")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--run-dir", type=Path, help="folder for the log and the backends (default: below REFIT_HOME)")
    args = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _cancel)
    server = TritonServer(
        args.repository,
        args.run_dir or Settings.from_env().home / "triton" / str(args.http_port),
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        control_key=os.environ.get(CONTROL_KEY_VARIABLE) or None,
    )
    try:
        server.start()
        print(f"Triton is ready: {server.url} (gRPC {server.grpc_url}, metrics {server.metrics_url})", flush=True)
        server.wait(float("inf"))
        return _error(f"tritonserver ended by itself; the end of {server.log_path}:\n{server.log_tail()}", 1)
    except (PortTaken, InstallationError) as exc:
        return _error(exc, command.BAD_SPEC)
    except command.Cancelled:
        print("Triton is ending", flush=True)
        return command.OK
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # it ends already; a second signal must not leave a part of it
            signal.signal(number, signal.SIG_IGN)
        server.stop()


def _infer(argv: Sequence[str]) -> int:
    from refit.triton.client import TritonClient
    from refit.triton.infer import infer_picture
    from refit.triton.stage import stage_errors

    parser = argparse.ArgumentParser(prog="python -m refit.triton infer", description="find objects in a picture")
    parser.add_argument("--url", required=True, help="Triton's HTTP address")
    parser.add_argument("--model", required=True, help="the model's name in Triton")
    parser.add_argument("--image", type=Path, required=True, help="a JPEG or PNG file")
    parser.add_argument("--out", type=Path, help="where the picture with boxes goes (PNG)")
    parser.add_argument("--version", type=int, help="a version (default: the champion)")
    args = parser.parse_args(argv)
    with stage_errors(), TritonClient(args.url) as client:
        answer = infer_picture(client, args.model, args.image, out=args.out, version=args.version)
    print(json.dumps(answer.to_json(), ensure_ascii=False, indent=1))
    return command.OK


def _cancel(*_: object) -> None:
    raise command.Cancelled


if __name__ == "__main__":
    sys.exit(main())
