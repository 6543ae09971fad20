"""The schema of a PyTorch or TF2 network, or of a data service: nvidia-tao-core's dataclasses.

TAO merges a spec over `ExperimentConfig` of the network's `default_config` with OmegaConf, which ends at the first
wrong key or type and knows nothing of the limits and choices in the fields' metadata. Every fault is found here; a spec
in which none is found is merged as TAO does it, and OmegaConf has the last word.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refit.specs import Problem
from refit.tao.schema.model import ANYTHING, MISSING, Field, Kind, Leaf, ListOf, MapOf, Record, Type, bounded
from refit.tao.tree import Tree

PACKAGE = "nvidia_tao_core"
_KINDS: dict[Any, Kind] = {int: "int", float: "float", bool: "bool", str: "str"}


def has(root: Path, network: str) -> bool:
    return (root / PACKAGE / "config" / network / "default_config.py").exists()


@functools.cache
def schema(network: str) -> Record:
    return _record(_experiment(network))


def _experiment(network: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.config.{network}.default_config").ExperimentConfig


@functools.cache
def _structured(network: str) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.structured(_experiment(network))


def merged(network: str, tree: Tree) -> list[Problem]:
    """What OmegaConf itself says to a spec: wrong references among keys, and whatever else it refuses."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, UnsupportedInterpolationType

    try:
        spec = OmegaConf.merge(_structured(network), OmegaConf.create(tree.plain()))
        OmegaConf.to_container(spec, resolve=True)
    except UnsupportedInterpolationType:
        return []  # of TAO's own resolver
    except (OmegaConfBaseException, TypeError) as exc:
        path = getattr(exc, "full_key", None) or ""
        advice = "; write the full path of a key of this spec" if isinstance(exc, InterpolationKeyError) else ""
        return [tree.problem(path, f"{str(exc).splitlines()[0]}{advice}")]
    return []


def _record(cls: Any, optional: bool = False) -> Record:
    return Record(lambda: _fields(cls), optional)


def _fields(cls: Any) -> Mapping[str, Field]:
    hints = typing.get_type_hints(cls)
    return {f.name: _field(f, hints[f.name]) for f in dataclasses.fields(cls)}


def _field(field: Any, hint: Any) -> Field:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    kind, metadata = _type(hint), field.metadata
    if isinstance(kind, Leaf):
        options = str(metadata.get("valid_options") or "")
        choices = tuple(o.strip() for o in options.split(",")) if options else kind.choices
        if field.name == "data_type" and all(map(str.isupper, choices)):
            choices += tuple(map(str.lower, choices))  # tao_deploy's initialize_experiments.py makes it small letters
        kind = replace(
            bounded(kind, metadata.get("valid_min"), metadata.get("valid_max")),
            choices=choices,
            pattern=str(metadata.get("regex") or ""),
            default=default,
        )
    elif isinstance(kind, MapOf):
        kind = replace(kind, loose=default is None)
    elif isinstance(kind, Record):
        kind = replace(kind, optional=default is None)
    return Field(kind, required=isinstance(default, str) and default == MISSING)


def _type(hint: Any, optional: bool = False) -> Type:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        return _type(inner[0], len(inner) < len(args)) if len(inner) == 1 else ANYTHING
    if hint in _KINDS:
        return Leaf(_KINDS[hint], optional)
    if origin is typing.Literal:
        return Leaf("str", optional, choices=tuple(map(str, args)))
    if dataclasses.is_dataclass(hint):
        return _record(hint, optional)
    if (origin or hint) in (list, tuple):
        return ListOf(_type(args[0]) if args else ANYTHING, optional)
    if (origin or hint) is dict:
        return MapOf(_type(args[1]) if args else ANYTHING, optional)
    return ANYTHING
