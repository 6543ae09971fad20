"""Sphinx extension of Refit's site. It changes pages while they are read, the files stay as they are:

- every key of a pipeline file, from specs/pipeline.schema.json, comes at the end of docs/reference.md. So that is never
  stale: tests hold the schema to the code.
- links to files outside docs/ work where the repository is read; the site names their paths.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = REPOSITORY / "specs" / "pipeline.schema.json"
PAGE = "reference"
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")
RANGES = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))

Schema = dict[str, Any]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True}


def read(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = OUTSIDE.sub(lambda m: link(name, m), source[0])
    if name == PAGE:
        source[0] += "\n".join(["", *lines(json.loads(SCHEMA.read_text(encoding="utf-8")))])


def link(page: str, found: re.Match[str]) -> str:
    """A link of a page as the site has it; raises ValueError where it leads to no file."""
    words, target = found[1], found[2]
    path = (REPOSITORY / "docs" / PurePosixPath(page).parent / target).resolve()
    if not path.exists() or not path.is_relative_to(REPOSITORY):
        raise ValueError(f"docs/{page}.md: {target} leads to no file of the repository")
    if path.is_relative_to(REPOSITORY / "docs"):
        return found[0]
    shown = f"`{path.relative_to(REPOSITORY)}`"
    return shown if words.strip("`") in shown or words.endswith(".md") else f"{words} ({shown})"


def lines(schema: Schema) -> Iterator[str]:
    """The tables in Markdown: what all pipelines have first, then the blocks that each toolkit has of its own."""
    models = {name: resolve({"$ref": ref}, schema) for name, ref in schema["discriminator"]["mapping"].items()}
    first, *others = models.values()
    shared = {k: v for k, v in first["properties"].items() if all(m["properties"].get(k) == v for m in others)}
    yield from block("Every pipeline", {**first, "properties": shared}, schema, "", 2)
    for name, model in models.items():
        own = {k: v for k, v in model["properties"].items() if k not in shared}
        yield from block(f"`toolkit: {name}`", {**model, "properties": own}, schema, "", 2)


def block(title: str, model: Schema, schema: Schema, at: str, level: int) -> Iterator[str]:
    """A heading, a table of the keys, and a block for each key that is one itself."""
    yield from ("", f"{'#' * level} {title}", "")
    if at and model.get("description"):
        yield from (text(model["description"]), "")
    yield from ("| key | value | default | |", "|---|---|---|---|")
    below = []
    for key, value in model["properties"].items():
        default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
        if key in model.get("required", ()):
            default = "**needed**"
        inner = [m for m in choices(value, schema) if "properties" in m]
        below += [(f"{at}{key}", m) for m in inner]
        if inner and isinstance(value.get("default"), dict):
            default = "below"
        yield f"| `{key}` | {kind(value, schema)} | {text(default)} | {text(value.get('description', ''))} |"
    for path, inner_model in below:
        yield from block(f"`{path}`", inner_model, schema, f"{path}.", min(level + 1, 4))


def choices(value: Schema, schema: Schema) -> list[Schema]:
    """What a value may be, references followed."""
    value = resolve(value, schema)
    either = value.get("anyOf") or value.get("oneOf")
    return [c for v in either for c in choices(v, schema)] if either else [value]


def resolve(value: Schema, schema: Schema) -> Schema:
    while "$ref" in value:
        value = schema["$defs"][value["$ref"].rsplit("/", 1)[1]]
    return value


def kind(value: Schema, schema: Schema) -> str:
    """What a value may be, in a few words."""
    return " or ".join(dict.fromkeys(_kind(c, schema) for c in choices(value, schema)))


def _kind(value: Schema, schema: Schema) -> str:
    if "const" in value:
        return f"`{json.dumps(value['const'])}`".replace('"', "")
    if "enum" in value:
        return ", ".join(f"`{v}`" for v in value["enum"])
    if "properties" in value:
        return "a block"
    name = str(value.get("type", "any value"))
    if name == "array":
        return f"list of {kind(value.get('items', {}), schema)}"
    if name == "object":
        inner = value.get("additionalProperties")
        return f"name → {kind(inner, schema)}" if isinstance(inner, dict) else "name → any value"
    ranges = " ".join(f"{word} {value[key]}" for key, word in RANGES if key in value)
    return f"{name} {ranges}".strip()


def text(value: str) -> str:
    """In a cell of a table."""
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")
