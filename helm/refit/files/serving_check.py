"""What `helm test` asks of the release: Triton answers through its Service, serves what its repository holds, and
gives its control to nobody without the key. Ends with 0, or with 1 and one line per fault.
"""

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request

HEADER = "refit-control-key"
SERVICE = os.environ["TRITON_SERVICE"]
HOST = os.environ.get(SERVICE.upper().replace("-", "_") + "_SERVICE_HOST", SERVICE)
HTTP = f"http://{HOST}:{os.environ['TRITON_HTTP_PORT']}"
KEY = os.environ["TRITON_CONTROL_KEY"]
PATIENCE_SECONDS = 180  # for a server that is just starting


def ask(path, post=False, key=None):
    """(status, JSON or None) of one HTTP request."""
    request = urllib.request.Request(HTTP + path, data=b"{}" if post else None)  # noqa: S310  always http
    if key:
        request.add_header(HEADER, key)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            body = answer.read()
            return answer.status, json.loads(body) if body else None
    except urllib.error.HTTPError as error:
        return error.code, None


def readiness():
    """None once the server is ready, else how it answered last."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            status, _ = ask("/v2/health/ready")
        except OSError as error:
            status = getattr(error, "reason", error)
        if status == 200:
            return None
        if time.monotonic() > until:
            return status
        time.sleep(2)


def faults():
    """Each fault as a sentence."""
    answer = readiness()
    if answer is not None:
        yield f"{HTTP}/v2/health/ready, for {PATIENCE_SECONDS} s: {answer}; look at the Triton pods and their log"
        return
    for path in ("/v2/repository/index", "/v2/systemsharedmemory/region/x/register"):
        for key, who in ((None, "without a key"), ("wrong", "with a wrong key")):
            status, _ = ask(path, post=True, key=key)
            if status != 403:
                yield f"{path} answered {status} {who}, not 403: the control APIs are open"
    status, index = ask("/v2/repository/index", post=True, key=KEY)
    if status != 200:
        yield f"/v2/repository/index answered {status} with the key of the Secret: restart Triton after a change of it"
    for entry in index or []:
        name, version, state = entry["name"], entry.get("version"), entry.get("state")
        if state == "READY":
            status, _ = ask(f"/v2/models/{name}/versions/{version}/ready")
            print(f"serves {name} version {version}")
            if status != 200:
                yield f"model {name} version {version} is in the index as READY and its readiness is {status}"
        elif entry.get("reason") != "unloaded":
            yield f"model {name} is not served: {state} {entry.get('reason', '')}"
    try:
        socket.create_connection((HOST, int(os.environ["TRITON_GRPC_PORT"])), timeout=20).close()
    except OSError as error:
        yield f"nothing listens on the gRPC port of {HOST}: {error}"


found = list(faults())
for fault in found:
    print("error:", fault, file=sys.stderr)
if not found:
    print(f"Triton at {HTTP} answers, and its control needs the key")
sys.exit(1 if found else 0)
