"""From a pipeline to an ordered, immutable plan of stages.

Two steps. While Airflow parses, `skeleton` and `params` give the shape of the DAG and of the trigger form. In a run,
`bind_request` makes the request of the first stage, and `make_plan` (called by it, in `refit.bind`) turns the
toolkit's stages into requests for the runner, each with the key that decides whether an earlier result is reused.
Nothing here writes a file (bind_request reads the spec files that a pipeline names), and nothing imports Airflow: a
plan can be printed, compared and tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from refit import toolkits
from refit.cluster import Profile
from refit.config import Settings
from refit.data.source import parse, same_server, secret_name
from refit.pipeline import Pipeline, Resources, attachments, peek_name, plain_keys
from refit.publish import place
from refit.specs import Document, SpecError, did_you_mean, parse_yaml
from refit.toolkits.approval import APPROVE
from refit.toolkits.base import CHAMPION, CHAMPION_STAGES, Output, ParamField, Stage, command, spec_text
from refit.toolkits.canary import CANARY
from refit.toolkits.chain import NO_PROFILE

SCHEMA = 1
BIND, LOOK = "bind", "look"
CONNECTION = "REFIT_CONNECTION"  # bind's variable with the login of a remote source
GROUP = "stages"
ALONE = ("approve", "release")  # actions whose tasks stand outside the group
DRY_RUN = "dry_run"


class ConfError(ValueError):
    """A manual run's conf that cannot be used; the message names the key and what to do."""


@dataclass(frozen=True)
class Node:
    """One task of the DAG after bind. `upstream` names other nodes; every node also follows bind."""

    name: str
    title: str
    action: str
    group: str | None
    upstream: tuple[str, ...]
    gpus: int


def skeleton(pipeline: Pipeline) -> list[Node]:
    """The tasks after bind, in an order in which they can run."""
    stages = toolkits.get(pipeline.toolkit).stages(pipeline, NO_PROFILE)
    return [
        Node(s.name, s.title, s.action, None if s.action in ALONE else GROUP, s.upstream, s.resources.gpus)
        for s in stages
    ]


# --- params of a manual run -------------------------------------------------------------------------------------------

RUN_PARAMS = (
    ParamField(
        "reuse",
        "",
        "This run",
        "Reuse results",
        "off: every stage runs again, also where nothing changed",
        {"type": "boolean"},
        True,
    ),
    ParamField(
        "release",
        "",
        "This run",
        "Release",
        "off: the run ends with the model, Triton keeps its champion",
        {"type": "boolean"},
        True,
    ),
    ParamField(
        DRY_RUN,
        "",
        "This run",
        "Dry run",
        "on: only looks at the data and makes the plan; the run's report shows what would run and what would be reused",
        {"type": "boolean"},
        False,
    ),
)


def params(pipeline: Pipeline) -> list[ParamField]:
    """What a manual run may change: sections, JSON Schemas with ranges and choices, the file's values as defaults."""
    paths = [("Data", "dataset_source", "dataset.source"), *toolkits.get(pipeline.toolkit).params(pipeline)]
    paths += [
        ("Gates", "gate_floor", "gates.quality.floor"),
        ("Gates", "gate_max_drop_pruned", "gates.quality.max_drop_pruned"),
        ("Gates", "gate_max_drop_quantized", "gates.quality.max_drop_quantized"),
    ]
    fields = []
    for section, key, path in paths:
        schema, description = _leaf(type(pipeline), path)
        default = _value(pipeline, path)
        title = key.replace("_", " ").capitalize()
        fields.append(ParamField(key, path, section, title, description, schema, default))
    return [*fields, *RUN_PARAMS]


