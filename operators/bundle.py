"""The DAG bundle: the repository's folder, with runs pinned to the shape that their DAG had when they began.

Airflow lets a run of a versioned bundle keep its version of the DAG for its whole life. This bundle asks for that and
keeps no copies: a task takes everything that decides its work from the run's plan.json, so the live code can run it.
Without it (Airflow's LocalDagBundle) a stage that is taken out of a pipeline file vanishes from the running run too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from airflow.dag_processing.bundles.base import BundleVersion
from airflow.dag_processing.bundles.local import LocalDagBundle

NAME = "refit"


class RefitBundle(LocalDagBundle):
    """`path` is the repository's root; only its dags/ folder is read (see .airflowignore)."""

    supports_versioning = True

    def initialize(self) -> None:
        if self.version:
            self._placeholder(self.version)
        super().initialize()

    def get_current_version(self) -> BundleVersion:  # type: ignore[override]
        """Names the state of dags/ and of the pipeline files; Airflow looks for new DAG files when it changes."""
        digest = hashlib.sha256()
        for folder in (self.path / "dags", _pipelines(self.path)):
            for entry in _scan(folder):
                digest.update(entry.encode("utf-8", "surrogateescape") + b"\0")
        version = digest.hexdigest()[:12]
        self._placeholder(version)
        return BundleVersion(version)

    def _placeholder(self, version: str) -> None:
        # Airflow 3.3's cleaner of old versions removes this folder and falls over (the scheduler with it) where it is
        # missing (BundleUsageTrackingManager._remove_stale_bundle). Where it cannot be made, neither can be the record
        # by which the cleaner finds the version.
        with contextlib.suppress(OSError):
            (self.versions_dir / version).mkdir(parents=True, exist_ok=True)


def config(root: str | Path, refresh_seconds: int = 5) -> str:
    """The value of `dag_bundle_config_list` (section dag_processor) for a repository at `root`.

    `refresh_seconds`: how often Airflow looks for new files in dags/. Pipeline files are read at each parse.
    """
    kwargs = {"path": str(root), "refresh_interval": refresh_seconds}
    return json.dumps([{"name": NAME, "classpath": f"{__name__}.{RefitBundle.__name__}", "kwargs": kwargs}])


def _pipelines(root: Path) -> Path:
    return Path(os.environ.get("REFIT_PIPELINES") or root / "specs" / "pipelines")


def _scan(folder: Path) -> list[str]:
    """Name, size and time of a folder's files, sorted; a folder that is missing has none."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stat = entry.stat()
                found.append(f"{entry.name} {stat.st_size} {stat.st_mtime_ns}")
    except OSError:  # missing, or a file went away in between: the next look sees it
        pass
    return sorted(found)
