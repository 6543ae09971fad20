"""The form for a run that is started by hand: fields of `refit.plan` as Airflow params."""

from __future__ import annotations

from collections.abc import Iterable

from airflow.sdk import Param

from refit.toolkits.base import ParamField


def form(fields: Iterable[ParamField]) -> dict[str, Param]:
    """Params in the order of the fields; Airflow's API refuses a value that is outside its schema.

    Airflow does not refuse unknown keys: the run's first task does (`refit.plan.overrides`).
    """
    return {f.key: Param(f.default, description=_help(f), title=f.title, section=f.section, **f.schema) for f in fields}


def _help(field: ParamField) -> str | None:
    """What stands below the field, with its range: Airflow's form sets a number outside of it right without a word."""
    words = [
        f"{word} {field.schema[key]:g}"
        for key, word in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "to below")
        )
        if key in field.schema
    ]  # fmt: skip
    return "; ".join(filter(None, [field.description, " ".join(words)])) or None
