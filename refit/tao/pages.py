"""The tables of docs/networks/<name>.md, made from the network's facts: `python -m refit.tao.pages`.

A page is text by hand with parts between `<!-- made: NAME -->` and `<!-- end -->`; those are written here, so that they
cannot say anything else than network.yaml does. tests/tao/test_pages.py says when a page is stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from refit import pipeline as pipelines
from refit.specs import parse_yaml
from refit.tao import networks
from refit.tao.networks import FOLDER, Network, StageFact, Success, names_in
from refit.tao.params import NetworkParams
from refit.toolkits.chain import NO_PROFILE
from refit.toolkits.tao import TaoChain, TaoPipeline, TaoStages

PAGES = FOLDER.parent / "docs" / "networks"
CLASSES = ("car", "person")

# `${name}`s that TaoChain makes up -> what in the pipeline file decides them.
_MADE_FROM = {
    "seed": "seed",
    "gpus": "resources.stages.train.gpus",
    "gpu_ids": "resources.stages.train.gpus",
    "class": "dataset.classes",
    "classes": "dataset.classes",
    "num_classes": "dataset.classes",
    "num_classes_and_background": "dataset.classes",
    "class_weight": "stages.train.class_weights",
    "grayscale": "network.channels",
    "extension": "network.image_extension",
    "key": "network.key_secret",
    "pretrained": "network.pretrained",
    "pretrained_backbone": "network.pretrained",
    "pretrained_model": "network.pretrained",
    "start": "network.pretrained",
    "network.backbone": "network.backbone",
    "amp": "stages.train.amp",
    "qat": "stages.train.qat",
    "precision": "stages.build_engine.precision",
    "precision_upper": "stages.build_engine.precision",
    "workspace_mib": "stages.build_engine.workspace_gib",
    "int8_ptq": "stages.build_engine.precision",
    "int8_qat": "stages.train.qat",
    "export_quantized": "stages.quantize.backend",
    "quantizing": "stages.quantize",
    "augmented": "stages.augment",
}
# Those that no key of the pipeline decides: the run, its data, the network's own name.
_OF_THE_RUN = {
    "network.name", "split", "data", "calibration", "model", "saved", "onnx", "engine", "pruned", "resumed",
    "next_epoch", "retraining", "train_images", "val_images", "split_root", "split_annotations",
}  # fmt: skip
_SPEC_OF = {"convert": "dataset_convert"}


def parameters(facts: Network) -> dict[str, list[str]]:
    """Key of the pipeline file -> the places that it sets: paths in specs, flags of commands."""
    found: dict[str, list[str]] = {}

    def note(value: Any, block: str, place: str) -> None:
        for key in _keys(value, block):
            places = found.setdefault(key, [])
            if place not in places:
                places.append(place)

    for action, stage in facts.stages.items():
        for name in stage.specs:
            of = "" if name == "train" else f" ({name})"
            for path, value in {**facts.specs[name].set, **facts.specs[name].control}.items():
                if not f"{path}.".startswith(tuple(f"{part}." for part in stage.omit)):
                    note(value, _SPEC_OF.get(name, name), f"`{path}`{of}")
        for flag, values in _flags(stage):
            note(values, {"evaluate_engine": "evaluate"}.get(action, action), f"`{flag}` of {action}")
    order = {name: place for place, name in enumerate(_order())}
    return {key: found[key] for key in sorted(found, key=lambda k: order[k])}


def _flags(stage: StageFact) -> Iterator[tuple[str, list[str]]]:
    """Each flag of a command with its value, and the condition that it stands behind as another."""
    words: list[tuple[str, str]] = []
    for word in stage.argv:
        words += [(w, f"${{{word['when']}}}") for w in word["words"]] if isinstance(word, dict) else [(word, "")]
    for (flag, when), (value, _) in pairwise([*words, ("", "")]):
        if flag.startswith("-"):
            yield flag, [when, "" if value.startswith("-") else value]


def _keys(value: Any, block: str) -> set[str]:
    """The keys of the pipeline file that decide a value; `block` is the stage's whose parameters need no prefix."""
    keys = {"dataset.classes"} if isinstance(value, dict) and value.get("each") == "classes" else set()
    for name in names_in(value) - _OF_THE_RUN:
        first, dot, _ = name.partition(".")
        if name in _MADE_FROM:
            keys.add(_MADE_FROM[name])
        elif first in ("network", "backbone"):
            keys.add(name if first == "network" else "network.backbone")
        else:
            keys.add(f"stages.{name}" if dot and first in TaoStages.model_fields else f"stages.{block}.{name}")
    return keys


def _order() -> Iterator[str]:
    """The keys in the order in which docs and schema have them."""
    yield from ("seed", "dataset.classes", "resources.stages.train.gpus")
    yield from (f"network.{n}" for n in NetworkParams.model_fields)
    for block, field in TaoStages.model_fields.items():
        yield f"stages.{block}"
        models = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for model in (m for m in models if hasattr(m, "model_fields")):
            for name, inner in model.model_fields.items():
                yield f"stages.{block}.{name}"
                yield from (f"stages.{block}.{name}.{n}" for n in getattr(inner.annotation, "model_fields", ()))


