"""Refit's own commands around TAO's: the data in TAO's form before them, the model's package after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refit.tao import networks
from refit.toolkits.base import Output, Stage, command
from refit.toolkits.lazy import Lazy
from refit.toolkits.tao import ladder

if TYPE_CHECKING:
    from refit.toolkits.tao.chain import TaoChain

# What decides what `prepare` writes: not all of refit/data, where a change of the report would train anew.
_PREPARE_CODE = (
    "refit/data/prepare",
    "refit/data/formats/base.py",
    "refit/data/formats/coco_write.py",
    "refit/data/formats/kitti.py",
    "refit/data/images.py",
    "refit/data/model.py",
    "refit/data/snapshot.py",
    "refit/postprocess/blank.py",
    "refit/postprocess/frame.py",
    "refit/postprocess/resample.py",
    "refit/specs.py",
)
_ENGINE_CODE = ("refit/engine", "refit/postprocess", "refit/triton/config.py", "refit/specs.py")


def prepare(chain: TaoChain) -> Stage:
    params, data = chain.p.stages.prepare, chain.facts.data
    copies = "albumentations" if chain.p.stages.albumentations else None
    spec: dict[str, Any] = {
        "snapshot": f"{{input:{copies}}}" if copies else "{snapshot}",
        "form": data.form,
        "names": params.names,
        "convert": params.convert,
        "channels": params.channels,
        "resize": params.resize.model_dump() if params.resize else None,
    }
    if data.form == "coco":
        spec["first_id"] = data.first_id
    return Stage(
        name="prepare",
        action="prepare",
        title="Write the data set as TAO reads it",
        environment="tools",
        argv=command("refit.data", "prepare", "prepare.yaml"),
        files={"prepare.yaml": spec},
        outputs=(Output("prepare", "prepare.json", "json"),),
        resources=chain.light("prepare"),
        code=_PREPARE_CODE,
        inputs=(copies,) if copies else (),
        reads_snapshot=copies is None,
    )


def calibrate(chain: TaoChain, name: str, images: int, batch_size: int) -> Stage:
    spec = {"prepared": "{input:prepare}", "images": images, "batch_size": batch_size, "seed": chain.p.seed}
    return Stage(
        name=name,
        action="calibrate",
        title="Choose the calibration images",
        environment="tools",
        argv=command("refit.data", "calibrate", "calibrate.yaml"),
        files={"calibrate.yaml": spec},
        inputs=("prepare",),
        outputs=(Output("calibration", "calibration.json", "json"),),
        resources=chain.light(name),
        code=("refit/data/prepare", "refit/specs.py"),
    )


def pretrained(chain: TaoChain) -> Stage:
    given = chain.p.network.pretrained
    if isinstance(given, bool):
        secret, path = None, None
        model, file = chain.backbone["ngc"], chain.backbone.get("ngc_file")
    else:
        secret, model, file = given.secret, given.ngc, given.file
        path = chain.placed(given.path) if given.path else None
    return Stage(
        name="pretrained",
        action="pretrained",
        title="Fetch pretrained weights",
        environment="tools",
        argv=command("refit.ngc", "download", "download.yaml"),
        files={"download.yaml": {"model": model, "path": path, "file": file, "cache": "{workspace}/ngc"}},
        outputs=(Output("weights", "weights/*"),),
        resources=chain.light("pretrained"),
        code=("refit/ngc", "refit/start/foreign.py", "refit/archive.py", "refit/specs.py"),
        secrets=(secret,) if secret else (),
        env={"NGC_API_KEY": f"{{secret:{secret}}}"} if secret else {},
    )


def describe(chain: TaoChain, engine: str, onnx: str) -> Stage:
    """engine.json: what TAO's builder does not write down."""
    params, way = chain.p.stages.build_engine, chain.way_to_int8
    assert params is not None
    spec: dict[str, Any] = {
        "plan": f"{{input:{engine}.model}}",
        "model": "{specs}/model.json",
        "onnx": f"{{input:{onnx}.model}}",
        "precision": params.precision,
        "quantization": {"ptq": "calibrated", "qat": "explicit", "qdq": "explicit"}.get(way or "", "none"),
        "batch": {"min": 1, "opt": params.opt_batch_size, "max": params.max_batch_size},
        "gpu": {"csv": f"{{input:{engine}}}/gpu.csv"},
        "builder": networks.image(chain.p.network, chain.facts.stages["build_engine"].image),
    }
    images: tuple[str, ...] = ("calibrate",) if way == "ptq" else ()
    if way == "ptq":
        spec["calibration"] = {
            "images": "{input:calibrate}/images",
            "batches": params.calibration_batches,
            "batch_size": params.calibration_batch_size,
            "cache": f"{{input:{engine}}}/cal.bin",
        }
    if chain.climbs:
        climbed = [rung for rung in ladder.rungs(chain) if not rung.skipped]
        spec["ladder"] = f"{{input:{engine}.ladder}}"
        spec["rungs"] = {rung.name: rung.built(f"{{input:{engine}}}/cal.bin") for rung in climbed}
        images = (*images, *(ladder.CALIBRATE_MORE for rung in climbed if rung.images == ladder.CALIBRATE_MORE))
    name = described(engine)
    return Stage(
        name=name,
        action="describe_engine",
        title="Write down what the engine is",
        environment="tools",
        argv=command("refit.engine", "describe", "describe.yaml"),
        files=Lazy(lambda: {"describe.yaml": spec, "model.json": chain.sidecar}),
        inputs=(engine, onnx, *images),
        outputs=(Output("engine", "engine.json", "json"), Output("model", "model.plan")),
        resources=chain.light(name),
        code=_ENGINE_CODE,
    )


def described(engine: str) -> str:
    """The stage that describes the engine of another."""
    return engine.replace("build", "describe", 1)


def package(chain: TaoChain, onnx: str, judged: str) -> Stage:
    engines = [described(name) for name in chain.engines]
    spec = {
        "model": "{specs}/model.json",
        "onnx": f"{{input:{onnx}.model}}",
        "engines": [f"{{input:{name}}}" for name in engines],
    }
    pruned = ("prune",) if chain.p.stages.prune else ()
    if pruned:
        spec["pruned"] = "{input:prune}/../result.json"
    return Stage(
        name="package",
        action="package",
        title="Put the model's files together",
        environment="tools",
        argv=command("refit.engine", "package", "package.yaml"),
        files=Lazy(lambda: {"package.yaml": spec, "model.json": chain.sidecar}),
        inputs=(onnx, *engines, *pruned),
        after=(f"gate_{judged}",),
        outputs=(Output("package", "package.json", "json"), Output("model", "model.json", "json")),
        resources=chain.light("package"),
        code=_ENGINE_CODE,
    )
