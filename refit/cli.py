"""Retrains object detectors and releases them to Triton, from a shell.

`refit validate | plan | pod | run | predict | status | shell | dataset | ngc list | import | releases | rollback |
reconcile | verify | reproduce | publish | gc | doctor | schema`

Exit codes: 0 good, 2 bad input (a pipeline file, params or data that cannot be used), 1 failed.
The tools environment runs it; `run` starts the same stages with the same runner as Airflow does, without Airflow.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Union

import yaml

from refit import cluster, toolkits
from refit import pipeline as pipelines
from refit import plan as plans
from refit.command import BadSpec, StageError
from refit.config import ConfigError, Settings
from refit.data.commands import add_all
from refit.data.source import Kind, parse
from refit.doctor import lacking
from refit.migrate.cli import add_import, run_import
from refit.ngc.cli import add_list, run_list
from refit.predict.cli import add_predict, run_predict
from refit.specs import Document, Problem, SpecError, did_you_mean, read_document
from refit.start import spec as starts
from refit.toolkits import edge
from refit.triton.cli import (
    add_reconcile,
    add_releases,
    add_rollback,
    add_verify,
    run_reconcile,
    run_releases,
    run_rollback,
    run_verify,
)
from refit.triton.errors import TritonError

GOOD, FAILED, BAD_INPUT = 0, 1, 2
WARNINGS_SHOWN = 5
RUN = "<run>"  # stands for a run's folder where there is no run


class CliError(Exception):
    """Ends the command with one line on stderr and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    try:
        args = _parser().parse_args(argv)
        return int(args.call(args, Settings.from_env()))
    except SpecError as exc:
        for problem in exc.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return BAD_INPUT
    except CliError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.code
    except StageError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return BAD_INPUT if isinstance(exc, BadSpec) else FAILED
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C; what was finished is kept and will be reused", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `refit status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD


def validate(args: argparse.Namespace, settings: Settings) -> int:
    """Check pipeline files, the specs that their stages would get, and with --data these against the data; every fault
    of every file is shown."""
    bad = 0
    for file in args.files:
        try:
            doc = read_document(file)
            attached = pipelines.attachments(doc, Path(file).parent)
            pipeline = pipelines.from_document(doc, pipelines.peek_name(file), attached=attached)
            profile = cluster.of_pipeline(pipeline, settings)
            dataset, problems = _look(args.data, pipeline) if args.data else (None, [])
            faults = toolkits.get(pipeline.toolkit).preflight(pipeline, profile, dataset)
            problems += map(doc.told, faults)
            problems += _transforms(pipeline, profile, doc)
            problems += _refused_source(pipeline, profile, doc)
            problems += lacking(pipeline, profile, settings)
            if problems:
                raise SpecError(problems)
        except SpecError as exc:
            bad += 1
            for problem in exc.problems:
                print(f"error: {problem}", file=sys.stderr)
        else:
            for doubt in map(doc.told, toolkits.get(pipeline.toolkit).doubts(pipeline, profile)):
                print(f"warning: {doubt}", file=sys.stderr)
            for told in filter(None, (*_elsewhere(pipeline, settings), _not_set_up(pipeline, profile))):
                print(f"warning: {file}: {told}", file=sys.stderr)
            stages = [n.name for n in plans.skeleton(pipeline)]
            print(f"{file}: good; {len(stages)} stages: {', '.join(stages)}")
            if dataset:
                print(f"{args.data}: {_told(dataset)}")
    return BAD_INPUT if bad else GOOD


