"""From a pipeline to the command line and the spec files of one TAO stage.

A spec begins as the network's template, or as the user's own file, and values are set in it: what the pipeline gives
(`set` in network.yaml), what Refit must control (`control`: paths, the data, the model to start from), and last the
user's `set`. In a spec of the user's own, `set` touches only what the pipeline names, and each change is reported.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refit.specs import Key, Problem, SpecError, dotted
from refit.tao import networks, tree
from refit.tao.networks import Role, SpecFile, StageFact, fill, names_in

# What only a training reads: where it begins. What a spec of the user's own says of that holds in the first training,
# where the pipeline says nothing, but for the pruned model of another run.
BEGINNINGS = ("pretrained", "pretrained_backbone", "pretrained_model", "start", "pruned")
KEPT = {*BEGINNINGS} - {"pruned"}


# In the place of a key that stands in a spec in plain text: preflight refuses it, and nothing prints it. By its name,
# in the specs of networks that know no key as well.
KEY = "(a key)"
KEY_NAMES = re.compile(r"(?:^|\.)(?:\w*(?:enc|encryption|api|access)_?key|\w*(?:token|password))$")


class SetError(SpecError):
    """A path in the pipeline's `set` that leads nowhere; `key` is its place in the pipeline file."""

    def __init__(self, key: Key, message: str) -> None:
        super().__init__([Problem("", 0, dotted(key), message)])
        self.key, self.message = key, message


@dataclass(frozen=True)
class Rendered:
    """One spec file of a stage.

    Attributes:
        name: its name in the network's `specs`.
        facts: what is known of it.
        file: its name in the stage's specs folder.
        own: the user's file that it was made from; "": the network's template.
        changed: what was changed in the user's file, a line each.
        origins: path in the spec -> the pipeline's key that gave its value.
    """

    name: str
    facts: SpecFile
    file: str
    tree: tree.Tree
    own: str = ""
    changed: tuple[str, ...] = ()
    origins: Mapping[str, Key] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What a spec is made from.

    Attributes:
        scope: name -> value for `${name}`.
        keys: name -> the pipeline's key, for those that the pipeline gives.
        own: (path, text) of the user's spec, None for the template.
        set: the user's path -> value.
        set_keys: the pipeline's key of each.
        omit: paths that the command does not read.
        begins: a training that may begin where the user's own spec says.
        resumes: one that goes on from a checkpoint, and begins nowhere else, whatever `set` says.
    """

    scope: Mapping[str, Any]
    keys: Mapping[str, Key]
    own: tuple[str, str] | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    set_keys: Mapping[str, Key] = field(default_factory=dict)
    omit: tuple[str, ...] = ()
    begins: bool = False
    resumes: bool = False


def words(fact: StageFact, scope: Mapping[str, Any]) -> tuple[str, ...]:
    """The command line; words whose value is None are left out, and so are those behind a `when` that is not true."""
    out: list[str] = []
    for word in fact.argv:
        if isinstance(word, dict):
            if scope[word["when"]]:
                out += [str(fill(w, scope)) for w in word["words"]]
            continue
        value = fill(word, scope)
        if value is not None:
            out.append(str(value))
    return tuple(out)


def spec(name: str, facts: SpecFile, folder: Path, source: Source) -> Rendered:
    """Make one spec file, from the template in `folder` or the user's own.

    Raises SpecError: the user's spec is faulty; SetError: a path of `set` is.
    """
    form: tree.Format = "yaml" if facts.file.endswith(".yaml") else "prototxt"
    if source.own is None:
        made = tree.parse(networks.template(folder, facts.file), form, f"{folder.name}/{facts.file}")
        wanted = facts.set
    else:
        made = tree.parse(source.own[1], form, source.own[0])
        wanted = {p: v for p, v in facts.set.items() if names_in(v) & set(source.keys)}
    _mask(made)
    before = copy.deepcopy(made) if source.own else None
    origins: dict[str, Key] = {}
    _put(made, wanted, source, origins)
    _put(made, facts.control, source, origins, control=True)
    for path in facts.drop:
        made.drop(path)
    for path, value in source.set.items():
        try:
            made.put(path, value)
        except KeyError as exc:
            raise SetError(source.set_keys[path], str(exc.args[0])) from None
        for inner in [p for p in origins if p.startswith((f"{path}.", f"{path}["))]:
            del origins[inner]
        origins[path] = source.set_keys[path]
    for path, value in facts.control.items():
        if source.resumes and names_in(value) & {*BEGINNINGS} and fill(value, source.scope) is None:
            made.drop(path)
    _mask(made)
    if source.own is None:
        _within_the_training(made, facts, origins)
    for path in source.omit:
        made.drop(path)
        if before:  # what another command reads is no change of the user's spec
            before.drop(path)
    return Rendered(
        name=name,
        facts=facts,
        file=f"{name}.{facts.file.rpartition('.')[2]}",
        tree=made,
        own=source.own[0] if source.own else "",
        changed=tuple(tree.changes(before, made)) if before else (),
        origins=origins,
    )


def _mask(made: tree.Tree) -> None:
    for path, leaf in made.leaves():
        if leaf.value and KEY_NAMES.search(path):
            leaf.value, leaf.raw = KEY, ""


def _within_the_training(made: tree.Tree, facts: SpecFile, origins: Mapping[str, Key]) -> None:
    """The template's intervals of epochs fit into a training that the pipeline makes shorter, e.g. for a trial."""
    epochs = [value for path in facts.roles.get("epochs", ()) if isinstance(value := made.value(path), int)]
    within: tuple[Role, ...] = ("evaluate_every", "evaluate_from", "warmup")
    for path in (path for role in within for path in facts.roles.get(role, ())):
        value = made.value(path)
        if epochs and isinstance(value, int) and value > epochs[0] and path not in origins:
            made.put(path, epochs[0])


def _put(
    made: tree.Tree, values: Mapping[str, Any], source: Source, origins: dict[str, Key], *, control: bool = False
) -> None:
    """Set what has a value. What Refit controls and has none is taken out of a spec of the user's own, so that nothing
    of theirs stays there: a checkpoint of another machine, the calibration of an engine without INT8."""
    for path, value in values.items():
        filled = fill(value, source.scope)
        # A list that the pipeline gives may be empty; one that is made of values has none of them then.
        if filled is None or (filled in ([], {}) and not isinstance(value, str)):
            if control and source.own and not (source.begins and names_in(value) & KEPT):
                made.drop(path)
            continue
        made.put(path, filled)
        for used in sorted(names_in(value) & set(source.keys)):
            origins[path] = source.keys[used]


def origin(rendered: Rendered, path: str) -> Key | None:
    """The pipeline's key behind a place in a spec, None where the template or the user's file says it."""
    best = max((p for p in rendered.origins if path == p or path.startswith((f"{p}.", f"{p}["))), key=len, default=None)
    return rendered.origins[best] if best is not None else None
