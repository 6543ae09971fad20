"""Questions to NVIDIA's own code: this runs in the oracle's interpreter, in an empty folder.

Standard input: a list of {"sources", "kind", "network", "stage", "argv", "specs"}; standard output: their verdicts.
Each is answered in a process of its own, forked off: networks' protos contradict one another, and stubs stay.

What is real: the network's entry point, the script that it starts, the loader of its spec with the compiled protos or
the dataclasses, and whatever validates it. What is not: everything else (TensorFlow, torch, TensorRT, the models, the
data). A stub stands for it that can be imported, called, subclassed and used as a decorator. The script's own `main`
runs on until it has its spec and goes for data or a model; there it is stopped, and what came so far is accepted.
"""

from __future__ import annotations

import abc
import argparse
import builtins
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"  # it loads modules of an old protoc
os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors as they are, not as a text and an exit code


class Stopped(BaseException):
    """The stage has its spec and goes for data or a model. Not an Exception: NVIDIA's code catches those."""


class Refusal(BaseException):
    """NVIDIA's code ends the command."""


class Started(BaseException):
    """The entry point starts its script, with this command line."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__()
        self.argv = list(argv)


class Kind(NamedTuple):
    """How one kind of image is built. {0} stands for the network's package, {1} for its entry point's module."""

    folder: str  # the checkout
    package: str
    entrypoint: str  # the module whose main() the console script calls
    scripts: str  # the package of the stages
    real: str  # what is executed of `package`; all else are stubs
    ends: str  # stubs that are data or a model: calling one stops the stage
    after: tuple[str, ...] = ()  # module:function: the stage is stopped when this real one has returned
    before: tuple[str, ...] = ()  # or where it is called


KINDS = {
    "tf1": Kind(
        "tao_tensorflow1_backend",
        "nvidia_tao_tf1",
        "nvidia_tao_tf1.cv.{0}.entrypoint.{0}",
        "nvidia_tao_tf1.cv.{0}.scripts",
        r"cv\.common\.(entrypoint\.entrypoint|export\.(app|keras_exporter|base_exporter)|magnet_prune|spec_validator)"
        r"|cv\.\w+\.(entrypoint|scripts|proto|spec_handler|spec_loader)\.\w+"
        r"|cv\.\w+\.(utils\.spec_loader|dataio\.build_converter|export\.(exporter|onnx_exporter|yolov4_exporter))"
        r"|core\.utils\.path_utils",
        r"\.(model_io|load_model|decode_to_keras|get_num_params|build_evaluator_for_trained_gridbox|build_inferencer)$",
        after=(
            "nvidia_tao_tf1.cv.detectnet_v2.scripts.dataset_convert:build_converter",
            "nvidia_tao_tf1.cv.ssd.scripts.dataset_convert:build_converter",
            "nvidia_tao_tf1.cv.detectnet_v2.scripts.train:load_experiment_spec",
            "nvidia_tao_tf1.cv.faster_rcnn.spec_loader.spec_wrapper:ExperimentSpec",
            "nvidia_tao_tf1.cv.ssd.scripts.train:validate_train_spec",
            "nvidia_tao_tf1.cv.ssd.scripts.evaluate:validate_eval_spec",
            "nvidia_tao_tf1.cv.ssd.scripts.inference:spec_validator",
            "nvidia_tao_tf1.cv.yolo_v4.scripts.train:load_experiment_spec",
        ),
    ),
    "tf2": Kind(
        "tao_tensorflow2_backend",
        "nvidia_tao_tf2",
        "nvidia_tao_tf2.cv.{0}.entrypoint.{0}",
        "nvidia_tao_tf2.cv.{0}.scripts",
        r"common\.(entrypoint\.entrypoint|hydra\.hydra_runner|utils|decorators)|config\..+"
        r"|cv\.\w+\.((entrypoint|scripts)\.\w+|utils\.(config_utils|hparams_config))",
        r"\.(DataSource|EfficientDetPruner|load_model)$",
        before=("nvidia_tao_tf2.cv.efficientdet.scripts.dataset_convert:_create_tf_record_from_coco_annotations",),
    ),
    "pyt": Kind(
        "tao_pytorch_backend",
        "nvidia_tao_pytorch",
        "nvidia_tao_pytorch.cv.{0}.entrypoint.{0}",
        "nvidia_tao_pytorch.cv.{0}.scripts",
        r"core\.(entrypoint|utilities|initialize_experiments|hydra\.hydra_runner|decorators\.workflow)|config\..+"
        r"|cv\.\w+\.(entrypoint|scripts)\.\w+",
        r"\.(Trainer|ONNXExporter|ModelQuantizer)$",
        before=(  # they read the validation data
            "nvidia_tao_pytorch.cv.{0}.scripts.export:get_model_classes",
            "nvidia_tao_pytorch.cv.{0}.scripts.export:get_class_info",
        ),
    ),
    "deploy": Kind(
        "tao_deploy",
        "nvidia_tao_deploy",
        "nvidia_tao_deploy.cv.{0}.entrypoint.{0}",
        "nvidia_tao_deploy.cv.{0}.scripts",
        r"cv\.common\.(entrypoint\.\w+|hydra\.hydra_runner|utils|constants|decorators|initialize_experiments)|config\..+"
        r"|cv\.\w+\.(entrypoint|scripts|proto)\.\w+",
        r"\.\w*(EngineBuilder|KITTILoader|COCOLoader|(EfficientDet|DDETR)Inferencer)$",
    ),
    "data_services": Kind(
        "tao_dataset_suite",
        "nvidia_tao_ds",
        "nvidia_tao_ds.{0}.entrypoint.{1}",
        "nvidia_tao_ds.{0}.scripts",
        r"core\.(entrypoint\.entrypoint|hydra\.hydra_runner|decorators)|config\..+|annotations\.conversion\.mapping"
        r"|\w+\.(entrypoint|scripts)\.\w+",
        r"\.(convert_\w+|callable_dict|create_data_object)$",
    ),
}
ENTRYPOINTS = {"augmentation": "augment"}  # where the module is not called as the program
PACKAGES = {"efficientdet_tf2": {"tf2": "efficientdet"}, "analytics": {"data_services": "data_analytics"}}
# What stubs give where the code unpacks it before the stage is stopped.
GIVEN: Mapping[str, Any] = {"decode_model": lambda *_: ("model.onnx", "onnx"), "shape": (3, 544, 960)}
GPUS = 64
SECONDS = 60


# Stubs


class StubType(abc.ABCMeta):
    """The class of stubs. A stub is a class, so that NVIDIA's classes can inherit from it; calling one gives itself."""

    ends = re.compile("(?!)")

    def __getattr__(cls, name: str) -> Any:
        return _attribute(f"{cls.__name__}.{name}", name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "is_stub" not in vars(cls):
            return super().__call__(*args, **kwargs)  # a class of NVIDIA's that inherits from a stub
        if StubType.ends.search(cls.__name__):
            raise Stopped
        if len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType):
            return args[0]  # as a decorator it changes nothing
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __len__(cls) -> int:
        return 1

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: object) -> Any:
        if StubType.ends.search(cls.__name__):
            raise Stopped
        return cls

    def __setitem__(cls, key: object, value: object) -> None:
        """Take it."""

    def __contains__(cls, key: object) -> bool:
        return False

    def __enter__(cls) -> Any:
        return cls

    def __exit__(cls, *exc: object) -> None:
        """Nothing to close."""

    def __int__(cls) -> int:
        return 1

    def _itself(cls, *_: object) -> Any:
        return cls

    def _yes(cls, _: object) -> bool:
        return True

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _itself
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __or__ = __ror__ = __and__ = _itself
    __lt__ = __le__ = __gt__ = __ge__ = _yes


