"""The same verdict as those who read the spec in TAO: OmegaConf and protobuf's own parser.

Every kind of field, each with values of every kind: taken here if and only if taken there, but for a few that are
faults all the same (`STRICTER`). Limits and choices are left out, for TAO itself does not look at them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import message_factory, text_format
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from refit.specs import SpecError
from refit.tao.schema import _root, limits, protos, records
from refit.tao.schema.model import Field, ListOf, MapOf, Record, judge
from refit.tao.tree import parse

VALUES: list[Any] = [None, True, 0, 3, -1, 2.5, "3", "1e-4", "abc", "yes", "1.0", [], [3], ["a"], [[1]], [{"a": "b"}],
                     {}, {"a": "b"}, {"a": None}, {"a": ["b"]}, {"a": 1.5}]  # fmt: skip
TEXTS = [
    ": 1", ": -1", ": 0x10", ": 1.5", ": 1e3", ': "a"', ": 'a' 'b'", ": word", ": true", ": True", ": f", ": inf",
    ": 4294967296", ": [1, 2]", ": [1.5]", ': ["a"]', ": [word]", " { }", " { nothing: 1 }", ': { key: "a" }',
    ' { key: "a" value: 1 }', ' { key: "a" value: "b" }', ' { key: "a" value { } }',
]  # fmt: skip

# Taken by TAO's readers, refused here: a mapping in a list of scalars, a map's entry without a key, and a number that
# no name of an enum has (which the protobuf of the TF1 images refuses too).
STRICTER = [r"List.*: \[{'a': 'b'}\]", r"{ } .*\(Map", r"(-1|0x10) .*enum"]


def _fields(record: Record, path: str = "", deep: bool = False) -> Iterator[tuple[str, Field]]:
    """Each field below a record with its path; if `deep`, those in lists and maps too."""
    for name, field in record.fields.items():
        here = f"{path}.{name}" if path else name
        yield here, field
        inner = field.type.item if isinstance(field.type, ListOf) else field.type
        inner = inner.value if isinstance(inner, MapOf) else inner
        if isinstance(inner, Record) and (deep or isinstance(field.type, Record)):
            yield from _fields(inner, here, deep)


def _kinds(record: Record) -> dict[str, str]:
    """A field of each kind: its path by what tells its type from others'."""
    chosen: dict[str, str] = {}
    for path, field in _fields(record):
        kind = field.type
        inner = kind.item if isinstance(kind, ListOf) else kind.value if isinstance(kind, MapOf) else None
        names = [type(kind).__name__, type(inner).__name__]
        names += [str(getattr(k, a, "")) for k in (kind, inner) for a in ("kind", "optional", "loose")]
        chosen.setdefault(" ".join(names), path)
    return {path: names for names, path in chosen.items()}


def _unexplained(different: list[str]) -> list[str]:
    return [d for d in different if " is refused by " in d or not any(re.search(s, d) for s in STRICTER)]


# The networks that are left out have no other kinds of fields.
@pytest.mark.parametrize("network", ["rtdetr", "efficientdet_tf2", "annotations", "analytics"])
def test_omegaconf_takes_the_same_specs(network: str) -> None:
    schema = records.schema(network)
    config = importlib.import_module(f"nvidia_tao_core.config.{network}.default_config").ExperimentConfig
    structured = OmegaConf.structured(config)
    top = list(schema.fields)
    different = []
    for path, kind in _kinds(schema).items():
        for value in VALUES:
            content: Any = value
            for name in reversed(path.split(".")):
                content = {name: content}
            try:
                OmegaConf.merge(structured, OmegaConf.create(content))
                taken = True
            except (OmegaConfBaseException, TypeError):
                taken = False
            text = OmegaConf.to_yaml(OmegaConf.create(content))
            if taken == bool(judge(schema, parse(text, "yaml", "a.yaml"), unread=top)):
                different.append(f"{path} ({kind}): {value!r} is {'taken' if taken else 'refused'} by OmegaConf")
    assert _unexplained(different) == []


@pytest.mark.parametrize(
    ("network", "action"),
    [
        ("detectnet_v2", "train"),
        ("detectnet_v2", "inference"),
        ("detectnet_v2", "dataset_convert"),
        ("faster_rcnn", "train"),
        ("ssd", "train"),
        ("yolo_v4", "train"),
    ],
)
def test_protobuf_takes_the_same_specs(network: str, action: str) -> None:
    root = _root(protos.PACKAGE)
    assert root is not None
    schema = protos.schema(root, network, action)
    file, message = {
        "inference": ("inference", "Inference"),
        "dataset_convert": ("dataset_export_config", "DatasetExportConfig"),
    }.get(action, ("experiment", "Experiment"))
    descriptor = protos.message_type(root, f"{protos.PACKAGE}/cv/{network}/proto/{file}.proto", message)
    different = []
    for path, kind in _kinds(schema).items():
        *blocks, name = path.split(".")
        for value in TEXTS:
            text = "".join(f"{b} {{ " for b in blocks) + name + value + " }" * len(blocks)
            try:
                text_format.Merge(text, message_factory.GetMessageClass(descriptor)())
                taken = True
            except (text_format.ParseError, ValueError):
                taken = False
            try:
                problems = judge(schema, parse(text, "prototxt", "a.txt"))
            except SpecError as exc:
                problems = exc.problems
            if taken == bool(problems):
                different.append(f"{text} ({kind}) is {'taken' if taken else 'refused'} by protobuf")
    assert _unexplained(different) == []


@pytest.mark.parametrize("key", limits.RULES)
def test_every_limit_is_that_of_a_field(key: str) -> None:
    network, _, action = key.partition(" ")
    root = _root(protos.PACKAGE)
    assert root is not None
    names = {path.rpartition(".")[2] for path, _ in _fields(protos.schema(root, network, action or "train"), deep=True)}
    required = {name for names_ in limits.REQUIRED[key].values() for name in names_.split()}
    assert {*limits.RULES[key], *required} - names == set()
