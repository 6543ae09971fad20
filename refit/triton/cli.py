"""`refit releases`, `rollback`, `reconcile` and `verify`: what was released, is it so, and the way back; from a shell
that sees the workspace."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from refit import command
from refit.cluster import KubernetesProfile, load
from refit.command import BadSpec
from refit.config import Settings
from refit.specs import SpecError, did_you_mean
from refit.triton import lineage
from refit.triton.ledger import Ledger, Record

ROLLBACK_DAG = "refit_rollback"
RECONCILE_DAG = "refit_reconcile"

if TYPE_CHECKING:
    from refit.pipeline import Release
    from refit.triton.specs import ByHandSpec

_ByHand = TypeVar("_ByHand", bound="ByHandSpec")


def add_releases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model's name in Triton; default: all")
    parser.add_argument("--json", action="store_true")


def run_releases(args: argparse.Namespace, settings: Settings) -> int:
    """Print every version that was released, and why each is in the state it is in. Raises BadSpec."""
    found = _known(args.model, settings) if args.model is not None else _all(settings)
    records = [record for _, record in found]
    if args.json:
        print(
            json.dumps(
                [r.model_dump(mode="json", by_alias=True, exclude={"config", "sidecar"}) for r in records], indent=1
            )
        )
    elif found:
        print("\n".join([*_table(records), "", *_in_short(found)]))
    else:
        print(f"nothing was released yet from {settings.workspace}")
    return command.OK


def _table(records: Sequence[Record]) -> list[str]:
    rows = [("MODEL", "VERSION", "STATE", "SINCE", "mAP50", "PIPELINE", "WHY")]
    for r in sorted(records, key=lambda r: (r.model, -r.version)):
        score = f"{r.metrics['mAP50']:.3f}" if "mAP50" in r.metrics else ""
        rows.append((r.model, str(r.version), r.state, _since(r), score, r.pipeline, r.reason))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows]


def _since(record: Record) -> str:
    return record.began.when if record.began else ""


def _in_short(found: Sequence[tuple[Ledger, Record]]) -> Iterator[str]:
    """What serves of each model by the ledger, why, and how to go back: for whoever is woken by it."""
    for model in sorted({r.model for _, r in found}):
        ours = next(((h, r) for h, r in reversed(found) if (r.model, r.state) == (model, "serving")), None)
        if ours is None:
            yield f"{model}: nothing serves, by the ledger"
            continue
        ledger, serving = ours
        kept = sorted(
            r.version for home, r in found if (r.model, r.state) == (model, "retired") and home.kept(r.version)
        )
        came = serving.began.reason if serving.began else serving.reason
        yield f"{model}: version {serving.version} serves since {_since(serving)}, {came}"
        if serving.reason != came:
            yield f"  {serving.reason}"
        yield from (f"  {line}" for line in lineage.why(ledger.path(serving.version)))
        before = [v for v in kept if v < serving.version]
        if serving.previous is not None and serving.previous.version in kept:
            before = [serving.previous.version]
        if before:
            score = next(r.metrics.get("mAP50") for _, r in found if (r.model, r.version) == (model, before[-1]))
            told = f" (mAP50 {score:.3f})" if score is not None else ""
            yield f"  back to version {before[-1]}{told}: refit rollback {model} --reason WHY"
        others = [v for v in kept if v not in before[-1:]]
        if others:
            yield f"  to another: refit rollback {model} --to N --reason WHY, N one of {', '.join(map(str, others))}"
        yield f"  is that what Triton answers with? refit verify {model} --version {serving.version}"


def add_rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model's name in Triton")
    parser.add_argument("--to", type=int, metavar="N", help="the version; default: the one that served before")
    _add_public_key(parser)
    _add_target(parser, ROLLBACK_DAG)


def _add_target(parser: argparse.ArgumentParser, dag: str) -> None:
    parser.set_defaults(dag=dag)
    parser.add_argument("--reason", default="", help="why, for the ledger")
    parser.add_argument("--cluster", default="local", metavar="NAME", help="the cluster profile; default: local")
    parser.add_argument("--url", help="Triton's HTTP address; default: the pipeline's, else the profile's")
    parser.add_argument(
        "--repository", metavar="DIR", help="its model repository, a folder or s3://...; default: likewise"
    )
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="for the load; default 300")


def run_rollback(args: argparse.Namespace, settings: Settings) -> int:
    """Make an older version the champion again, or leave everything as it was. Raises StageError, ConfigError."""
    from refit.triton.rollback import rollback
    from refit.triton.specs import RollbackSpec
    from refit.triton.stage import stage_errors, tell_people

    ledger, _ = _known(args.model, settings)[-1]
    key = _public_key(args.public_key, ledger, settings)
    spec = _spec(RollbackSpec, args, settings, model=args.model, to=args.to, public_key=key)
    signal.signal(signal.SIGTERM, _cancel)
    try:
        with stage_errors():
            report = rollback(spec, lambda message: print(message, flush=True))
        tell_people(spec.ledger)
    except command.Cancelled:
        print("error: stopped by SIGTERM", file=sys.stderr)
        return command.CANCELLED
    print(report.sentence())
    if report.previous is not None:
        print(f"To undo it: refit rollback {args.model} --to {report.previous}")
    print("The next run of its pipeline may release its own model again: pause the DAG where it must not")
    return command.OK


def add_reconcile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model's name in Triton; default: all that serve")
    parser.add_argument("--mend", action="store_true", help="put right what differs; without it nothing is changed")
    parser.add_argument(
        "--watch-minutes",
        type=float,
        default=30,
        metavar="M",
        help="so long after a release the version before may still be loaded, for its watch; default 30",
    )
    _add_public_key(parser)
    _add_target(parser, RECONCILE_DAG)


def run_reconcile(args: argparse.Namespace, settings: Settings) -> int:
    """Compare repository and servers with the ledger, model by model. Raises StageError, ConfigError."""
    from refit.triton.reconcile import reconcile
    from refit.triton.specs import ReconcileSpec
    from refit.triton.stage import stage_errors

    found = _known(args.model, settings) if args.model is not None else _all(settings)
    differs = False
    for model, ledger in {r.model: ledger for ledger, r in found if r.state == "serving"}.items():
        told = {"model": model, "mend": args.mend, "watch_minutes": args.watch_minutes}
        key = _public_key(args.public_key, ledger, settings)
        spec = _spec(ReconcileSpec, args, settings, public_key=key, **told)
        with stage_errors():
            report = reconcile(spec, lambda message, model=model: print(f"{model}: {message}", flush=True))  # type: ignore[misc]
        differs |= report.outcome == "differs"
    if differs:
        print("mend it with --mend; nothing was changed", file=sys.stderr)
    return command.FAILED if differs else command.OK


def _spec(kind: type[_ByHand], args: argparse.Namespace, settings: Settings, **more: Any) -> _ByHand:
    """The spec of a change by hand, on the Triton that is named, the pipeline's or the cluster profile's. Raises
    BadSpec."""
    from pydantic import ValidationError

    from refit.data.source import secret_name
    from refit.toolkits.chain import served_by
    from refit.triton.bucket import CONNECTION
    from refit.triton.server import CONTROL_KEY_VARIABLE

    ledger, _ = _known(more["model"], settings)[-1]
    where: dict[str, Any] = {"url": args.url, "repository": args.repository}
    if not (args.url and args.repository):
        profile = load(args.cluster, settings)
        target, secret = served_by(_release(ledger, settings), profile)
        if target is profile.triton and isinstance(profile, KubernetesProfile):
            raise BadSpec(
                f"the model repository of cluster profile {args.cluster} is a volume of the cluster; trigger the DAG "
                f"{args.dag} in Airflow, or name --url and --repository where this machine sees both"
            )
        where = {"url": args.url or target.url, "repository": args.repository or target.repository}
        if not args.url:
            _use_secret(settings, secret, CONTROL_KEY_VARIABLE)
        if not args.repository and target.connection:
            _use_secret(settings, secret_name(target.connection), CONNECTION)
    try:
        return kind(ledger=ledger.folder, timeout_seconds=args.timeout, reason=args.reason, **where, **more)
    except ValidationError as exc:
        fault = exc.errors(include_url=False)[0]
        raise BadSpec(f"--{'.'.join(map(str, fault['loc']))}: {fault['msg']} (it is {fault['input']!r})") from None


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model's name in Triton; default: all")
    parser.add_argument("--version", type=int, metavar="N", help="default: every version that serves or may serve")
    _add_public_key(parser)


def _add_public_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--public-key", type=Path, metavar="FILE", help="as PEM; default: release.signing.public_key of the pipeline"
    )


def run_verify(args: argparse.Namespace, settings: Settings) -> int:
    """Print a line for each thing that was looked at. Raises BadSpec."""
    from refit.triton.verify import check

    found = _known(args.model, settings) if args.model is not None else _all(settings)
    wanted = [
        (ledger, r)
        for ledger, r in found
        if (r.version == args.version if args.version is not None else r.state in ("serving", "retired"))
    ]
    if not wanted:
        raise BadSpec(f"nothing to verify: no such version was released from {settings.workspace}")
    failed = False
    for ledger, record in sorted(wanted, key=lambda entry: (entry[1].model, -entry[1].version)):
        print(f"{record.model} version {record.version}, {record.state}")
        for finding in check(ledger, record, _public_key(args.public_key, ledger, settings)):
            failed |= finding.level == "FAIL"
            print(f"  {finding}", flush=True)
    return command.FAILED if failed else command.OK


def _public_key(named: Path | None, ledger: Ledger, settings: Settings) -> str | None:
    """The key that signatures are held against: as named, else that of the pipeline's file where it has one."""
    if named is not None:
        try:
            return named.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise BadSpec(f"--public-key {named}: cannot be read ({exc})") from None
    release = _release(ledger, settings)
    return release.signing.public_key if release and release.signing else None


