"""The stages that make edge bundles: an export of each kind, its evaluation, a gate against the FP32 ONNX model, and
one that gathers them (`refit.edge`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from refit.cpu.specs import EvaluateParams
from refit.edge.specs import TITLES, Converted, Edge, Kind
from refit.engine.specs import DeepStreamSpec
from refit.toolkits.base import Output, Stage, command
from refit.toolkits.chain import CPU_CODE, Chain

BUNDLE = "edge"
BASELINE = "exported"
ENVIRONMENTS = ("tensorflow", "tfjs")  # beside those that every pipeline needs
CONVERTED: tuple[Converted, ...] = get_args(Converted)
EVALUATIONS = frozenset(f"evaluate_{name}" for name in (BASELINE, *CONVERTED))  # beside those of what is released
_CODE = ("refit/edge", *CPU_CODE)
_OUTPUTS: Mapping[Converted, tuple[Output, ...]] = {
    "tflite": (Output("model", "model.tflite"),),
    "coral": (Output("model", "coral/model_uint8.tflite"), Output("labels", "coral/labelmap.txt")),
    "saved_model": (Output("model", "saved_model", kind="dir"),),
    "frozen_graph": (Output("model", "frozen_graph.pb"),),
    "tfjs": (Output("model", "web", kind="dir"),),
}
# What of an export's out/ goes into its bundle, and under which name.
_FILES: Mapping[Converted, tuple[str, str]] = {
    "tflite": ("model.tflite", "model.tflite"),
    "coral": ("coral", ""),
    "saved_model": ("saved_model", "saved_model"),
    "frozen_graph": ("frozen_graph.pb", "frozen_graph.pb"),
    "tfjs": ("web", ""),
}


@dataclass(frozen=True)
class Exported:
    """What is converted.

    Attributes:
        stage: that exported the FP32 ONNX model.
        records: the stage that wrote the records.
        released: the stage whose ONNX file a release takes, and the name under which it was evaluated.
        evaluate: how every model of the run is evaluated.
    """

    stage: str
    records: str
    released: tuple[str, str]
    evaluate: EvaluateParams


def environments(edge: Edge | None) -> tuple[str, ...]:
    """Those of ENVIRONMENTS that a pipeline with this block needs."""
    kinds = [kind for kind in CONVERTED if edge is not None and kind in edge.kinds]
    return tuple(dict.fromkeys(e for kind in kinds for e in ("tensorflow", _environment(kind))))


def stages(chain: Chain, edge: Edge, exported: Exported) -> Iterator[Stage]:
    """The last of them is BUNDLE."""
    # Every evaluation on the split that gates look at: the others say nothing of what a conversion lost.
    how = exported.evaluate.model_copy(update={"splits": exported.evaluate.splits[:1]})
    kinds = [kind for kind in CONVERTED if kind in edge.kinds]
    onnx = {"model": f"{{input:{exported.stage}.model}}"}
    yield _evaluate(chain, BASELINE, "cpu", ("refit.cpu", "evaluate"), onnx, exported, how)
    if kinds:
        yield _convert(chain, "saved_model", onnx, (exported.stage,), exported)
    for kind in kinds:
        if kind != "saved_model":
            spec: dict[str, Any] = {"saved_model": "{input:export_saved_model}/saved_model"}
            inputs: tuple[str, ...] = (exported.stage, "export_saved_model")
            if kind == "coral":
                spec |= {"records": f"{{input:{exported.records}}}", "images": edge.images}
                inputs = (*inputs, exported.records)
            yield _convert(chain, kind, spec, inputs, exported)
        judged = {"info": _info(exported), "kind": kind, "model": f"{{input:export_{kind}}}"}
        yield _evaluate(chain, kind, _environment(kind), ("refit.edge", "evaluate"), judged, exported, how)
        limit = edge.max_drop_uint8 if kind == "coral" else edge.max_drop
        yield chain.gate(kind, BASELINE, floor=False, limit=limit, policy=edge.policy)
    if edge.deepstream:
        yield _deepstream(chain, edge.deepstream, exported)
    yield _bundle(chain, edge, exported)


def _info(exported: Exported) -> str:
    return f"{{input:{exported.stage}.info}}"


def _environment(kind: Converted) -> str:
    return "tfjs" if kind == "tfjs" else "tensorflow"


def _stage(
    chain: Chain, name: str, action: str, title: str, environment: str, spec: Mapping[str, Any], **more: Any
) -> Stage:
    return Stage(
        name=name,
        title=title,
        environment=environment,
        files={f"{action}.yaml": {"seed": chain.pipeline.seed, **spec}},
        env={"OMP_WAIT_POLICY": "passive"},
        action=action,
        **{
            "argv": command("refit.edge", action, f"{action}.yaml"),
            "resources": chain.resources(name),
            "code": _CODE,
            **more,
        },
    )


def _convert(
    chain: Chain, kind: Converted, spec: Mapping[str, Any], inputs: tuple[str, ...], exported: Exported
) -> Stage:
    return _stage(
        chain,
        f"export_{kind}",
        kind,
        f"Export {TITLES[kind]}",
        _environment(kind),
        {"info": _info(exported), **spec},
        inputs=inputs,
        outputs=(*_OUTPUTS[kind], Output("tensors", "tensors.json", "json")),
        resumes=False,
    )


def _evaluate(
    chain: Chain,
    name: str,
    environment: str,
    does: tuple[str, str],
    spec: Mapping[str, Any],
    exported: Exported,
    how: EvaluateParams,
) -> Stage:
    model = exported.stage if name == BASELINE else f"export_{name}"
    return _stage(
        chain,
        f"evaluate_{name}",
        "evaluate",
        f"Evaluate the {name} model",
        environment,
        {**spec, "records": f"{{input:{exported.records}}}", **how.model_dump()},
        inputs=tuple(dict.fromkeys((exported.stage, model, exported.records))),
        outputs=(Output("results", "results.json", "json"),),
        argv=command(*does, "evaluate.yaml"),
        code=CPU_CODE if name == BASELINE else _CODE,
    )


def _deepstream(chain: Chain, wanted: bool | DeepStreamSpec, exported: Exported) -> Stage:
    """The bundle that `refit.engine package` makes for TAO's models as well, of the FP32 ONNX file."""
    settings = wanted if isinstance(wanted, DeepStreamSpec) else DeepStreamSpec()
    spec = {
        "model": _info(exported),
        "onnx": f"{{input:{exported.stage}.model}}",
        "deepstream": settings.model_dump(),
    }
    return Stage(
        name="export_deepstream",
        action="package",
        title="Write DeepStream's configuration",
        environment="tools",
        argv=command("refit.engine", "package", "package.yaml"),
        files={"package.yaml": spec},
        inputs=(exported.stage,),
        outputs=(Output("package", "package.json", "json"), Output("deepstream", "deepstream", kind="dir")),
        code=("refit/engine", "refit/postprocess", "refit/triton/config.py", "refit/specs.py"),
        resources=chain.light("export_deepstream"),
        resumes=False,
    )


