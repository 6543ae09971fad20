"""Text from pipeline files made fit to be shown in Airflow's UI: never code, never markup, never a template."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

from refit.pipeline import Pipeline
from refit.plan import Node
from refit.specs import Problem

_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")


def clean(text: str) -> str:
    """Without control characters and lone surrogates, which PostgreSQL refuses, and which YAML can smuggle in."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in text if c.isprintable() or c == "\n")


def plain(text: str) -> str:
    """Text as Markdown that shows exactly these characters: no links, pictures, HTML or headings come out of it."""
    lines = (_PUNCTUATION.sub(r"\\\1", line.strip()) for line in clean(text).split("\n"))
    return "\n".join(lines).strip()


def summary(pipeline: Pipeline) -> str:
    """One line for the list of DAGs."""
    first = clean(pipeline.description).strip().split("\n")[0]
    return first if len(first) <= 200 else first[:199] + "…"


def dag_doc(pipeline: Pipeline, file: str, nodes: Sequence[Node]) -> str:
    """What the DAG's page says: the file's description, where to change what, and the stages in order."""
    dataset = pipeline.dataset
    facts = [
        ("Pipeline file", file),
        ("Data", dataset.source),
        ("Classes", ", ".join(dataset.classes)),
        ("Toolkit, runtime", f"{pipeline.toolkit}, {pipeline.runtime}"),
        ("Schedule", pipeline.schedule or "by hand"),
    ]
    rows = "\n".join(f"| {plain(name)} | {plain(value)} |" for name, value in facts)
    stages = "\n".join(f"1. {plain(node.title)} ({plain(node.name)})" for node in nodes)
    # The last line is ours: Airflow opens a doc that ends in ".md" as a file.
    return (
        f"{plain(pipeline.description)}\n\n| | |\n|---|---|\n{rows}\n\n{stages}\n\n"
        "A stage whose inputs, settings and code are as before is not run again: its earlier result is used.\n"
    )


def bad_file_doc(problems: Iterable[Problem]) -> str:
    """What the page of a DAG says whose pipeline file is faulty."""
    lines = "\n".join(f"- {plain(str(problem))}" for problem in problems)
    return (
        f"The pipeline file cannot be used:\n\n{lines}\n\n"
        "Runs that began before go on as they were. New runs fail until the file is good again.\n"
    )
