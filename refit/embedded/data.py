"""The data of a `make run`: the user's own folder, what lies in the pipeline's inbox, or the demo's drawn shapes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refit.data import arrival
from refit.data.source import Kind
from refit.embedded.settings import Embedded
from refit.pipeline import Pipeline

DEMO = "demo"  # the pipeline whose data is made here when there is none


class DataError(ValueError):
    """There is no usable data; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """Where a run's data lies (a folder, or a remote source's URL). `conf` is what a run by hand needs to be told;
    `arrives`: Airflow starts by itself."""

    folder: Path | str
    conf: Mapping[str, Any]
    arrives: bool


def allow(place: Embedded, *folders: Path) -> Embedded:
    """The same place with more allowed data roots: who starts the runtime may read what they name."""
    roots = place.refit.data_roots
    more = tuple(f for f in folders if not any(f.is_relative_to(root) for root in roots))
    return dataclasses.replace(place, refit=dataclasses.replace(place.refit, data_roots=(*roots, *more)))


def source(place: Embedded, pipeline: Pipeline, given: str | None) -> Source:
    """What the run will read, and whether Airflow's watcher will start it.

    Args:
        given: the user's folder (DATA=...), or None for the pipeline's own source.

    Raises:
        DataError: the folder is missing or empty.
        ConfigError: the pipeline's source is outside the allowed roots.
    """
    named = place.refit.source(pipeline.dataset.source)
    if named.kind is not Kind.FOLDER and not given:
        return Source(named.text, {}, False)  # Airflow looks there: it has the login
    own = Path(named.text)
    folder = Path(os.path.abspath(given)) if given else own
    if given and not folder.is_dir():
        raise DataError(f"DATA={given}: there is no such folder")
    if pipeline.name == DEMO and not given:
        make_demo(place, pipeline, folder)
    listing = arrival.listing(folder, rule=pipeline.dataset.arrival)
    if not listing.files:
        raise DataError(f"{folder} holds no data: put a labelled data set there, or name one with DATA=path")
    taken = arrival.last_taken(place.refit.workspace / str(pipeline.name))
    new = taken is None or taken.signature != listing.signature
    arrives = pipeline.schedule == "on_arrival" and new and folder == own
    return Source(folder, {} if folder == own else {"dataset_source": str(folder)}, arrives)


def make_demo(place: Embedded, pipeline: Pipeline, inbox: Path) -> None:
    """Draw the demo's data into its inbox, unless something lies there. It appears whole, then the marker says so.

    Raises:
        DataError: it could not be made.
    """
    if not inbox.is_dir() or not any(inbox.iterdir()):
        inbox.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [place.python("tools"), "-m", "refit.data", "synthetic", str(inbox)],
            check=False,
            env=place.environment(),
            cwd=place.refit.repository,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DataError(f"the demo's data cannot be made: {done.stderr.strip() or done.stdout.strip()}")
    marker = pipeline.dataset.arrival.marker
    if marker and not (inbox / marker).exists():
        (inbox / marker).touch()
