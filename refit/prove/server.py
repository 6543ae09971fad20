#!/usr/bin/env python3
"""Start tritonserver on a model repository, send it prepared pictures, keep its raw answers.

    python3 prove.py REQUEST_FOLDER OUT

One file and the standard library of Python 3.6 and up: a stage hands it over as one of its files, because it runs in
the image of the Triton that will serve the model, which is NVIDIA's. In: what `refit.prove.prepare` wrote. Out, in OUT
(docs/contracts.md, "Proof"): `answers.json`, `answers.bin`, `status.json`, `triton.log`.

A model that does not load and a question that is refused are answers, too: `refit.gates.parity` judges them. Exit code
0; 1 where there is no server to ask.
"""

import base64
import contextlib
import datetime
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from typing import IO, Any, Dict, Iterator, List, Tuple

HOST = "127.0.0.1"
IMAGES_OWN = "/opt/tritonserver/bin/tritonserver"  # in NVIDIA's image, and in ours
SHARED = "/dev/shm"  # noqa: S108  where the kernel shows POSIX shared memory
START_SECONDS = 600.0  # for the server and its models: a plan of a large network takes a while to map
ANSWER_SECONDS = 120.0
STEP = 0.05
SAID_EVERY = 5.0  # seconds between two lines of progress

Json = Dict[str, Any]


class Failed(Exception):
    """There is nothing to ask; the message says why."""


def say(out: str, status: str, message: str) -> None:
    """A line on standard output and in status.json, in TAO's form (docs/contracts.md, "Stage commands")."""
    print(message, flush=True)
    now = datetime.datetime.now()
    date, clock = f"{now.month}/{now.day}/{now.year}", f"{now.hour}:{now.minute}:{now.second}"
    line = {"date": date, "time": clock, "status": status, "verbosity": "INFO", "message": message}
    with open(os.path.join(out, "status.json"), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


# --- the server -------------------------------------------------------------------------------------------------------


def parts(scratch: str) -> Tuple[List[str], Dict[str, str]]:
    """The server's command line and variables: the image's own, else that of this machine's environment `triton`."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if os.path.exists(IMAGES_OWN):
        return [IMAGES_OWN], env
    try:
        from refit.triton import errors, installation, server
    except ImportError:
        found = shutil.which("tritonserver")
        if found:
            return [found], env
        raise Failed(f"there is no tritonserver in this image: neither {IMAGES_OWN} nor one on PATH")
    try:
        known = installation.find()
    except errors.InstallationError as error:
        raise Failed(str(error))
    backends, libraries = known.assemble(pathlib.Path(scratch))
    return [str(known.binary), f"--backend-directory={backends}"], server.environment(known, libraries)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(repository: str, log: IO[bytes]) -> Iterator[int]:
    """A server over the repository, everything in it loaded as far as it can be; gives its HTTP port. Raises Failed."""
    with tempfile.TemporaryDirectory(prefix="refit-prove-") as scratch:
        command, env = parts(scratch)
        port, name = free_port(), f"refit-prove-{os.getpid()}"
        command = command[:1] + [
            f"--id={name}",
            f"--model-repository={repository}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--exit-on-error=false",
            "--strict-readiness=false",
            "--disable-auto-complete-config",
            f"--http-address={HOST}",
            f"--http-port={port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
            f"--backend-config=python,shm-region-prefix-name={name}-",
        ] + command[1:]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=scratch, start_new_session=True
        )
        try:
            wait_live(process, port, name)
            yield port
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # it answers nobody else
            process.wait()
            for region in os.listdir(SHARED):  # a killed stub of the Python backend leaves its own
                if region.startswith(name):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(SHARED, region))


def wait_live(process: "subprocess.Popen[bytes]", port: int, name: str) -> None:
    """Wait until this very server answers: live means here that every load has ended, well or not."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        code = process.poll()
        if code is not None:
            raise Failed(f"tritonserver ended with exit code {code} before it answered; see triton.log")
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            if get(port, "/v2/health/live")[0] == 200 and json.loads(get(port, "/v2")[1].decode())["name"] == name:
                return
        time.sleep(STEP)
    raise Failed(f"tritonserver did not answer within {START_SECONDS:g} s; see triton.log")


def get(port: int, path: str, method: str = "GET", body: str = "") -> Tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)) as connection:
        connection.request(method, path, body or None)
        answer = connection.getresponse()
        return answer.status, answer.read()


def loaded(port: int, model: str) -> str:
    """Why a model is not served; "" where it is."""
    if get(port, f"/v2/models/{model}/ready")[0] == 200:
        return ""
    entries = json.loads(get(port, "/v2/repository/index", "POST", "{}")[1].decode())
    reasons = [str(e.get("reason") or e.get("state") or "") for e in entries if e.get("name") == model]
    return "; ".join(r for r in reasons if r) or "Triton does not say why; see triton.log"


# --- questions and answers --------------------------------------------------------------------------------------------