def _elsewhere(pipeline: Any, settings: Settings) -> Iterator[str]:
    """Why an Airflow of this machine with the settings of this shell would find no data or weights, or refuse them."""
    if pipeline.runtime != "local":
        return
    source = pipeline.dataset.source
    if os.path.isabs(source) and not os.path.exists(source):  # a relative one is often an inbox that is still empty
        yield f"dataset.source: {source} is not there (yet)"
    else:
        try:
            settings.source(source)
        except ConfigError as exc:
            yield str(exc)
    for block, value in starts.given(pipeline.stages):
        start, key = starts.parse(value), f"stages.{block}.start_from"
        if start.kind != "file":
            continue
        try:
            found = settings.source(start.what, key, single=True)
        except ConfigError as exc:
            yield str(exc)
        else:
            if found.kind is Kind.FOLDER and not os.path.isfile(found.text):
                yield f"{key}: {found.text} is not there (yet)"


def _not_set_up(pipeline: Any, profile: cluster.Profile) -> str:
    """Why a run on this machine would end in bind: environments that are no part of an ordinary installation."""
    from refit.runtime.local import absent

    if not isinstance(profile, cluster.LocalProfile):
        return ""
    told = absent(edge.environments(getattr(pipeline, "edge", None)))
    return f"edge: {told}" if told else ""


def _refused_source(pipeline: Any, profile: cluster.Profile, doc: Document) -> list[Problem]:
    """Why the cluster's pods would not read a source that is no folder; the profile says all that they know. (A folder
    that is not mounted yet may be by the time of the run.)"""
    source = pipeline.dataset.source
    if not isinstance(profile, cluster.KubernetesProfile) or parse(source).kind in (Kind.FOLDER, Kind.DVC):
        return []
    try:
        cluster.settings_in_pod(profile).source(source, "")
    except ConfigError as exc:
        return [doc.problem(("dataset", "source"), str(exc).removeprefix(":").strip())]
    return []


def _transforms(pipeline: Any, profile: cluster.Profile, doc: Document) -> list[Problem]:
    """What albumentations says of the transforms that a pipeline names."""
    from refit.runtime import augmentation
    from refit.runtime.local import EnvironmentMissing

    if pipeline.augmentation is None or not pipeline.augmentation[1].transforms:
        return []
    try:
        return augmentation.faults(pipeline, profile, doc)
    except EnvironmentMissing as exc:
        print(f"warning: {doc.file}: albumentations was not asked about the transforms: {exc}", file=sys.stderr)
        return []


def _look(folder: str, pipeline: Any) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The facts of a data set, read as bind reads it; what makes it unusable, where it is."""
    from refit.data import faults, ingest  # numpy and OpenCV only where there is data

    try:
        dataset, found = ingest.look(Path(folder), pipeline.dataset.settings())
    except faults.BadData as exc:
        return None, [Problem(folder, 0, "", str(exc).removeprefix(f"{exc.source}: "))]
    warnings = [f for f in found if f.severity == "warning"]
    for fault in warnings[:WARNINGS_SHOWN]:
        print(f"warning: {folder}: {fault}; {fault.advice}", file=sys.stderr)
    if len(warnings) > WARNINGS_SHOWN:
        left = len(warnings) - WARNINGS_SHOWN
        print(f"warning: {folder}: {left} more; `refit dataset check {folder} --json` lists them", file=sys.stderr)
    return dataset, []


def _told(dataset: dict[str, Any]) -> str:
    """The facts of a data set in a line."""
    images = dataset["images"]
    sides = " x ".join("-".join(map(str, dict.fromkeys(images[side]))) for side in ("width", "height"))
    parts = (
        "images " + ", ".join(f"{n} {split}" for split, n in dataset["splits"].items()),
        "objects " + ", ".join(f"{n} {name}" for name, n in dataset["objects"].items()),
        f"{', '.join(images['extensions'])}, {sides} pixels",
    )
    return "; ".join(parts)


def plan(args: argparse.Namespace, settings: Settings) -> int:
    """Show the stages of a pipeline file: command line, inputs, spec files; nothing is read but the file."""
    pipeline = pipelines.load(args.file)
    profile = cluster.of_pipeline(pipeline, settings)
    made = _plan(pipeline, profile, settings.workspace)
    doc = read_document(args.file)
    faults = [doc.told(fault) for fault in toolkits.get(pipeline.toolkit).preflight(pipeline, profile, None)]
    if args.json:
        for stage in made["stages"]:
            stage["key"] = stage["publish"] = None  # only a run, which sees the data, can know them
        print(json.dumps(made, indent=1))
        return _refused(faults)
    changes = toolkits.get(pipeline.toolkit).changes(pipeline, profile)
    for stage in made["stages"]:
        print(f"{stage['index']:2d}. {stage['name']}: {stage['title']}  [{stage['environment']}]")
        print(f"    {' '.join(stage['argv'])}")
        if stage["inputs"]:
            print(f"    reads {', '.join(stage['inputs'])}")
        print(f"    makes {', '.join(o['path'] for o in stage['outputs'])}")
        for line in changes.get(stage["name"], ()):
            print(f"    changed in your spec: {line}")
        if args.specs:
            for name, text in stage["files"].items():
                print(f"    {name}:")
                print("".join(f"        {line}\n" for line in text.splitlines()), end="")
    return _refused(faults)


def _refused(problems: list[Problem]) -> int:
    """Tell problems, where there are any: what validate would refuse."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return BAD_INPUT if problems else GOOD


