"""The launcher's mounts file (~/.tlt_mounts.json, ~/.tao_mounts.json): container paths to paths of the machine.

{"Mounts": [{"source": host, "destination": container}], "Envs": [{"variable", "value"}],
 "DockerOptions": {"user": "1000:1000", "shm_size": "16G", "ulimits": {}}}
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from refit.specs import Problem, SpecError


@dataclass(frozen=True)
class Mounts:
    """`folders`: (container, host), the longest container path first."""

    file: str = ""
    folders: tuple[tuple[str, str], ...] = ()
    envs: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    def host(self, path: str) -> str | None:
        """Where a path of the container lies on the machine, None where no mount holds it."""
        for container, host in self.folders:
            if path == container or path.startswith(f"{container}/"):
                return os.path.normpath(host + path[len(container) :])
        return None


def is_mounts(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("Mounts"), list)


def read(text: str, file: str) -> Mounts:
    """Raises SpecError: an entry cannot be used; all of them are told."""
    data = json.loads(text)
    problems: list[Problem] = []

    def wrong(key: str, message: str) -> None:
        problems.append(Problem(file, 0, key, message))

    folders = []
    for i, entry in enumerate(data["Mounts"]):
        source, target = (entry.get(k) if isinstance(entry, dict) else None for k in ("source", "destination"))
        if not isinstance(source, str) or not isinstance(target, str) or not source or not target:
            wrong(f"Mounts[{i}]", "needs source and destination, two paths")
            continue
        if not target.startswith("/"):
            wrong(f"Mounts[{i}].destination", f"{target!r} is no absolute path of the container")
            continue
        folders.append((os.path.normpath(target), os.path.expanduser(source)))
    for container in sorted({c for c, _ in folders}):
        hosts = sorted({h for c, h in folders if c == container})
        if len(hosts) > 1:
            wrong("Mounts", f"{container} is mounted from {' and from '.join(hosts)}; keep one")
    envs = []
    for i, entry in enumerate(data.get("Envs") or []):
        if not isinstance(entry, dict) or not isinstance(entry.get("variable"), str):
            wrong(f"Envs[{i}]", "needs variable and value")
        else:
            envs.append((entry["variable"], str(entry.get("value", ""))))
    options = data.get("DockerOptions") or {}
    if not isinstance(options, dict):
        wrong("DockerOptions", "must be a mapping")
        options = {}
    if problems:
        raise SpecError(problems)
    folders.sort(key=lambda f: len(f[0]), reverse=True)
    flat = tuple((str(k), v if isinstance(v, str) else json.dumps(v)) for k, v in options.items())
    return Mounts(file, tuple(folders), tuple(envs), flat)
