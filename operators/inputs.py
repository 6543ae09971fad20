"""The pipeline file as a run's first tasks read it. Faults end the task at once: trying again would not help."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from refit.config import ConfigError, Settings

if TYPE_CHECKING:
    from refit.pipeline import Pipeline


_MOST_DEEP = 100  # levels, as in refit.specs; libyaml's time grows with their square
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class BadInput(AirflowFailException):
    """A pipeline file, a param or a setting that cannot be used; the message names all faults."""


def settings() -> Settings:
    try:
        return Settings.from_env()
    except ConfigError as exc:
        raise BadInput(str(exc)) from None


def pipeline_file(pipeline: str, where: Settings) -> Path:
    """The file of a pipeline, whether it ends in .yaml or .yml. Raises BadInput where there is none (any more)."""
    for ending in (".yaml", ".yml"):
        path = where.pipelines / (pipeline + ending)
        if path.is_file():
            return path
    raise BadInput(f"{where.pipelines / pipeline}.yaml: no such file; it was there when this DAG was made")


def peek(file: Path, key: str) -> str:
    """The word that stands at a key of a file's top level, or "": also of a file that is not valid (any more)."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    with contextlib.suppress(yaml.YAMLError):
        word = dict(_words(text)).get(key, "")
        return "" if word in ("null", "~") else word
    match = re.search(rf"^{key}:[ \t]*[\"']?([A-Za-z0-9._-]+)", text, re.MULTILINE)
    return match[1] if match else ""


def _words(text: str) -> Iterator[tuple[str, str]]:
    """The keys of a file's top level that have one word. By events: what else it holds is not built, however deep."""
    deep, name = 0, None
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            deep += 1
            if deep > _MOST_DEEP or (deep == 1 and not isinstance(event, yaml.MappingStartEvent)):
                return
        elif isinstance(event, yaml.CollectionEndEvent):
            deep -= 1
            name = None
        elif deep == 1 and isinstance(event, yaml.ScalarEvent):
            if name is not None:
                yield name, event.value
            name = event.value if name is None else None
        elif deep == 1:  # an alias
            name = None


def runtime(file: Path) -> str:
    """Where the stages of a pipeline file run: what it names, else its toolkit's default."""
    return peek(file, "runtime") or ("kubernetes" if peek(file, "toolkit") == "tao" else "local")


def profile(file: Path) -> str:
    """The cluster profile of a pipeline file whose stages run in pods."""
    return peek(file, "cluster") or "kubernetes"


def shown(file: Path, where: Settings) -> str:
    """A file as a person would write it: from the repository's root where it lies below it."""
    return str(file.relative_to(where.repository) if file.is_relative_to(where.repository) else file)


def read(pipeline: str, conf: Mapping[str, Any], where: Settings) -> Pipeline:
    """The pipeline with a run's conf applied. Raises BadInput for faults in the file, unknown keys and bad values."""
    from refit import pipeline as pipelines
    from refit import plan as plans
    from refit.specs import SpecError, read_document

    file = pipeline_file(pipeline, where)
    try:
        document = read_document(file, shown(file, where))
        attached = pipelines.attachments(document, file.parent)
        changed, _ = plans.overrides(pipelines.from_document(document, pipeline, attached=attached), conf)
        made: Pipeline = pipelines.from_document(document, pipeline, changed, attached)
    except SpecError as exc:
        raise BadInput(str(exc)) from None
    except plans.ConfError as exc:
        raise BadInput(f"this run's params: {exc}") from None
    return made


def connection(name: str) -> str | None:
    """A connection of Airflow as JSON, None where there is none of that name. For a subprocess's environment or this
    process's own use; never for XCom, a trigger's arguments or a log."""
    try:
        found = Connection.get(name)
    except AirflowNotFoundException:
        return None
    return json.dumps({key: getattr(found, key) for key in ("conn_type", "login", "password", "host", "port", "extra")})


def conf_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """What the person (or program) that started the run gave along; {} for other runs."""
    return dict(context["dag_run"].conf or {})