def _plan(pipeline: Any, profile: cluster.Profile, workspace: Path) -> dict[str, Any]:
    """The plan of a run that there is not: "<run>" and "<fingerprint>" stand for what only a run knows."""
    own = workspace / pipeline.name
    bound = plans.Bound(
        run=RUN,
        workspace=own,
        snapshot=own / "datasets" / "<fingerprint>",
        fingerprint="<fingerprint>",
        code=lambda package: "",
        environments=dict.fromkeys(("tools", "cpu", "triton", *edge.ENVIRONMENTS), ""),
        find=lambda stage, key: None,
    )
    return plans.make_plan(pipeline, profile, bound)


def pod(args: argparse.Namespace, settings: Settings) -> int:
    """Show the pod of a stage (or of bind) as YAML; nothing is read but the pipeline file and the cluster profile."""
    from refit.runtime import pod as pods

    path = Path(args.file)
    pipeline = pipelines.load(path)
    profile = cluster.load(args.cluster, settings) if args.cluster else cluster.of_pipeline(pipeline, settings)
    if not isinstance(profile, cluster.KubernetesProfile):
        known = ", ".join(cluster.names(settings, "kubernetes")) or "none"
        raise CliError(
            f"{args.file}: cluster profile {args.cluster or pipeline.profile} is of runtime {profile.runtime}: its "
            f"stages are processes, not pods. Say runtime: kubernetes in the file, or see the pod that another profile "
            f"would make of it: --cluster NAME (there is {known})"
        )
    inside = cluster.settings_in_pod(profile)
    made = _plan(pipeline, profile, inside.workspace)
    first = [plans.BIND, *([plans.LOOK] if pipeline.dataset.shards > 1 else [])]
    names = [*first, *(s["name"] for s in made["stages"])]
    if args.stage not in names:
        hint = did_you_mean(args.stage, names) or f"; it has {', '.join(names)}"
        raise CliError(f"{args.file}: this pipeline has no stage {args.stage!r}{hint}")
    if args.stage in first:
        text, shown = (
            path.read_text(encoding="utf-8"),
            profile.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        )
        share = 0 if args.stage == plans.LOOK else None
        request = plans.bind_request(path, text, RUN, {}, inside, nonce="", profile=shown, share=share)
        request = json.loads(json.dumps(request).replace(request["run"], RUN))
        stage = pods.PodStage.of({**request, "key": "<key>"})
    else:
        request = next(s for s in made["stages"] if s["name"] == args.stage)
        stage = pods.PodStage.of(request, plan=str(inside.workspace / pipeline.name / "runs" / RUN / "plan.json"))
    try:
        manifest = pods.stage_pod(stage, profile)
    except pods.PodError as exc:
        raise CliError(f"{args.file}: {exc}") from None
    manifest["metadata"]["labels"][f"{pods.LABEL}run"] = RUN
    print(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=1_000_000), end="")
    return GOOD


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run a pipeline here and now, stage by stage, without Airflow."""
    path = Path(args.file)
    pipeline = pipelines.load(path)
    if pipeline.runtime != "local":
        instead = (
            "NVIDIA's containers need a cluster; to hold the specs against data here: `refit validate FILE --data PATH`"
            if pipeline.toolkit == "tao"
            else "To try the same stages on this machine: runtime: local in a copy"
        )
        raise CliError(
            f"{path}: runtime: {pipeline.runtime} runs from Airflow only; here `refit validate`, `refit plan` and "
            f"`refit pod` look at it. {instead}"
        )
    if args.workspace:
        settings = Settings.from_env({**os.environ, "REFIT_WORKSPACE": args.workspace})
    names = [n.name for n in plans.skeleton(pipeline)]
    if args.until and args.until not in names:
        raise CliError(f"--until {args.until}: this pipeline has no such stage; it has {', '.join(names)}")
    conf = dict(_param(p) for p in args.param) | ({plans.DRY_RUN: True} if args.dry_run else {})
    data = None
    if args.data:
        data = os.path.abspath(args.data)
        if not os.path.isdir(data):
            raise CliError(f"--data {args.data}: no such folder")
        roots = ":".join([*map(str, settings.data_roots), data])  # a path on the command line is allowed by being there
        settings = Settings.from_env({**settings.environment(), "REFIT_DATA_ROOTS": roots})
    run_id = args.run_id or f"cli__{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{uuid.uuid4().hex[:4]}"
    if args.snapshot and not (Path(args.snapshot) / "dataset.json").is_file():
        raise CliError(f"--snapshot {args.snapshot}: holds no dataset.json; name a snapshot's folder")
    from refit.runtime.run import PipelineRun

    with _alone(settings.workspace / pipeline.name):
        request = plans.bind_request(
            path.absolute(),
            path.read_text(encoding="utf-8"),
            run_id,
            conf,
            settings,
            nonce=uuid.uuid4().hex,
            data=data,
            snapshot=os.path.abspath(args.snapshot) if args.snapshot else None,
        )
        pipeline_run = PipelineRun(settings, request, until=args.until, quiet=args.quiet, approve=args.approve)
        try:
            return pipeline_run.execute()
        finally:
            if pipeline_run.resumable:
                print(f"to go on with this run: the same command with --run-id {run_id}", file=sys.stderr)


def _param(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise CliError(f"--param {text}: write KEY=VALUE")
    with contextlib.suppress(ValueError):
        return key, json.loads(value)
    return key, value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: use a whole number, 0 or more")
    return int(text)


@contextlib.contextmanager
def _alone(workspace: Path) -> Iterator[None]:
    """One `refit run` of a pipeline at a time (Airflow's runs have max_active_runs=1)."""
    workspace.mkdir(parents=True, exist_ok=True)
    with open(workspace / ".run.lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise CliError(
                f"another `refit run` of {workspace.name} is going on ({lock.read().strip()}); wait for it or stop it",
                FAILED,
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def predict(args: argparse.Namespace, settings: Settings) -> int:
    """Detect objects in a folder or bucket of images; a killed one goes on with the same command."""
    return run_predict(args, settings)


def status(args: argparse.Namespace, settings: Settings) -> int:
    """What the workspace holds: each pipeline's last run, stage by stage, and the version that Triton serves."""
    from refit.runtime import report

    found = report.workspace(settings.workspace, args.pipeline)
    if args.pipeline and not found:
        raise CliError(f"{args.pipeline}: no such pipeline in {settings.workspace}")
    print(json.dumps(found, indent=1) if args.json else report.as_text(found, settings.workspace))
    return GOOD


def shell(args: argparse.Namespace, settings: Settings) -> int:
    """A stage's environment and command, to try by hand: printed, and a shell opened where there is a terminal."""
    from refit.runtime.shell import prepare

    prepared = prepare(settings, Path(args.file), args.stage, args.run)
    print(prepared.text)
    if args.print or not sys.stdin.isatty():
        return GOOD
    return subprocess.call([os.environ.get("SHELL", "/bin/sh")], env=prepared.env, cwd=prepared.folder)


def dataset(args: argparse.Namespace, settings: Settings) -> int:
    """Look at a data set."""
    return int(args.run(args))


def list_ngc(args: argparse.Namespace, settings: Settings) -> int:
    """The models of NGC whose name fits a pattern; with the secret NGC_API_KEY, where one is set."""
    return run_list(args, settings)


def import_(args: argparse.Namespace, settings: Settings) -> int:
    """Write a pipeline file from an old system: the Kubeflow TLT pipeline, TLT notebooks, TLT and TAO specs."""
    return run_import(args, settings)


def releases(args: argparse.Namespace, settings: Settings) -> int:
    """What was released, version by version: which serves, since when, with which mAP, and why."""
    return run_releases(args, settings)


def rollback(args: argparse.Namespace, settings: Settings) -> int:
    """Make an older version of a model the champion of Triton again; nothing changes where it does not serve."""
    return run_rollback(args, settings)


def publish(args: argparse.Namespace, settings: Settings) -> int:
    """Make anew what people see: each pipeline's index, and reports of runs that lack one; a run does so itself."""
    from refit import collect
    from refit.publish import place
    from refit.publish.stage import refresh

    folders = {p.name: p for p in collect.pipelines(settings.workspace)}
    if unknown := [name for name in args.pipelines if name not in folders]:
        known = ", ".join(folders) or "none"
        raise CliError(f"{', '.join(unknown)}: no such pipeline in {settings.workspace}; there is {known}")
    for name in args.pipelines or folders:
        done = refresh(folders[name])
        print(f"{name}: {len(done)} reports and the index in {place.of_pipeline(folders[name])}")
    return GOOD


def reconcile(args: argparse.Namespace, settings: Settings) -> int:
    """Compare Triton and its model repository with the ledger; with --mend put right what differs."""
    return run_reconcile(args, settings)


def verify(args: argparse.Namespace, settings: Settings) -> int:
    """Is what was released what lies there and serves: files, model cards, signatures, and Triton itself."""
    return run_verify(args, settings)


def reproduce(args: argparse.Namespace, settings: Settings) -> int:
    """Write the pipeline, specs and data that made a version into a folder, ready to run."""
    from refit.bind import environment_digest, made_by
    from refit.reproduce import find
    from refit.reproduce import reproduce as write

    card, home = find(args.release, args.version, settings)
    environments = card.get("made_by", {}).get("environments", {})
    today = {n: environment_digest(settings, n) for n in environments if n in ("tools", "cpu")}
    made = write(card, home, Path(args.to or f"{card['model']}-{card['version']}"), made_by(settings, today))
    for note in made.notes:
        print(f"note: {note}")
    print(f"{made.pipeline}\nrun it: {shlex.join(made.command)}  (or run.sh there)")
    return GOOD


def gc(args: argparse.Namespace, settings: Settings) -> int:
    """Remove old runs, checkpoints and snapshots; never what a kept run, a release or a reused result needs."""
    from refit import collect

    folders = {p.name: p for p in collect.pipelines(settings.workspace)}
    if unknown := [name for name in args.pipelines if name not in folders]:
        known = ", ".join(folders) or "none"
        raise CliError(f"{', '.join(unknown)}: no such pipeline in {settings.workspace}; there is {known}")
    rules = collect.Rules(keep_runs=args.keep_runs, keep_days=args.keep_days)
    found, failed = [], False
    for name in args.pipelines or folders:
        try:
            found.append(collect.collect(folders[name], rules, dry_run=args.dry_run))
        except (collect.CollectError, TritonError, OSError) as exc:
            failed = True
            print(f"error: {exc}", file=sys.stderr)
    if args.json:
        print(json.dumps({"dry_run": args.dry_run, "pipelines": [f.as_json() for f in found]}, indent=1))
    else:
        print(collect.as_text(found, dry_run=args.dry_run))
    return FAILED if failed or any(f.notes for f in found) else GOOD


def doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Look at the place of a cluster profile: what is missing there, and the command that mends it; needs kubectl."""
    from refit import doctor as doctors

    made = [pipelines.load(file) for file in args.pipeline]
    for file, pipeline in zip(args.pipeline, made, strict=True):
        if args.cluster is None:
            args.cluster = pipeline.profile
        elif pipeline.profile != args.cluster:
            raise CliError(f"{file}: runs on cluster {pipeline.profile}, not on {args.cluster}; ask for one at a time")
    profile = cluster.load(args.cluster or "local", settings)
    stages = doctors.stages_of(made, profile) if isinstance(profile, cluster.KubernetesProfile) else ()
    levels = set()
    for finding in doctors.examine(
        profile, settings, stages, accounts=args.account, start_pods=not args.no_pods, wait_seconds=args.wait
    ):
        levels.add(finding.level)
        print(finding, flush=True)
    return FAILED if doctors.Level.FAIL in levels else GOOD


def schema(args: argparse.Namespace, settings: Settings) -> int:
    """The JSON Schema of pipeline files, for editors; with --network, that of specs/networks/*/network.yaml."""
    print(network_schema() if args.network else pipeline_schema())
    return GOOD


def pipeline_schema() -> str:
    """JSON Schema (text) of a pipeline file; specs/pipeline.schema.json is this."""
    from pydantic import Field, TypeAdapter

    models = tuple(toolkits.get(name).model for name in toolkits.NAMES)
    either: Any = Annotated[Union[models], Field(discriminator="toolkit")]  # noqa: UP007 - of a tuple
    return _schema_text(TypeAdapter(either).json_schema(), "Refit pipeline")


def network_schema() -> str:
    """JSON Schema (text) of a network.yaml; specs/network.schema.json is this. What the family's file may give in its
    place (specs/tao/families) is not required, and null takes out what that file gives."""
    from refit.tao.networks import Network

    made = Network.model_json_schema()
    for name in ("StageFact", "SpecFile"):
        del made["$defs"][name]["required"]
    made["required"] = [name for name in made["required"] if name not in ("specs", "stages")]
    for name in ("specs", "stages"):
        entry = made["properties"][name]
        entry["additionalProperties"] = {"anyOf": [entry["additionalProperties"], {"type": "null"}]}
    return _schema_text(made, "TAO network of Refit")


def _schema_text(made: dict[str, Any], title: str) -> str:
    made |= {"title": title, "$schema": "https://json-schema.org/draft/2020-12/schema"}
    # Python's escapes for control characters are not those of ECMAScript, which editors use.
    return re.sub(r"\\\\x([0-9a-f]{2})", r"\\\\u00\1", json.dumps(made, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=call.__doc__.split(";")[0].split(":")[0], description=call.__doc__)
        made.set_defaults(call=call)
        return made

    c = command("validate", validate)
    c.add_argument("files", nargs="+", metavar="FILE", help="pipeline files")
    c.add_argument("--data", metavar="PATH", help="a folder with the data, read as a run would; nothing is written")
    c = command("plan", plan)
    c.add_argument("file", metavar="FILE")
    c.add_argument("--json", action="store_true", help="as JSON: the plan as a run would write it")
    c.add_argument("--specs", action="store_true", help="show the stages' spec files too")
    c = command("pod", pod)
    c.add_argument("file", metavar="FILE")
    c.add_argument("stage", metavar="STAGE")
    c.add_argument("--cluster", metavar="NAME", help="this cluster profile in place of the file's")
    c = command("run", run)
    c.add_argument("file", metavar="FILE")
    c.add_argument("--data", metavar="PATH", help="a folder in place of the file's dataset.source")
    c.add_argument("--snapshot", metavar="DIR", help="a snapshot that is taken as it is, in place of any source")
    c.add_argument("--workspace", metavar="DIR", help="in place of REFIT_WORKSPACE")
    c.add_argument("--until", metavar="STAGE", help="stop after this stage")
    c.add_argument("--param", metavar="KEY=VALUE", action="append", default=[], help="as in Airflow's trigger form")
    c.add_argument("--run-id", metavar="ID", help="to go on with a run that was interrupted")
    c.add_argument("--dry-run", action="store_true", help="only look at the data and plan: what would run")
    c.add_argument("--quiet", action="store_true", help="no output of the stages, only the table")
    c.add_argument(
        "--approve", nargs="?", const="", metavar="NOTE", help="say yes where a person is asked before the release"
    )
    add_predict(command("predict", predict))
    c = command("status", status)
    c.add_argument("pipeline", nargs="?", help="only this one")
    c.add_argument("--json", action="store_true")
    c = command("shell", shell)
    c.add_argument("file", metavar="FILE")
    c.add_argument("stage", metavar="STAGE")
    c.add_argument("--run", metavar="RUN", help="a folder below runs/; default: the last one")
    c.add_argument("--print", action="store_true", help="only print, open no shell")
    add_all(command("dataset", dataset).add_subparsers(required=True, metavar="ACTION"))
    ngc = commands.add_parser("ngc", help="look at NGC's models", description="Look at NGC's models.")
    listing = ngc.add_subparsers(required=True, metavar="ACTION").add_parser(
        "list", help="those whose name fits a pattern", description=list_ngc.__doc__
    )
    add_list(listing)
    listing.set_defaults(call=list_ngc)
    add_import(command("import", import_))
    add_releases(command("releases", releases))
    add_rollback(command("rollback", rollback))
    c = command("publish", publish)
    c.add_argument("pipelines", nargs="*", metavar="PIPELINE", help="names in the workspace; default: all")
    add_reconcile(command("reconcile", reconcile))
    add_verify(command("verify", verify))
    c = command("reproduce", reproduce)
    c.add_argument("release", metavar="RELEASE", help="a pipeline's name, or the path of a release.json")
    c.add_argument("--version", type=int, metavar="N", help="default: the one that serves")
    c.add_argument("--to", metavar="DIR", help="a new folder; default: MODEL-VERSION")
    c = command("gc", gc)
    c.add_argument("pipelines", nargs="*", metavar="PIPELINE", help="names in the workspace; default: all")
    c.add_argument("--dry-run", action="store_true", help="only say what would go")
    c.add_argument("--keep-runs", type=_count, metavar="N", default=10, help="the newest of each pipeline; default 10")
    c.add_argument("--keep-days", type=_count, metavar="D", default=30, help="all younger ones; default 30")
    c.add_argument("--json", action="store_true")
    c = command("doctor", doctor)
    c.add_argument(
        "--cluster", metavar="NAME", help="the profile in REFIT_CLUSTERS; default: the pipelines', else local"
    )
    c.add_argument("--pipeline", metavar="FILE", nargs="+", action="extend", default=[], help="what is to run there")
    c.add_argument(
        "--account", metavar="NAMESPACE:NAME", action="append", default=[], help="of Airflow; default: by the Roles"
    )
    c.add_argument("--no-pods", action="store_true", help="only read, start no pods")
    c.add_argument("--wait", type=_count, metavar="SECONDS", default=300, help="for images to be pulled; default 300")
    c = command("schema", schema)
    c.add_argument("--network", action="store_true", help="of a TAO network's facts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