def tensor(pixels: bytes, shape: List[int], layout: str, order: List[int], table: List[List[bytes]]) -> bytes:
    """Bytes [h, w, c] as float32 in the tensor's layout, by C speed: byte k of each number is a translation.

    `table`: for each channel of the tensor four translations of 256 bytes, one for each byte of a float32.
    """
    channels = len(order)
    size = len(pixels) // channels
    made = bytearray(4 * len(pixels))
    for place, channel in enumerate(order):
        plane = pixels[channel::channels]
        for byte in range(4):
            if layout == "nchw":
                made[4 * place * size + byte : 4 * (place + 1) * size : 4] = plane.translate(table[place][byte])
            else:
                made[4 * place + byte :: 4 * channels] = plane.translate(table[place][byte])
    wanted = 4
    for side in shape:
        wanted *= side
    if wanted != len(made):
        raise ValueError(f"a picture has {len(made)} bytes as float32, and the input takes {wanted}")
    return bytes(made)


def translations(text: str, channels: int) -> List[List[bytes]]:
    """The tables of request.json (base64 of float32 [channels, 256], little-endian) as `tensor` takes them."""
    data = base64.b64decode(text)
    return [[data[1024 * c + byte : 1024 * (c + 1) : 4] for byte in range(4)] for c in range(channels)]


class Client:
    """Asks one server over one connection, by Triton's binary tensor data extension."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)

    def ask(self, model: str, name: str, shape: List[int], data: bytes) -> Tuple[Json, bytes]:
        """The answer's JSON and its binary outputs, one after the other. Raises Refused, OSError, HTTPException."""
        entry = {"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        self.connection.request("POST", f"/v2/models/{model}/infer", head + data, headers)
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise Refused(body.decode("utf-8", "replace"))
        length = int(answer.getheader("Inference-Header-Content-Length") or len(body))
        return json.loads(body[:length].decode()), body[length:]


class Refused(Exception):
    """The server answered with an error."""


def ask_all(request: Json, folder: str, port: int, out: str) -> Json:
    """Every question of request.json; answers.bin gets the outputs. Gives what stands in answers.json."""
    client = Client(port)
    models = {role: {"name": name, "error": loaded(port, name)} for role, name in request["models"].items()}
    answers: List[Json] = []
    total = sum(ask["images"] for ask in request["asks"])
    at, told = 0, time.monotonic()
    with open(os.path.join(out, "answers.bin"), "wb") as file:
        for ask in request["asks"]:
            way, model = request["ways"][ask["way"]], models[ask["model"]]
            entry = way.get("input", request["input"])
            tables = translations(way["table"], entry["channels"])
            for image in range(0 if model["error"] else ask["images"]):
                with open(os.path.join(folder, "pictures", way["pictures"], f"{image}.z"), "rb") as picture:
                    pixels = zlib.decompress(picture.read())
                data = tensor(pixels, entry["shape"], entry["layout"], way["order"], tables)
                answer: Json = {"model": ask["model"], "way": ask["way"], "image": image}
                began = time.monotonic()
                try:
                    said, body = client.ask(model["name"], entry["name"], entry["shape"], data)
                except Refused as error:
                    answer["error"] = str(error)[:2000]
                else:
                    answer["milliseconds"] = round((time.monotonic() - began) * 1000, 3)
                    answer["version"] = said.get("model_version")
                    answer["outputs"] = placed(said["outputs"], at)
                    at += file.write(body)
                answers.append(answer)
                if time.monotonic() - told > SAID_EVERY:
                    told = time.monotonic()
                    say(out, "RUNNING", f"{len(answers)} of {total} questions")
        file.flush()
        os.fsync(file.fileno())
    server = json.loads(get(port, "/v2")[1].decode())
    return {"schema": 1, "triton": server.get("version"), "models": models, "answers": answers}


def placed(outputs: List[Json], at: int) -> List[Json]:
    """Where each output lies in answers.bin."""
    found = []
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        found.append(
            {"name": output["name"], "datatype": output["datatype"], "shape": output["shape"], "at": at, "bytes": size}
        )
        at += size
    return found


def write(path: str, value: Json) -> None:
    """Whole or not at all."""
    aside = f"{path}.tmp-{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def main(arguments: List[str]) -> int:
    folder, out = arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends the server
    say(out, "STARTED", "Starting Triton.")
    try:
        with open(os.path.join(folder, "request.json"), encoding="utf-8") as file:
            request = json.load(file)
        with open(os.path.join(out, "triton.log"), "wb") as log:
            with serving(os.path.join(folder, "repository"), log) as port:
                found = ask_all(request, folder, port, out)
    except (Failed, OSError, ValueError, http.client.HTTPException) as error:
        say(out, "FAILURE", str(error))
        sys.stderr.write(f"error: {error}\n")
        return 1
    write(os.path.join(out, "answers.json"), found)
    errors = ["{name}: {error}".format(**model) for model in found["models"].values() if model["error"]]
    told = "{} answers of Triton {}".format(len(found["answers"]), found["triton"])
    say(out, "SUCCESS", "; ".join([told] + errors))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
