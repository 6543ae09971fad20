"""The form for a run that is started by hand: fields of `refit.plan` as Airflow params."""

from __future__ import annotations

from collections.abc import Iterable

from airflow.sdk import Param

from refit.toolkits.base import ParamField


def form(fields: Iterable[ParamField]) -> dict[str, Param]:
    """Params in the order of the fields; Airflow's API refuses a value that is outside its schema.

    Airflow does not refuse unknown keys: the run's first task does (`refit.plan.overrides`).
    """
    return {
        f.key: Param(f.default, description=f.description or None, title=f.title, section=f.section, **f.schema)
        for f in fields
    }