def _anything(self: Any, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _attribute(f"{type(self).__name__}.{name}", name)


def _stub(name: str) -> Any:
    body = {"is_stub": True, "__init__": lambda self, *a, **k: None, "__getattr__": _anything, "__module__": "stub"}
    return StubType(name, (), body)


def _attribute(path: str, name: str) -> Any:
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    return GIVEN[name] if name in GIVEN else _stub(path)


class StubModule(types.ModuleType):
    """A module that has everything; also what `from package import Class` finds where the package is not real."""

    def __getattr__(self, name: str) -> Any:
        found = _attribute(f"{self.__name__}.{name}", name)
        setattr(self, name, found)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _stub(self.__name__)(*args, **kwargs)

    def __mro_entries__(self, bases: object) -> tuple[type, ...]:
        return (_stub(self.__name__),)


class StubLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__, module.__file__ = [], "stub"


class BarePackage(StubModule):
    """A package of NVIDIA's without what its __init__ does: its modules, and stubs for what it would have."""

    def __getattr__(self, name: str) -> Any:
        folders = vars(self).get("__path__", ())
        if any(Path(folder, file).exists() for folder in folders for file in (name, f"{name}.py")):
            return importlib.import_module(f"{self.__name__}.{name}")
        return super().__getattr__(name)


class BareLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return BarePackage(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is executed."""


class Nvidia(importlib.abc.MetaPathFinder):
    """First on the path: decides what of NVIDIA's is real."""

    def __init__(self, sources: Path, kind: Kind) -> None:
        self.checkout, self.core, self.package = sources / kind.folder, sources / "tao_core", kind.package
        self.real = re.compile(rf"{kind.package}\.({kind.real})")
        self.executed: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        top = name.partition(".")[0]
        if top == "nvidia_tao_core" and (self.core.is_dir() or name.startswith("nvidia_tao_core.config")):
            if name == top or name.startswith("nvidia_tao_core.config"):
                return None  # the dataclasses: as they are, or not at all
            return importlib.machinery.ModuleSpec(name, StubLoader(), is_package=True)
        if top == "third_party" or (top.startswith("nvidia_tao") and top != self.package):
            return importlib.machinery.ModuleSpec(name, StubLoader(), is_package=True)
        if top != self.package:
            return None
        place = self.checkout.joinpath(*name.split("."))
        if place.is_dir():
            spec = importlib.machinery.ModuleSpec(name, BareLoader(), is_package=True)
            spec.submodule_search_locations = [str(place)]
            return spec
        file = place.with_suffix(".py")
        if self.real.fullmatch(name) and file.exists():
            self.executed.append(name)
            return importlib.util.spec_from_file_location(name, file)
        return importlib.machinery.ModuleSpec(name, StubLoader(), is_package=True)


class Missing(importlib.abc.MetaPathFinder):
    """Last on the path: a stub for what is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.partition(".")[0] in {"attr", "hydra_plugins", "google", "marshmallow", "nvidia_tao_core"}:
            return None  # what is looked for and can be done without; and the dataclasses, for which nothing can stand
        return importlib.machinery.ModuleSpec(name, StubLoader(), is_package=True)


def _old_containers() -> None:
    """The C++ module that spec_validator.py of TF1 asks for two classes, with those of the Python implementation."""
    from google.protobuf.internal import containers

    module = types.ModuleType("google.protobuf.pyext._message")
    module.ScalarMapContainer, module.MessageMapContainer = containers.ScalarMap, containers.MessageMap  # type: ignore[attr-defined]
    sys.modules["google.protobuf.pyext"] = types.ModuleType("google.protobuf.pyext")
    sys.modules[module.__name__] = module


# The command


class Command:
    """One command line of one stage, through the entry point and then the script that it starts."""

    def __init__(self, sources: Path, kind: str, network: str, stage: str) -> None:
        self.kind, self.network, self.stage = KINDS[kind], network, stage
        self.package = PACKAGES.get(network, {}).get(kind, network)
        self.nvidia = Nvidia(sources, self.kind)
        StubType.ends = re.compile(self.kind.ends)
        _old_containers()
        sys.path.insert(0, str(self.nvidia.core))
        sys.meta_path.insert(0, self.nvidia)
        sys.meta_path.append(Missing())
        self.seen: dict[str, Any] = {}  # what the entry point's parser made of the flags (TF1 and deploy's protos)

    def load(self) -> types.ModuleType:
        """The entry point; LookupError where the sources have no such stage."""
        name = self.kind.entrypoint.format(self.package, ENTRYPOINTS.get(self.network, self.network))
        folder = self.nvidia.checkout.joinpath(*self.kind.scripts.format(self.package).split("."))
        if not (folder / f"{self.stage}.py").exists():
            raise LookupError(f"{self.kind.folder} has no stage {self.stage} of {self.network}")
        return importlib.import_module(name)

    def start(self, entrypoint: types.ModuleType, argv: Sequence[str]) -> list[str]:
        """What the entry point passes to the stage's script."""
        sys.argv = list(argv)
        for module in self._executed():
            if "subprocess" in vars(module):
                module.subprocess = _Subprocess()
            if "format_command_line_args" in vars(module):
                self._keep_what_was_parsed(module)
        try:
            entrypoint.main()
        except Started as started:
            return _script_arguments(started.argv, self.stage)
        raise Refusal("the entry point starts nothing")

    def _keep_what_was_parsed(self, module: Any) -> None:
        real = module.format_command_line_args

        def wrapper(args: dict[str, Any]) -> Any:
            self.seen = dict(args)
            return real(args)

        module.format_command_line_args = wrapper

    def run(self, argv: Sequence[str]) -> NoReturn:
        """The script's main with these arguments, as far as data or a model.

        Raises:
            Stopped: it came so far.
            Refusal: it ended before.
        """
        name = f"{self.kind.scripts.format(self.package)}.{self.stage}"
        script = sys.modules[name]
        sys.argv = [str(script.__file__), *argv]
        self._compare(script, argv)
        self._make_stops()
        for module in self._executed():
            if "os" in vars(module):
                module.os = _Os(self.stage)
            module.open = _open
        if hasattr(script, "launch_export"):
            script.launch_export(script.Exporter, None, "onnx")
        elif hasattr(script, "parse_command_line_arguments"):
            script.main(script.parse_command_line_arguments())
        else:
            script.main()
        raise Refusal("it ends before it asked for data or a model")

    def _compare(self, script: Any, argv: Sequence[str]) -> None:
        """TF1's entry point writes the flags anew, without quotes, and the script parses them again."""
        if not self.seen:
            return
        again = vars(script.build_command_line_parser().parse_args(list(argv)))
        for flag, value in again.items():
            if value != self.seen.get(flag, value) and (value or self.seen[flag]):
                raise Refusal(f"the entry point passes {flag}={value!r} on, where {self.seen[flag]!r} was given")

    def _make_stops(self) -> None:
        for place, after in [*((p, True) for p in self.kind.after), *((p, False) for p in self.kind.before)]:
            name, _, function = place.format(self.package).partition(":")
            module = sys.modules.get(name)
            if module is not None and function in vars(module):
                setattr(module, function, _stopping(getattr(module, function) if after else None))

    def _executed(self) -> list[Any]:
        return [sys.modules[name] for name in self.nvidia.executed if name in sys.modules]


def _stopping(real: Callable[..., Any] | None) -> Callable[..., NoReturn]:
    def stop(*args: Any, **kwargs: Any) -> NoReturn:
        if real is not None:
            real(*args, **kwargs)
        raise Stopped

    return stop


class _Subprocess(types.ModuleType):
    """`subprocess` for an entry point: nvidia-smi shows GPUs, and nothing is started."""

    PIPE, STDOUT, CalledProcessError = subprocess.PIPE, subprocess.STDOUT, subprocess.CalledProcessError

    def __init__(self) -> None:
        super().__init__("subprocess")

    @staticmethod
    def check_output(argv: Sequence[str], **_: Any) -> bytes:
        return b"UUID " * GPUS

    @staticmethod
    def run(argv: Sequence[str], **_: Any) -> NoReturn:
        raise Started(argv)

    Popen = call = run


class _Os(types.ModuleType):
    """`os` for a stage: every file is there but an export's output, folders hold images, and nothing is made."""

    def __init__(self, stage: str) -> None:
        super().__init__("os")
        self.__dict__.update({name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
        self.path = types.ModuleType("path")
        self.path.__dict__.update({name: getattr(os.path, name) for name in dir(os.path) if not name.startswith("__")})

        def there(path: str | None) -> bool:
            if path is None:
                raise Refusal("a path that the stage needs is not set")
            return os.path.exists(path) or not (stage == "export" and str(path).endswith(".onnx"))

        self.path.exists = self.path.isfile = self.path.isdir = there  # type: ignore[attr-defined]
        self.makedirs = self.mkdir = lambda *_, **__: None
        self.walk = lambda top: [(top, [], ["image.jpg"] * 100_000)]


def _open(path: str, *args: Any, **kwargs: Any) -> Any:
    """A spec as it is; other files (class names) are empty."""
    return open(path, *args, **kwargs) if os.path.exists(path) else io.StringIO()


def _script_arguments(argv: Sequence[str], stage: str) -> list[str]:
    """The words that the script gets; where the entry point goes through bash, as bash splits them."""
    words = list(argv)
    if "bash" in words:
        line = words[words.index("bash") + 2]
        shell = 'function python { printf \'%s\\0\' "$@"; }; function python3 { python "$@"; }; ' + line
        bash = subprocess.run(
            [shutil.which("bash") or "bash", "--restricted", "--norc", "-c", shell],
            capture_output=True,
            text=True,
            env={"PATH": ""},
            check=False,
        )
        if bash.returncode or bash.stderr:
            raise Refusal(f"the shell line of the entry point breaks: {bash.stderr.strip()}: {line}")
        words = bash.stdout.split("\0")[:-1]
    script = next((n for n, word in enumerate(words) if word.endswith(f"/{stage}.py")), None)
    if script is None:
        raise Refusal(f"the entry point does not start {stage}: {shlex.join(words)}")
    return words[script + 1 :]


# The verdict

# What NVIDIA's own checks raise. Other errors are likely to be a stub's fault.
REFUSALS = (AssertionError, ValueError, KeyError, NameError, SyntaxError, OSError, NotImplementedError)
LIBRARIES = {"google", "omegaconf", "hydra", "yaml"}


def judge(question: dict[str, Any]) -> tuple[str, str]:
    """("accepted" | "refused" | "unreachable", the reason)."""
    argv, names = list(question["argv"]), {}
    for number, (name, text) in enumerate(question["specs"].items()):
        file = Path(f"spec{number}").resolve() / Path(name).name
        file.parent.mkdir()
        file.write_text(text)
        names[name] = str(file)
        argv = [str(file) if word == name else word for word in argv]
    said = io.StringIO()

    def told(reason: object) -> str:
        text = f"{reason}"[:600]
        for name, file in names.items():
            text = text.replace(file, name)
        return text

    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            command = Command(Path(question["sources"]), question["kind"], question["network"], question["stage"])
            entrypoint = command.load()
        except LookupError as exc:
            return "unreachable", told(exc)
        except Exception as exc:
            return "unreachable", told(f"the entry point cannot be loaded: {type(exc).__name__}: {exc}")
        _no_exit()
        try:
            command.run(command.start(entrypoint, argv))
        except Stopped:
            return "accepted", ""
        except Refusal as exc:
            lines = said.getvalue().strip().splitlines()
            return "refused", told("; ".join([str(exc), *lines[-1:]]))
        except Exception as exc:
            refused = isinstance(exc, REFUSALS) or type(exc).__module__.partition(".")[0] in LIBRARIES
            cause = exc.__cause__ or exc  # hydra tells in the cause which key it was
            return "refused" if refused else "unreachable", told(f"{type(cause).__name__}: {cause}")


def _no_exit() -> None:
    """Every way to end the command raises Refusal: NVIDIA's code catches SystemExit and calls it an interruption."""

    def refuse(code: object = None) -> NoReturn:
        raise Refusal(f"exit {code} ({sys.exc_info()[1] or 'no exception'})")

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise Refusal(f"{self.prog}: {message}")

    sys.exit = refuse  # type: ignore[assignment]
    builtins.exit = refuse  # type: ignore[assignment]
    argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    with contextlib.suppress(ImportError):
        from omegaconf import OmegaConf

        OmegaConf.save = staticmethod(lambda *_, **__: None)  # type: ignore[method-assign,assignment]


def answer(question: dict[str, Any]) -> tuple[str, str]:
    """`judge` in a child process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(SECONDS)
            os.chdir(tempfile.mkdtemp(dir="."))
            os.write(write, json.dumps(judge(question)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else ("unreachable", "the oracle gives no answer")


if __name__ == "__main__":
    for module in ("hydra._internal.utils", "omegaconf", "google.protobuf.json_format", "google.protobuf.text_format"):
        importlib.import_module(module)  # once for all children
    print(json.dumps([answer(question) for question in json.load(sys.stdin)]))
