"""`python -m refit.triton`: release and rollback as stages, a local server in the foreground, one inference.

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
    "rollback": Action(
        "refit.triton.specs:RollbackSpec",
        "refit.triton.stage:run_rollback",
        "make an older version the champion again, or leave everything as it was",
    ),
    "reconcile": Action(
        "refit.triton.specs:ReconcileSpec",
        "refit.triton.stage:run_reconcile",
        "compare every server with the ledger, and say or mend what differs",
    ),
    "canary": Action(
        "refit.triton.specs:CanarySpec",
        "refit.triton.stage:run_canary",
        "try a model beside the one that serves, compare their answers and times, and drop it again",
    ),
    "watch": Action(
        "refit.triton.specs:WatchSpec",
        "refit.triton.stage:run_watch",
        "watch a version that was just released, and go back where errors or time cross a line",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    by_hand: dict[str, Callable[[Sequence[str]], int]] = {"serve": _serve, "infer": _infer, "shadow": _shadow}
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
        names = ",".join([*ACTIONS, *by_hand])
        print(f"usage: python -m refit.triton {{{names}}} ...; each has --help")
        return 0 if words else command.BAD_SPEC
    return command.main("refit.triton", ACTIONS, words)


def _error(message: object, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


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


def _shadow(argv: Sequence[str]) -> int:
    from refit.triton.client import TritonClient
    from refit.triton.reference import pictures
    from refit.triton.route import challenger_of
    from refit.triton.shadow import compare
    from refit.triton.stage import stage_errors

    parser = argparse.ArgumentParser(
        prog="python -m refit.triton shadow", description="ask two models the same pictures and compare their answers"
    )
    parser.add_argument("--url", required=True, help="Triton's HTTP address")
    parser.add_argument("--model", required=True, help="the champion's name in Triton")
    parser.add_argument("--challenger", help="the other's name (default: MODEL__challenger)")
    parser.add_argument("--images", type=Path, required=True, help="a folder of pictures, e.g. yesterday's")
    args = parser.parse_args(argv)
    with stage_errors(), TritonClient(args.url) as client:
        challenger = args.challenger or challenger_of(args.model)
        found = compare(client, args.model, challenger, pictures([args.images]))
    print(json.dumps(found.to_json(), ensure_ascii=False, indent=1))
    return command.OK


def _cancel(*_: object) -> None:
    raise command.Cancelled


if __name__ == "__main__":
    sys.exit(main())
