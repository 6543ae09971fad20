"""Programs and tasks, and how each family's entry point ends: exit code, last words, and the lies among them."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn, Protocol

from tests.tao.standin import deploy, hydra, tf1
from tests.tao.standin.status import Status

IMAGES = {  # nvidia-smi is in all of them
    "tf1": tf1.PROGRAMS,
    "tf2": hydra.TF2,
    "pyt": hydra.PYTORCH,
    "data_services": hydra.DATA_SERVICES,
    "deploy": (*tf1.PROGRAMS, *hydra.TF2, *hydra.PYTORCH),
}
NOUNS = {"train": "Training", "evaluate": "Evaluation", "prune": "Pruning"}  # of the words "... was interrupted"
WRITTEN = (ValueError, TypeError, OSError, NotImplementedError)  # PyTorch and deploy write FAILURE for these alone


class Task(Protocol):
    program: str
    task: str
    status: Status

    def run(self) -> None: ...


def family(program: str, task: str, words: list[str]) -> str:
    """The image that a command line is meant for; evaluate and inference of an engine are deploy's."""
    image = os.environ.get("REFIT_STANDIN_IMAGE", "")
    own = next(name for name, programs in IMAGES.items() if program in programs)
    if not image:
        return "deploy" if task == "gen_trt_engine" or _is_engine(program, task, words) else own
    if program not in IMAGES[image]:
        raise SystemExit(f"bash: line 1: {program}: command not found")
    return image


def _is_engine(program: str, task: str, words: list[str]) -> bool:
    if task not in {"evaluate", "inference"}:
        return False
    if program in tf1.PROGRAMS:
        paths = [words[i + 1] for i, word in enumerate(words[:-1]) if word in {"-m", "--model_path"}]
        return any(os.path.exists(p) and open(p, "rb").read(4) == b"ftrt" for p in paths)
    if program not in (*hydra.TF2, *hydra.PYTORCH):
        return False
    config = hydra.Config(hydra.parse(program, task, words)[1])
    return bool(config.get(f"{task}.trt_engine")) and not config.get(f"{task}.checkpoint")


def make(image: str, program: str, task: str, words: list[str], lie: int) -> Task:
    if image == "tf1":
        known, kind = tf1.TASKS, tf1.Task
    elif image == "deploy":
        known, kind = tuple(deploy.TASKS), deploy.Task
    else:
        known, kind = hydra.TASKS[program], hydra.Task
    if task not in known:
        print(f"{program}: error: argument task: invalid choice: '{task}' (choose from {', '.join(known)})")
        raise SystemExit(2)
    return kind(program, task, words, lie)


def failed(image: str) -> NoReturn:
    """TF1 ends with 255, PyTorch and deploy with 1; TF2 and the data services say so and end with 0."""
    print("Execution status: FAIL")
    sys.exit({"tf1": 255, "pyt": 1, "deploy": 1}.get(image, 0))


def run(image: str, program: str, task: str, words: list[str], lie: int) -> None:
    if lie == 2:
        print("Stopping container.")
        return
    if lie == 9:
        print("mismatched input '=' expecting <EOF>")
        failed(image)
    if lie == 10:
        print("WARNING:root:[Multinode] Error overriding configs: [Errno 30] Read-only file system")
        print("WARNING:root:[Multinode] Using default configs.")
    started: Task | None = None
    try:
        started = make(image, program, task, words, lie)
        if lie in {1, 4, 5}:
            started.status.write(f"Starting {program} {task}.", "STARTED")
        if lie == 1:
            print("ValueError: Shapes (4, 90) and (4, 4) are incompatible\nExecution status: FAIL")
            return
        if lie == 4:
            print("RuntimeError: CUDA error: device-side assert triggered\nExecution status: FAIL", flush=True)
            os._exit(1)
        if lie == 5:
            started.status.write(f"{NOUNS.get(task, task.capitalize())} was interrupted", "FAILURE")
            print("Execution status: PASS")
            return
        started.run()
    except SystemExit as error:
        if image != "tf1" or not started:
            if isinstance(error.code, str):
                print(error.code)
                failed(image)
            raise
        # sys.exit in a TF1 script is taken for an interruption, and that for a success.
        print(error.code)
        started.status.write(f"{NOUNS.get(task, task.capitalize())} was interrupted", "FAILURE")
    except hydra.OverrideError as error:
        print(error)
        failed(image)
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        if started and (image in {"tf1", "tf2"} or isinstance(error, WRITTEN)):
            started.status.write(str(error), "FAILURE")
        failed(image)
    print("Execution status: PASS")


def nvidia_smi(words: list[str]) -> None:
    """What a container with a GPU has: a list, and the figures of --query-gpu."""
    gpu = {"name": "Tesla T4", "compute_cap": "7.5", "uuid": "GPU-0"}
    named = os.environ.get("REFIT_STANDIN_GPU")
    if named:
        gpu["name"], _, gpu["compute_cap"] = named.partition(", ")
    wanted = [word.partition("=")[2] for word in words if word.startswith("--query-gpu=")]
    print(", ".join(gpu[name] for name in wanted[0].split(",")) if wanted else f"GPU 0: {gpu['name']} (UUID: GPU-0)")


def main() -> None:
    if sys.argv[1] == "nvidia-smi":
        nvidia_smi(sys.argv[2:])
        return
    program, task, *words = sys.argv[1:]
    lie = int(os.environ.get("REFIT_STANDIN_LIE") or 0)
    if os.environ.get("REFIT_STANDIN_LIE_TASK") not in {None, "", task}:
        lie = 0
    try:
        image = family(program, task, words)
    except hydra.OverrideError:
        image = "pyt" if program in hydra.PYTORCH else "tf2"
    run(image, program, task, words, lie)


if __name__ == "__main__":
    main()