def _release(ledger: Ledger, settings: Settings) -> Release | None:
    """What the pipeline's file says of its releases, where it lies among the pipelines' files here."""
    from refit import pipeline as pipelines

    for ending in (".yaml", ".yml"):
        file = settings.pipelines / (ledger.folder.parent.name + ending)
        with contextlib.suppress(SpecError):
            release: Release | None = pipelines.load(file).release if file.is_file() else None
            if release:
                return release
    return None


def _all(settings: Settings) -> list[tuple[Ledger, Record]]:
    """Every release with the ledger that holds it: one for each pipeline."""
    ledgers = [Ledger(folder) for folder in sorted(settings.workspace.glob("*/releases"))]
    return [(ledger, record) for ledger in ledgers for record in ledger.records()]


def _known(model: str, settings: Settings) -> list[tuple[Ledger, Record]]:
    """The releases of a model. Raises BadSpec where there is none."""
    found = _all(settings)
    names = sorted({r.model for _, r in found})
    if model not in names:
        hint = did_you_mean(model, names) or f"; there is {', '.join(names) or 'none'}"
        raise BadSpec(f"no release of a model {model!r} in {settings.workspace}{hint}")
    return [(ledger, r) for ledger, r in found if r.model == model]


def _use_secret(settings: Settings, name: str | None, variable: str) -> None:
    """A secret of the profile's into the environment, from where the local runtime keeps secrets."""
    if name is None or os.environ.get(variable):
        return
    value = os.environ.get(f"REFIT_SECRET_{name}")
    file = settings.home / "secrets" / name
    if value is None and file.exists():
        value = file.read_text(encoding="utf-8").strip()
    if value:
        os.environ[variable] = value


def _cancel(*_: object) -> None:
    raise command.Cancelled