def overrides(pipeline: Pipeline, conf: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Split a run's conf into pipeline overrides by dotted path and the run's own switches (RUN_PARAMS).

    Another server than the file's, as `dataset.source`, is asked without the file's login.

    Raises ConfError for a key that this pipeline's form does not have. Values are judged by the pipeline's model.
    """
    known = {f.key: f for f in params(pipeline)}
    unknown = [k for k in conf if k not in known]
    if unknown:
        named = {f.path: f"; its name here is {f.key!r}" for f in known.values() if f.path}
        hints = [f"{k!r}{named.get(k) or did_you_mean(k, list(known))}" for k in sorted(unknown)]
        raise ConfError(f"unknown params: {', '.join(hints)} (this pipeline takes {', '.join(sorted(known))})")
    changed, switches = {}, {}
    for key, value in conf.items():
        field = known[key]
        if field.path:
            if value != field.default:
                changed[field.path] = value
        elif isinstance(value, bool):
            switches[key] = value
        else:
            raise ConfError(f"{key} is {value!r}; use true or false")
    source = changed.get("dataset.source")
    if isinstance(source, str) and pipeline.dataset.connection is not None:
        with contextlib.suppress(ValueError):  # told by the model
            if not same_server(parse(source), parse(pipeline.dataset.source)):
                changed["dataset.connection"] = None
    return changed, switches


@lru_cache(maxsize=1024)
def _leaf(model: type[Any], path: str) -> tuple[Mapping[str, Any], str]:
    """JSON Schema and description of the field at a dotted path."""
    field: FieldInfo | None = None
    at: Any = model
    for part in path.split("."):
        field = at.model_fields[part]
        at = _model_of(field.annotation)
    assert field is not None
    annotated: Any = Annotated[field.annotation, field]
    schema = TypeAdapter(annotated).json_schema()
    schema.pop("default", None)
    description = str(schema.pop("description", "") or field.description or "")
    if "anyOf" in schema:  # an optional number: the UI wants {"type": ["null", "number"], ...}
        kinds = schema.pop("anyOf")
        for kind in kinds:
            schema.update({k: v for k, v in kind.items() if k != "type"})
        schema["type"] = ["null", *(k["type"] for k in kinds if k["type"] != "null")]
    schema.pop("title", None)
    return schema, description


def _model_of(annotation: Any) -> Any:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if hasattr(candidate, "model_fields"):
            return candidate
        for inner in getattr(candidate, "__args__", ()):
            if hasattr(inner, "model_fields"):
                return inner
    return None


def _value(pipeline: Pipeline, path: str) -> Any:
    at: Any = pipeline
    for part in path.split("."):
        at = getattr(at, part)
    return at


# --- binding a run ----------------------------------------------------------------------------------------------------


def run_folder(run_id: str) -> str:
    """The folder name of a run: the run id where it is a plain file name, else made so and kept unique by a hash.

    >>> run_folder("manual__2026-11-20T19:10:00+00:00")
    'manual__2026-11-20T19-10-00-00-00.5f2c36'
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", run_id).lstrip(".-")[:120]
    if plain == run_id:
        return plain
    return f"{plain or 'run'}.{hashlib.sha256(run_id.encode()).hexdigest()[:6]}"


def stage_folder(index: int, name: str) -> str:
    return f"{index:02d}-{name}"


def stage_name(action: str, share: int | None) -> str:
    return action if share is None else f"{action}-{share}"


def bind_request(
    pipeline_file: Path,
    text: str,
    run_id: str,
    conf: Mapping[str, Any],
    settings: Settings,
    *,
    nonce: str,
    data: str | None = None,
    snapshot: str | None = None,
    profile: Mapping[str, Any] | None = None,
    share: int | None = None,
) -> dict[str, Any]:
    """The request of the run's first stage, which reads the data and writes plan.json; with `share`, of the stage that
    looks at that share of the data before it (dataset.shards).

    `text` is the pipeline file's content as it is now: later edits do not reach this run. `nonce` differs at every
    start, so that a bind is never answered by an older one. `data` replaces dataset.source, `snapshot` is
    taken in its place as it is (CLI). `profile` is the
    cluster profile as the caller read it, for a bind that runs where its file is not.
    """
    name = peek_name(pipeline_file)
    workspace = settings.workspace / name
    run = workspace / "runs" / run_folder(run_id)
    document = parse_yaml(text, str(pipeline_file))
    attached = attachments(document, pipeline_file.parent)
    if problems := plain_keys(attached):
        raise SpecError(problems)
    dataset = document.data.get("dataset")
    connection = dataset.get("connection") if isinstance(dataset, dict) and data is None else None
    secret = secret_name(connection) if isinstance(connection, str) else None
    spec = {
        "file": str(pipeline_file),
        "text": text,
        "attached": attached,
        "name": name,
        "run_id": run_id,
        "conf": dict(conf),
        "data": data,
        "snapshot": snapshot,
        "profile": dict(profile) if profile is not None else None,
        "share": share,
        "workspace": str(workspace),
        "run": str(run),
    }
    action = BIND if share is None else LOOK
    stage = run / stage_folder(0, stage_name(action, share))
    wanted = _wanted(document, action)
    return {
        "schema": SCHEMA,
        "pipeline": name,
        "run": run.name,
        "name": stage_name(action, share),
        "action": action,
        "index": 0,
        "toolkit": "refit",
        "environment": "tools",
        "image": None,
        "key": _sha({"spec": spec, "nonce": nonce}),
        "argv": list(command("refit.bind", action, "bind.yaml")),
        "env": {**reach(settings), **({CONNECTION: f"{{secret:{secret}}}"} if secret else {})},
        "files": {"bind.yaml": literal(spec)},
        "secrets": [secret] if secret else [],
        "connection": connection,
        "paths": {"workspace": str(workspace), "run": str(run), "stage": str(stage)},
        "inputs": {},
        "outputs": [{"name": action, "path": f"{action}.json", "kind": "file", "format": "json", "min_bytes": 2}],
        "status": "status.json",
        "summary": "summary.json" if action == BIND else None,
        "watch": None,
        "timeout_seconds": wanted.timeout_hours * 3600,
        "grace_seconds": 20,
        "exit_codes": {"2": "bad_spec", "3": "bad_data"},
        "resources": {"gpus": 0, "gpu_type": None, "cpus": wanted.cpus, "memory_gib": wanted.memory_gib},
        "publish": None,
        "progress": str(place.progress(workspace, stage_name(action, share))),
    }


def _wanted(document: Document, stage: str) -> Resources:
    """What a stage that takes data in asks for. bind, not this, tells what is wrong with a pipeline file."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return Resources.model_validate(document.data["resources"]["stages"][stage])
    return Resources(cpus=1, memory_gib=2)


def literal(spec: Mapping[str, Any]) -> str:
    """A spec file's text in which nothing is a token, for values from outside: the runner would replace "{out}".

    JSON, which is YAML, with the braces inside strings escaped.
    """
    return re.sub(r'"(?:[^"\\]|\\.)*"', lambda m: m.group().replace("{", "\\u007b"), json.dumps(spec, indent=1))


def connection_of(request: Mapping[str, Any]) -> str | None:
    """Of bind's request: the name of the connection with the login of a remote source."""
    name = request.get("connection")
    return name if isinstance(name, str) else None


def reach(settings: Settings) -> dict[str, str]:
    """The settings that decide which remote sources may be asked."""
    return {k: v for k, v in settings.environment().items() if k in ("REFIT_ALLOWED_HOSTS", "REFIT_CA_FILE")}


def lone_request(
    *,
    pipeline: str,
    run: str,
    name: str,
    action: str,
    environment: str,
    argv: Sequence[str],
    workspace: Path,
    resources: Resources,
    image: str | None = None,
    env: Mapping[str, str] | None = None,
    specs: Mapping[str, str | Mapping[str, Any]] | None = None,
    inputs: Mapping[str, str] | None = None,
    outputs: Sequence[Output] = (),
    secrets: Sequence[str] = (),
    watch: Mapping[str, Any] | None = None,
    exit_codes: Mapping[str, str] | None = None,
    grace_seconds: float = 20,
) -> dict[str, Any]:
    """The request of a stage that stands in a DAG of its own making, without a pipeline file and a plan.

    `pipeline` names its folder in the workspace; `inputs` maps a name in {input:NAME} to the stage of the same run
    that made it. The key is that of the request itself: a retry goes on with what the try before has saved.
    """
    home = workspace / pipeline
    folder = home / "runs" / run_folder(run)
    resource = resources.model_dump(exclude={"timeout_hours", "nodes"})
    request = {
        "schema": SCHEMA,
        "pipeline": pipeline,
        "run": folder.name,
        "name": name,
        "action": action,
        "title": name,
        "index": 0,
        "toolkit": "tao",
        "model": None,
        "environment": environment,
        "image": image,
        "argv": list(argv),
        "env": dict(env or {}),
        "files": {file: spec_text(spec) for file, spec in (specs or {}).items()},
        "secrets": list(secrets),
        "paths": {"workspace": str(home), "run": str(folder), "stage": str(folder / name)},
        "inputs": {key: str(folder / stage) for key, stage in (inputs or {}).items()},
        "outputs": [o.to_json() for o in outputs],
        "status": "status.json",
        "summary": None,
        "watch": dict(watch) if watch else None,
        "timeout_seconds": resources.timeout_hours * 3600,
        "grace_seconds": grace_seconds,
        "resume": True,
        "exit_codes": dict(exit_codes or {}),
        "resources": resource,
        "publish": None,
    }
    return {**request, "key": _sha(request)}


@dataclass(frozen=True)
class Bound:
    """What a run adds to a pipeline.

    `code` gives the sha256 of a package's source, `environments` the digest of each environment (and of the actions
    that have an image of their own), `find` the folder of an earlier good result for a key (or None). `dataset` is the
    snapshot's dataset.json with what this run knows of the evaluation set, `champion` the folder with the files of the
    version that serves, where it can be compared with this run's model.
    """

    run: str
    workspace: Path
    snapshot: Path
    fingerprint: str
    code: Callable[[str], str]
    environments: Mapping[str, str]
    find: Callable[[Stage, str], Path | None]
    off: frozenset[str] = frozenset()
    champion: Path | None = None
    dataset: Mapping[str, Any] | None = None


def make_plan(pipeline: Pipeline, profile: Profile, bound: Bound) -> dict[str, Any]:
    """plan.json: {"schema", "pipeline", "run", "fingerprint", "stages": [request, ...], "reused": {name: folder},
    "off": [names]}. A stage is reused where an earlier result has its key; its request stays in the plan, so that a
    task that is cleared by hand can still run it."""
    stages = toolkits.get(pipeline.toolkit).stages(pipeline, profile, bound.dataset)
    run_dir = bound.workspace / "runs" / bound.run
    keys: dict[str, str] = {}
    folders: dict[str, Path] = {}
    reused: dict[str, str] = {}
    requests = []
    for index, planned in enumerate(stages, start=1):
        stage = _with_champion(planned, bound)
        key = keys[stage.name] = stage_key(stage, bound, keys)
        own = run_dir / stage_folder(index, stage.name)
        requests.append(_request(pipeline, profile, bound, stage, index, keys, own, folders))
        earlier = None if stage.name in bound.off else bound.find(stage, key)
        folders[stage.name] = earlier or own
        if earlier is not None:
            reused[stage.name] = str(earlier)
    off = bound.off & keys.keys()
    nothing_new = "release" in {*off, *reused}
    if bound.champion is None or nothing_new:  # nothing to be compared, or nothing would come of it
        off |= CHAMPION_STAGES & keys.keys()
    if nothing_new:
        off |= {APPROVE, CANARY} & keys.keys()
    reused = {name: folder for name, folder in reused.items() if name not in off}
    return {
        "schema": SCHEMA,
        "pipeline": pipeline.name,
        "run": bound.run,
        "fingerprint": bound.fingerprint,
        "snapshot": str(bound.snapshot),
        "stages": requests,
        "reused": reused,
        "off": sorted(off),
    }


def _with_champion(stage: Stage, bound: Bound) -> Stage:
    if stage.name == APPROVE and bound.champion is None:
        return replace(stage, inputs=tuple(name for name in stage.inputs if name not in CHAMPION_STAGES))
    if stage.name not in CHAMPION_STAGES or bound.champion is None:
        return stage
    files = {name: spec_text(spec).replace(CHAMPION, str(bound.champion)) for name, spec in stage.files.items()}
    return replace(stage, files=files)


def _dialect(stage: Stage) -> dict[str, Any]:
    """How the command's success and figures are told: only commands that are not Refit's own need it."""
    said = {"success": stage.success, "metrics": stage.metrics, "classes": dict(stage.classes)}
    return {name: value for name, value in said.items() if value}


def stage_key(stage: Stage, bound: Bound, keys: Mapping[str, str]) -> str:
    """sha256 (hex) of all that decides a stage's result; two equal keys mean that a result can stand for the other."""
    return _sha(
        {
            "schema": SCHEMA,
            "name": stage.name,
            "code": {package: bound.code(package) for package in stage.code},
            "environment": stage.image or bound.environments.get(stage.action) or bound.environments[stage.environment],
            "argv": stage.argv,
            "env": stage.env,
            "files": {name: spec_text(spec) for name, spec in stage.files.items()},
            "gpus": stage.resources.gpus,
            "data": _data(stage, bound),
            "secrets": sorted(stage.secrets),
            # Whom an approval has asked about what changes nothing of what is released.
            "upstream": {name: keys[name] for name in stage.inputs if name != APPROVE},
            **_dialect(stage),
            **({"session": stage.session} if stage.session else {}),
            **({} if stage.code else {"outputs": [o.to_json() for o in stage.outputs], "status": stage.status}),
        }
    )


def _data(stage: Stage, bound: Bound) -> Any:
    """What of the data decides a stage's result: all of it, or where any will do, what kind of data it is."""
    if not stage.reads_snapshot:
        return None
    if not stage.any_data:
        return bound.fingerprint
    about = bound.dataset or {}
    kinds = about.get("images", {}).get("extensions", {})
    return {"classes": about.get("classes"), "splits": sorted(about.get("splits", {})), "images": sorted(kinds)}


def _request(
    pipeline: Pipeline,
    profile: Profile,
    bound: Bound,
    stage: Stage,
    index: int,
    keys: Mapping[str, str],
    folder: Path,
    folders: Mapping[str, Path],
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "pipeline": pipeline.name,
        "run": bound.run,
        "name": stage.name,
        "action": stage.action,
        "title": stage.title,
        "index": index,
        "toolkit": pipeline.toolkit,
        "model": (pipeline.release.model or pipeline.name) if pipeline.release else None,
        "environment": stage.environment,
        "image": stage.image,
        "key": keys[stage.name],
        "argv": list(stage.argv),
        "env": {**profile.env, **stage.env},
        "files": {name: spec_text(spec) for name, spec in stage.files.items()},
        "secrets": list(stage.secrets),
        "paths": {
            "workspace": str(bound.workspace),
            "run": str(folder.parent),
            "stage": str(folder),
            **({"snapshot": str(bound.snapshot)} if stage.reads_snapshot else {}),
        },
        "inputs": {name: str(folders[name]) for name in stage.inputs},
        "input_keys": {name: keys[name] for name in stage.inputs},
        "outputs": [o.to_json() for o in stage.outputs],
        "status": stage.status,
        **_dialect(stage),
        "summary": stage.summary,
        "watch": dict(stage.watch) if stage.watch else None,
        "timeout_seconds": stage.resources.timeout_hours * 3600,
        "grace_seconds": stage.grace_seconds,
        "resume": stage.resumes if isinstance(stage.resumes, bool) else dict(stage.resumes),
        "exit_codes": dict(stage.exit_codes),
        "resources": stage.resources.model_dump(exclude={"timeout_hours", "nodes"}),
        "publish": str(bound.workspace / "keys" / f"{keys[stage.name]}.json"),
        "progress": str(place.progress(bound.workspace, stage.name)),
    }


def tasks(plan: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The stages of a plan that are to be run, or in a dry run would be: neither reused nor off."""
    skip = {*plan["reused"], *plan["off"]}
    return [s for s in plan["stages"] if s["name"] not in skip]


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
