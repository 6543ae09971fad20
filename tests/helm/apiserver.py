"""An API server that knows which kinds a cluster has, and nothing more: what charts are rendered against.

helm-sdkpy has no `helm template`; it renders while it installs. The test cluster is a real Kubernetes 1.20, so for
today's Kubernetes (policy/v1, autoscaling/v2), for Kueue and for the Prometheus operator this stand-in answers
discovery with the kinds that they have, and accepts what is created. What it accepts proves nothing about a manifest:
that is judged by Kubernetes' own JSON schemas (`tests.helm.manifests`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import yaml

# group/version -> {resource: (kind, namespaced)}
Kinds = Mapping[str, Mapping[str, tuple[str, bool]]]

STABLE: Kinds = {
    "v1": {
        "configmaps": ("ConfigMap", True),
        "limitranges": ("LimitRange", True),
        "persistentvolumeclaims": ("PersistentVolumeClaim", True),
        "pods": ("Pod", True),
        "resourcequotas": ("ResourceQuota", True),
        "secrets": ("Secret", True),
        "serviceaccounts": ("ServiceAccount", True),
        "services": ("Service", True),
    },
    "apps/v1": {
        "daemonsets": ("DaemonSet", True),
        "deployments": ("Deployment", True),
        "statefulsets": ("StatefulSet", True),
    },
    "networking.k8s.io/v1": {"ingresses": ("Ingress", True), "networkpolicies": ("NetworkPolicy", True)},
    "rbac.authorization.k8s.io/v1": {
        "clusterrolebindings": ("ClusterRoleBinding", False),
        "clusterroles": ("ClusterRole", False),
        "rolebindings": ("RoleBinding", True),
        "roles": ("Role", True),
    },
    "scheduling.k8s.io/v1": {"priorityclasses": ("PriorityClass", False)},
    "batch/v1": {"jobs": ("Job", True)},
}
TODAY: Kinds = {
    **STABLE,
    "batch/v1": {"jobs": ("Job", True), "cronjobs": ("CronJob", True)},
    "autoscaling/v2": {"horizontalpodautoscalers": ("HorizontalPodAutoscaler", True)},
    "policy/v1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
}
OF_1_20: Kinds = {
    **STABLE,
    "autoscaling/v2beta2": {"horizontalpodautoscalers": ("HorizontalPodAutoscaler", True)},
    "policy/v1beta1": {"poddisruptionbudgets": ("PodDisruptionBudget", True)},
}
KUEUE: Kinds = {"kueue.x-k8s.io/v1beta1": {"localqueues": ("LocalQueue", True)}}
KUEUE_NEW: Kinds = {"kueue.x-k8s.io/v1beta2": {"localqueues": ("LocalQueue", True)}}
PROMETHEUS: Kinds = {"monitoring.coreos.com/v1": {"servicemonitors": ("ServiceMonitor", True)}}

NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


@contextmanager
def serve(kinds: Kinds, version: str, objects: Mapping[str, object] | None = None) -> Iterator[str]:
    """Run the stand-in on a free port of 127.0.0.1.

    `version` is what it says it is ("1.37.0"); `objects` are what it has already, by API path. Yields a kubeconfig as
    text.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.rstrip("/")
            found = _discovery(path, kinds, version) or (objects or {}).get(path)
            self._answer(200 if found else 404, found or NOT_FOUND)

        def do_POST(self) -> None:
            # Sent back as it came: Helm's own records are protobuf.
            self._send(201, self.headers["Content-Type"], self._body())

        do_PUT = do_POST

        def do_PATCH(self) -> None:
            self._body()
            self._answer(200, (objects or {})[urlsplit(self.path).path])

        def do_DELETE(self) -> None:
            self._body()
            self._answer(404, NOT_FOUND)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def log_message(self, *_args: object) -> None:
            pass

        def _answer(self, status: int, body: object) -> None:
            self._send(status, "application/json", json.dumps(body).encode())

        def _send(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield _kubeconfig(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _discovery(path: str, kinds: Kinds, version: str) -> dict[str, object] | None:
    """The answer to a discovery request, None for any other path."""
    if path == "/version":
        major, minor, *_ = version.split(".")
        return {"major": major, "minor": minor, "gitVersion": f"v{version}"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups: dict[str, list[dict[str, str]]] = {}
        for name in kinds:
            if "/" in name:
                group, _, short = name.partition("/")
                groups.setdefault(group, []).append({"groupVersion": name, "version": short})
        items = [{"name": g, "versions": v, "preferredVersion": v[0]} for g, v in groups.items()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": items}
    name = path.removeprefix("/apis/") if path.startswith("/apis/") else path.removeprefix("/api/")
    if name not in kinds:
        return None
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": namespaced,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }
        for plural, (kind, namespaced) in kinds[name].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}


def _kubeconfig(port: int) -> str:
    cluster = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "contexts": [context],
            "current-context": "x",
            "users": [{"name": "x", "user": {}}],
        }
    )