# --- the parts of a page ----------------------------------------------------------------------------------------------


def _facts(name: str, facts: Network) -> str:
    size, step = facts.input, facts.input.multiple_of
    sides = f", sides a multiple of {step}" if step > 1 else ""
    sides += f", sides of at least {size.least}" if size.least > 1 else ""
    weights = [f"`{b}`{'' if f.get('ngc') else ' (no weights known on NGC)'}" for b, f in facts.backbones.items()]
    ids = "" if facts.data.form == "kitti" else f", category ids from {facts.data.first_id}"
    rows = {
        "family, spec format": f"{facts.family}, {'protobuf text' if facts.format == 'prototxt' else 'YAML'}",
        "input by default": f"{size.width} x {size.height}{sides}",
        "channels": " or ".join(map(str, size.channels)),
        "data written as": f"{facts.data.form.upper()}{ids}",
        "models encrypted": "yes, with `network.key_secret`" if facts.encrypted else "no",
        "backbones, the first is the default": ", ".join(weights),
        **{f"INT8 by `{way}`": text for way, text in facts.int8.items()},
        "operators that only TensorRT has": ", ".join(f"`{p}`" for p in facts.plugins) or "none",
        "sources (NVIDIA's)": ", ".join(f"`{s}`" for s in facts.sources),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in rows.items())])


def _stages(name: str, facts: Network) -> str:
    releases = networks.releases()
    images = releases.releases[releases.default[facts.family]].images
    rows = ["| stage of TAO | image | leaves in its folder | believed when |", "|---|---|---|---|"]
    for action, stage in facts.stages.items():
        outputs = ", ".join(f"`{o.path}`" for o in stage.outputs)
        since = f" (from TAO {stage.since})" if stage.since else ""
        rows.append(f"| {action}{since} | `{images[stage.image]}` | {outputs} | {_cell(_belief(stage.success))} |")
    lines = [" ".join(_shown(w) for w in stage.argv) for stage in facts.stages.values()]
    return "\n".join([*rows, "", "```", *lines, "```"]).replace("${network.name}", name)


def _belief(success: Success) -> str:
    seen = [f"last status {success.status}"] if success.status else []
    seen += [f'last message "... {success.message}"'] if success.message else []
    if success.denied_by:
        seen.append(f"the log has no {' or '.join(f'`{text}`' for text in success.denied_by)}")
    return "; ".join(seen)


def _shown(word: str | dict[str, Any]) -> str:
    return f"[{' '.join(word['words'])}]" if isinstance(word, dict) else word


def _parameters(name: str, facts: Network) -> str:
    rows = ["| key of the pipeline file | place in a spec, or flag of a command |", "|---|---|"]
    for key, places in parameters(facts).items():
        rows.append(f"| `{key}` | {_cell('<br>'.join(places))} |")
    return "\n".join(rows)


def _controlled(name: str, facts: Network) -> str:
    lines = []
    for spec_name, spec in facts.specs.items():
        paths = ", ".join(f"`{p}`" for p in spec.control)
        left_out = f"; taken out: {', '.join(f'`{p}`' for p in spec.drop)}" if spec.drop else ""
        lines.append(f"- `{spec_name}` (template `{spec.file}`): {paths}{left_out}")
    return "\n".join(lines)


def _sidecar(name: str, facts: Network) -> str:
    """model.json as the package stage gets it, for two classes and the network's defaults."""
    text = f"dataset: {{source: inbox/x, classes: [{', '.join(CLASSES)}]}}\ntoolkit: tao\nnetwork: {{name: {name}}}\n"
    text += "resources: {default: {gpus: 1}}\n"
    pipeline = pipelines.from_document(parse_yaml(text, "page.yaml"), "page")
    assert isinstance(pipeline, TaoPipeline)
    stages = TaoChain(pipeline, NO_PROFILE).stages()
    made = json.loads(str(next(s for s in stages if s.name == "package").files["model.json"]))
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in made.items()]
    return "\n".join(["```json", "{", ",\n".join(lines), "}", "```"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PARTS: dict[str, Callable[[str, Network], str]] = {
    "facts": _facts,
    "stages": _stages,
    "parameters": _parameters,
    "controlled": _controlled,
    "model.json": _sidecar,
}
_PART = re.compile(r"(<!-- made: (.+?) -->\n).*?(<!-- end -->)", re.S)


def filled(name: str, page: str) -> str:
    """A page with its made parts anew. Raises KeyError for a part that there is not."""
    facts = networks.load(name)
    return _PART.sub(lambda m: f"{m[1]}{PARTS[m[2]](name, facts)}\n{m[3]}", page)


def page(name: str) -> Path:
    return PAGES / f"{name}.md"


def main() -> None:
    for name in networks.known():
        path = page(name)
        path.write_text(filled(name, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
