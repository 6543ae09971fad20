"""Charts rendered by the real Helm library, and what came out as plain objects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_sdkpy
import yaml

from tests.helm import apiserver

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "refit"
Manifest = dict[str, Any]


class Refused(Exception):
    """Helm refused the values; the message is what a user reads."""


@dataclass(frozen=True)
class Rendered:
    """A chart with its values: what would be installed, its hooks (tests), and the notes."""

    manifests: list[Manifest]
    hooks: list[Manifest]
    notes: str

    def __iter__(self) -> Iterator[Manifest]:
        yield from self.manifests
        yield from self.hooks

    def of(self, kind: str) -> dict[str, Manifest]:
        """The objects of a kind, hooks included, by name."""
        return {m["metadata"]["name"]: m for m in self if m["kind"] == kind}

    def one(self, kind: str, name: str) -> Manifest:
        found = self.of(kind)
        assert name in found, f"no {kind} {name}; there are {sorted(found)}"
        return found[name]


def render(
    values: Mapping[str, Any] | None = None,
    *,
    kinds: apiserver.Kinds = apiserver.TODAY,
    version: str = "1.37.0",
    namespace: str = "vision",
    release: str = "refit",
    objects: Mapping[str, object] | None = None,
    chart: Path = CHART,
) -> Rendered:
    """Render a chart for a cluster that has `kinds` and `objects` (by API path).

    Raises:
        Refused: the schema or a check of the chart refused the values.
    """
    with apiserver.serve(kinds, version, objects) as kubeconfig:
        config = helm_sdkpy.Configuration(namespace=namespace, kubeconfig=kubeconfig)
        try:
            result = asyncio.run(
                helm_sdkpy.Install(config).run(release, str(chart), values=dict(values or {}), wait=False)
            )
        except helm_sdkpy.InstallError as exc:
            raise Refused(str(exc)) from None
    hooks = [doc for hook in result.get("hooks") or [] for doc in documents(hook["manifest"])]
    return Rendered(documents(result["manifest"]), hooks, result["info"].get("notes", ""))


def documents(text: str) -> list[Manifest]:
    """The objects of a YAML text. A key that is there twice is a fault: Kubernetes would take the last one."""
    return [doc for doc in yaml.load_all(text, Loader=_Strict) if doc]


class _Strict(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(k) for k in keys if keys.count(k) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)