def _bundle(chain: Chain, edge: Edge, exported: Exported) -> Stage:
    bundles = {kind: _bundled(kind, exported) for kind in edge.kinds}
    of_onnx = (exported.released[0], f"evaluate_{exported.released[1]}") if "onnx" in edge.kinds else ()
    made = [kind for kind in edge.kinds if kind in CONVERTED]
    inputs = (
        exported.stage,
        f"evaluate_{BASELINE}",
        *of_onnx,
        *(f"{does}_{kind}" for kind in made for does in ("export", "evaluate")),
        *(("export_deepstream",) if edge.deepstream else ()),
    )
    spec = {
        "info": _info(exported),
        "name": chain.pipeline.name,
        "metric": chain.pipeline.gates.quality.metric,
        "baseline": f"{{input:evaluate_{BASELINE}.results}}",
        "bundles": bundles,
    }
    return _stage(
        chain,
        BUNDLE,
        "bundle",
        "Pack the edge bundles",
        "tools",
        spec,
        inputs=tuple(dict.fromkeys(inputs)),
        after=tuple(f"gate_{kind}" for kind in made),
        outputs=(Output("edge", "edge.json", "json"),),
        summary="summary.json",
        resources=chain.light(BUNDLE),
        code=("refit/edge", "refit/postprocess", "refit/files.py", "refit/specs.py"),
    )


def _bundled(kind: Kind, exported: Exported) -> dict[str, Any]:
    """One entry of `refit.edge.specs.BundleSpec.bundles`."""
    info = {_info(exported): "refit.json"}
    if kind == "onnx":
        stage, judged = exported.released
        names = ("model.onnx", "model.json", "reference.npz")
        files = {f"{{input:{stage}}}/{name}": name for name in names}
        return {"files": files, "results": f"{{input:evaluate_{judged}.results}}"}
    if kind == "deepstream":
        notes = [
            "the figures are those of the FP32 ONNX file, by ONNX Runtime: no DeepStream was run",
            "nvinfer makes the engine on the device at its first start; INT8 needs a calibration made there",
        ]
        return {
            "files": {"{input:export_deepstream}/deepstream": "", **info},
            "results": f"{{input:evaluate_{BASELINE}.results}}",
            "notes": notes,
        }
    out, (path, name) = f"{{input:export_{kind}}}", _FILES[kind]
    more = {} if kind == "tfjs" else info  # the page has it already
    return {
        "files": {f"{out}/{path}": name, **more},
        "tensors": f"{out}/tensors.json",
        "results": f"{{input:evaluate_{kind}.results}}",
    }
