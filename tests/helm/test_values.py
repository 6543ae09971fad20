"""Wrong values are refused with a message that names the value; good ones are explained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.helm import apiserver
from tests.helm.charts import CHART, Refused, render

VALUES = (CHART / "values.yaml").read_text()
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

# values -> what the message must say
BAD: list[tuple[dict[str, Any], str]] = [
    ({"tritn": {}}, "additional properties 'tritn' not allowed"),
    ({"triton": {"replicaz": 2}}, "at '/triton': additional properties 'replicaz' not allowed"),
    ({"triton": {"device": "tpu"}}, "at '/triton/device': value must be one of 'cpu', 'gpu'"),
    ({"triton": {"replicas": -1}}, "at '/triton/replicas': minimum: got -1, want 0"),
    ({"triton": {"replicas": "2"}}, "at '/triton/replicas': got string, want integer"),
    ({"triton": {"image": {"tag": 1.1}}}, "at '/triton/image/tag': got number, want string"),
    ({"triton": {"image": {"repository": "x:1"}}}, "at '/triton/image/repository'"),
    ({"triton": {"image": {"digest": "sha256:1"}}}, "at '/triton/image/digest'"),
    ({"triton": {"sharedMemory": "512"}}, "at '/triton/sharedMemory'"),
    ({"triton": {"resources": {"limits": {"memory": "4 GB"}}}}, "at '/triton/resources/limits/memory'"),
    ({"triton": {"gpu": {"count": 0}}}, "at '/triton/gpu/count': minimum: got 0, want 1"),
    ({"triton": {"gpu": {"resource": "gpu"}}}, "at '/triton/gpu/resource'"),
    ({"triton": {"tolerations": [{"key": "a", "operator": "Exist"}]}}, "'Exists', 'Equal'"),
    ({"triton": {"service": {"httpPort": 70000}}}, "at '/triton/service/httpPort': maximum"),
    ({"triton": {"service": {"type": "Ingress"}}}, "'ClusterIP', 'NodePort', 'LoadBalancer'"),
    ({"triton": {"podLabels": {"team": True}}}, "at '/triton/podLabels/team': got boolean, want string"),
    ({"triton": {"controlKey": {"value": "x"}}}, "at '/triton/controlKey': additional properties 'value' not allowed"),
    ({"triton": {"plugins": {"libraries": ["a.so"]}}}, "at '/triton/plugins/libraries/0'"),
    ({"tao": {"repository": "nvidia/tao/tao-toolkit:5.0.0-tf1.15.5"}}, "at '/tao/repository'"),
    ({"tao": {"pullPolicy": "Sometimes"}}, "at '/tao/pullPolicy': value must be one of 'IfNotPresent', 'Always'"),
    ({"tao": {"tag": "5.0.0"}}, "at '/tao': additional properties 'tag' not allowed"),
    ({"security": {"runAsUser": 0}}, "at '/security/runAsUser': minimum: got 0, want 1"),
    ({"security": {"umask": 2}}, "at '/security/umask'"),
    ({"storage": {"models": {"size": "many"}}}, "at '/storage/models/size'"),
    ({"storage": {"models": {"accessModes": ["ReadOnlyMany"]}}}, "at '/storage/models/accessModes/0'"),
    ({"storage": {"models": {"subPath": "../x"}}}, "at '/storage/models/subPath'"),
    ({"storage": {"scratch": {}}}, "additional properties 'scratch' not allowed"),
    ({"stages": {"secrets": {"tao": {"name": "a", "key": "b"}}}}, "at '/stages/secrets': additional properties 'tao'"),
    ({"stages": {"secrets": {"TAO": "value"}}}, "at '/stages/secrets/TAO': got string, want object"),
    ({"stages": {"env": {"A": 1}}}, "at '/stages/env/A': got number, want string"),
    ({"imageRegistry": "https://x"}, "at '/imageRegistry'"),
    ({"imagePullSecrets": [{"name": "x"}]}, "at '/imagePullSecrets/0': got object, want string"),
    ({"networkPolicies": {"clients": [{}]}}, "at '/networkPolicies/clients/0'"),
    ({"networkPolicies": {"clients": [{"labels": {}}]}}, "additional properties 'labels' not allowed"),
    ({"quota": {"hard": {"pods": "ten"}}}, "at '/quota/hard/pods'"),
    ({"tensorboard": {"pipelines": ["A B"]}}, "at '/tensorboard/pipelines/0'"),
    # Good by themselves, not together, or not in this cluster: the message says what to do.
    (
        {"profile": {"overrides": {"triton": {"repository": "s3://models/production"}}}},
        "no release pod may reach it: add the store to networkPolicies.releaseEgress",
    ),
    ({"triton": {"device": "gpu"}}, "set triton.image.repository and triton.image.tag to NVIDIA's"),
    ({"triton": {"autoscaling": {"enabled": True, "minReplicas": 5}}}, "minReplicas (5) is more than maxReplicas (4)"),
    (
        {"triton": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}},
        "set triton.resources.requests.cpu",
    ),
    ({"triton": {"extraArgs": ["--model-control-mode=poll"]}}, "--model-control-mode is set by the chart"),
    ({"triton": {"serviceMonitor": {"enabled": True}}}, "install the Prometheus operator"),
    ({"kueue": {"enabled": True}}, "name the ClusterQueue"),
    ({"kueue": {"enabled": True, "clusterQueue": "q"}}, "install Kueue"),
    ({"quota": {"enabled": True}, "priorityClasses": {"create": False}}, "stages.priorityClassName"),
    ({"stages": {"serviceAccount": {"create": False}}}, "name an existing one without rights"),
    ({"stages": {"gpu": {"types": {"default": None, "big": {}}}}}, "no entry named default"),
    ({"stages": {"secrets": {"TRITON_CONTROL_KEY": {"name": "a", "key": "b"}}}}, "triton.controlKey.existingSecret"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), BAD, ids=[json.dumps(v)[:70] for v, _ in BAD])
def test_a_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as refused:
        render(values)
    assert message in str(refused.value)


def test_an_old_kubernetes_is_refused() -> None:
    with pytest.raises(Refused, match=r"requires kubeVersion: >=1\.20"):
        render({}, kinds=apiserver.OF_1_20, version="1.19.0")


def test_no_value_is_a_secret() -> None:
    secret = re.compile("password|passwd|token|secretvalue|private", re.IGNORECASE)
    assert not [path for path, _ in _leaves(yaml.safe_load(VALUES)) if secret.search(path)]


def test_the_schema_knows_every_value_and_every_value_has_a_default() -> None:
    values = yaml.safe_load(VALUES)
    given = {path for path, _ in _leaves(values)}
    missing = sorted(
        path for path in _schema_paths(SCHEMA) if not any(g == path or g.startswith(path + ".") for g in given)
    )
    assert missing == ["global"]  # Helm's own; a value that is not in the schema is refused by the schema


def test_every_value_is_explained() -> None:
    """By a comment on the line or right above it; or, for the parts of one thing, right above the thing."""
    unexplained = []
    above = False  # the line before is a comment (a heading is none)
    parents: list[tuple[int, bool]] = []  # (indent, explained)
    for number, line in enumerate(VALUES.splitlines(), 1):
        text, indent = line.strip(), len(line) - len(line.lstrip())
        key = re.match(r"[\w-]+:( |$)", text)
        if key:
            while parents and parents[-1][0] >= indent:
                parents.pop()
            good = above or " # " in line
            inherited = bool(parents) and parents[-1][1]
            if not good and not inherited and not text.endswith(":"):
                unexplained.append(f"{number}: {text}")
            parents.append((indent, good or (inherited and text.endswith(":"))))
        above = text.startswith("#") and not text.startswith("# ---")
    assert unexplained == []


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _schema_paths(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of the values that the schema has names for, down to named definitions that are Kubernetes' own."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in ("image", "volume"):
            properties = dict(SCHEMA["definitions"][name]["properties"])
            for key in properties:
                # Only the inbox can be switched off.
                if not (key == "enabled" and path != "storage.inbox"):
                    yield f"{path}.{key}"
            return
    properties = schema.get("properties")
    if not properties:
        yield path
        return
    for key, inner in properties.items():
        yield from _schema_paths(inner, f"{path}.{key}" if path else key)
