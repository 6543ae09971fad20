"""The pod of a stage: what exactly is sent, and what holds for every pod.

Snapshots lie in pods/*.yaml, made with the profile pods/cluster/lab.yaml. After a wanted change:
`REFIT_RENEW=1 python -m pytest tests/refit/test_pod.py`, then read the diff as a cluster's administrator would.
tests/helm/test_pods.py judges them by Kubernetes' own schemas and by Pod Security.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import cluster
from refit.config import Settings
from refit.pipeline import Resources
from refit.runtime.pod import (
    MAX_ENV_BYTES,
    PodError,
    PodStage,
    cpu,
    label_value,
    memory,
    pack,
    pod_name,
    read_back_pod,
    stage_pod,
    unpack,
)

ROOT = Path(__file__).resolve().parents[2]
PODS = ROOT / "tests" / "refit" / "pods"
RENEW = bool(os.environ.get("REFIT_RENEW"))
PLAN = "/workspace/plates/runs/r1/plan.json"
HOSTILE = [
    "manual__2026-11-20T19:10:00+00:00",
    "-x-",
    "...",
    "",
    "a" * 300,
    "Ümläut/../x y",
    "$(HOME)",
    "9_9",
    "a" * 62 + "-b",
]
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def load(name: str, clusters: Path = ROOT / "specs" / "clusters") -> cluster.KubernetesProfile:
    found = cluster.load(name, Settings.from_env({"REFIT_CLUSTERS": str(clusters)}))
    assert isinstance(found, cluster.KubernetesProfile)
    return found


LAB = load("lab", PODS / "cluster")
PROFILES = {"lab": LAB, "kubernetes": load("kubernetes"), "workstation": load("workstation")}


def request(name: str, action: str, environment: str, **changes: Any) -> dict[str, Any]:
    """As much of a stage's request as its pod is made of."""
    return {
        "pipeline": "plates",
        "run": "r1",
        "name": name,
        "action": action,
        "environment": environment,
        "model": "plates",
        "resources": {"gpus": 0, "gpu_type": None, "cpus": 2, "memory_gib": 4},
        "timeout_seconds": 3600,
        "grace_seconds": 20,
        "secrets": [],
        "paths": {"stage": f"/workspace/plates/runs/r1/01-{name}"},
    } | changes


def resources(gpus: int, gpu_type: str | None = None) -> dict[str, Any]:
    return {"gpus": gpus, "gpu_type": gpu_type, "cpus": 7.5, "memory_gib": 30.5}


TRAIN = request("train", "train", "cpu", resources=resources(1))
STAGES = {
    "bind": PodStage.of(request("bind", "bind", "tools", files={"bind.yaml": "text: $(HOME)"})),
    "look": PodStage.of(request("look-3", "look", "tools", files={"bind.yaml": "share: 3"})),
    "train": PodStage.of(TRAIN, plan=PLAN),
    "gate": PodStage.of(request("gate_trained", "gate", "tools"), plan=PLAN),
    "release": PodStage.of(request("release", "release", "tools", secrets=["TRITON_CONTROL_KEY"]), plan=PLAN),
    "tao": PodStage.of(
        request("train", "train", "tao", resources=resources(2, "slice"), secrets=["TAO_KEY"]), plan=PLAN
    ),
    "no-python": PodStage.of(request("train", "train", "bare"), plan=PLAN),
}
READ_BACK_FOLDER = "/workspace/plates/runs/r1/03-train"


def made() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, stage in STAGES.items():
        yield name, stage_pod(stage, LAB)
    yield "read-back", read_back_pod(STAGES["train"], READ_BACK_FOLDER, LAB)


@pytest.mark.parametrize(("name", "pod"), list(made()), ids=[name for name, _ in made()])
def test_what_is_sent(name: str, pod: dict[str, Any]) -> None:
    file = PODS / f"{name}.yaml"
    text = yaml.safe_dump(pod, sort_keys=False, width=100)
    if RENEW:
        file.write_text(text)
    assert file.read_text() == text, "wanted? Then: REFIT_RENEW=1 python -m pytest tests/refit/test_pod.py"


def test_no_snapshot_is_left_over() -> None:
    assert {p.stem for p in PODS.glob("*.yaml")} == {name for name, _ in made()}


# --- what holds for every pod -----------------------------------------------------------------------------------------


def every() -> Iterator[Any]:
    for place, profile in PROFILES.items():
        for name, stage in STAGES.items():
            known = profile.images.keys() >= {stage.environment} and set(stage.secrets) <= profile.secrets.keys()
            if known and (stage.gpu_type or "default") in profile.gpu.types:
                yield pytest.param(stage, profile, stage_pod(stage, profile), id=f"{place}-{name}")
        read_back = read_back_pod(STAGES["train"], READ_BACK_FOLDER, profile)
        stage = replace(STAGES["train"], action="read-back", gpus=0)
        yield pytest.param(stage, profile, read_back, id=f"{place}-read-back")


EVERY = list(every())
for_every_pod = pytest.mark.parametrize(("stage", "profile", "pod"), EVERY)


def test_every_profile_makes_pods() -> None:
    assert {str(p.id).partition("-")[0] for p in EVERY} == set(PROFILES)
    assert len(EVERY) > 15


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def mounts(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {m["mountPath"]: m for m in pod["spec"]["containers"][0]["volumeMounts"]}


@for_every_pod
def test_pod_security(stage: PodStage, profile: cluster.KubernetesProfile, pod: dict[str, Any]) -> None:
    spec, root = pod["spec"], stage.environment == "tao"
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"]["runAsNonRoot"] is not root
    assert (spec["securityContext"]["runAsUser"] == 0) is root
    assert spec["securityContext"]["runAsGroup"] == profile.security.group  # root shares the group, too
    for container in containers(pod):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is not (root and container["name"] == "stage")
        assert "privileged" not in security
    for container in spec.get("initContainers", []):
        assert container["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["runAsUser"] == profile.security.user
    assert all(v.keys() <= {"name", "emptyDir", "persistentVolumeClaim"} for v in spec["volumes"])


@for_every_pod
def test_secrets_come_by_reference(stage: PodStage, profile: cluster.KubernetesProfile, pod: dict[str, Any]) -> None:
    env = {e["name"]: e for e in pod["spec"]["containers"][0]["env"]}
    asked = set() if stage.action == "read-back" else set(stage.secrets)
    assert {k.removeprefix("REFIT_SECRET_") for k in env if k.startswith("REFIT_SECRET_")} == asked
    for name in asked:
        ref = profile.secrets[name]
        assert env[f"REFIT_SECRET_{name}"] == {
            "name": f"REFIT_SECRET_{name}",
            "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}},
        }


@for_every_pod
def test_volumes(stage: PodStage, profile: cluster.KubernetesProfile, pod: dict[str, Any]) -> None:
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
    assert (profile.volumes.models.claim in claims) is (stage.action == "release")
    assert profile.volumes.inbox is not None
    assert (profile.volumes.inbox.claim in claims) is (stage.action in {"bind", "look"})
    found = mounts(pod)
    own = found["/workspace/plates"]
    assert own["subPath"].endswith("plates")
    assert own.get("readOnly", False) is (stage.action == "read-back")
    if stage.action in {"bind", "look", "read-back"}:
        assert "/workspace/plates/datasets" not in found
    else:
        assert found["/workspace/plates/datasets"]["readOnly"] is True
    if stage.action in {"bind", "look"}:
        assert found["/inbox"]["readOnly"] is True
    published = [path.removeprefix("/workspace/published/plates") for path in found if "/published/" in path]
    whole = stage.action in {"bind", "look", "release"}  # the others may not change what people look at
    assert published == ([] if stage.action == "read-back" else [""] if whole else ["/progress"])
    named = {v["name"] for v in pod["spec"]["volumes"]}
    assert {m["name"] for c in containers(pod) for m in c["volumeMounts"]} == named


@for_every_pod
def test_gpus_are_limited_to_what_the_stage_asks_for(
    stage: PodStage, profile: cluster.KubernetesProfile, pod: dict[str, Any]
) -> None:
    container = pod["spec"]["containers"][0]
    gpus = {k: v for k, v in container["resources"]["limits"].items() if "/" in k}
    assert gpus.keys() <= profile.gpu_resources()
    assert list(gpus.values()) == ([str(stage.gpus)] if stage.gpus else [])
    hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]
    assert hidden is (not stage.gpus)


@for_every_pod
def test_names_and_labels(stage: PodStage, profile: cluster.KubernetesProfile, pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"]
    assert profile.labels.items() <= labels.items()
    assert (labels["refit/pipeline"], labels["refit/run"], labels["refit/stage"]) == ("plates", "r1", stage.name)
    client = profile.triton.client_labels.items() <= labels.items()
    assert client is (stage.action in ("bind", "release"))  # bind asks whether what was released still serves
    queue = None if stage.action == "read-back" else profile.queue
    assert labels.get("kueue.x-k8s.io/queue-name") == queue
    assert all(LABEL_KEY.fullmatch(k) and LABEL_VALUE.fullmatch(v) for k, v in labels.items())


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("field", ["run", "name", "model"])
def test_hostile_names_make_valid_labels(name: str, field: str) -> None:
    pod = stage_pod(replace(STAGES["gate"], **{field: name}), LAB)
    assert all(LABEL_VALUE.fullmatch(v) for v in pod["metadata"]["labels"].values())
    assert DNS_LABEL.fullmatch(pod["metadata"]["name"])
    assert len(pod["metadata"]["name"]) <= 50  # room for the suffix that makes it unique


def test_labels_of_different_names_differ() -> None:
    values = {label_value(n) for n in HOSTILE}
    assert len(values) == len(HOSTILE)
    assert label_value("a" * 63) == "a" * 63
    assert label_value("a" * 64) != label_value("a" * 65)


@pytest.mark.parametrize("name", ["../other", "a/b", "a:b", "", ".", "..", "x\n"])
def test_a_pipeline_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(PodError, match="cannot be a pipeline's folder"):
        stage_pod(replace(STAGES["gate"], pipeline=name), LAB)


@pytest.mark.parametrize(("pipeline", "stage"), [("My_Model", "gate_trained"), ("9", "9"), ("p" * 63, "s" * 63)])
def test_pod_names(pipeline: str, stage: str) -> None:
    assert DNS_LABEL.fullmatch(pod_name(pipeline, stage))
    assert len(pod_name(pipeline, stage)) <= 50


# --- precedence: defaults < profile < pipeline < stage ----------------------------------------------------------------


def changed(**changes: Any) -> cluster.KubernetesProfile:
    data = yaml.safe_load((PODS / "cluster" / "lab.yaml").read_text())
    return cluster.KubernetesProfile.model_validate({**data, **changes})


def test_the_profile_wins_over_defaults() -> None:
    data = yaml.safe_load((PODS / "cluster" / "lab.yaml").read_text())
    needed = ("runtime", "namespace", "images", "volumes", "triton", "secrets")
    plain = stage_pod(STAGES["train"], cluster.KubernetesProfile.model_validate({k: data[k] for k in needed}))["spec"]
    own = stage_pod(STAGES["train"], LAB)["spec"]
    volumes = [
        {v["name"]: v["emptyDir"].get("sizeLimit") for v in s["volumes"] if "emptyDir" in v} for s in (plain, own)
    ]
    assert [v["shm"] for v in volumes] == ["1Gi", "8Gi"]
    assert [v["tmp"] for v in volumes] == ["10Gi", "20Gi"]
    assert [s["securityContext"]["runAsUser"] for s in (plain, own)] == [10001, 20001]
    assert {"tolerations", "nodeSelector", "priorityClassName", "runtimeClassName"}.isdisjoint(plain)
    assert [s["activeDeadlineSeconds"] for s in (plain, own)] == [3600 + 3600 + 140, 3600 + 200 + 140]


def test_the_gpu_type_wins_over_the_profiles_nodes() -> None:
    spec = stage_pod(STAGES["tao"], LAB)["spec"]
    assert spec["nodeSelector"] == {"zone": "b", "gpu": "a100"}
    assert [t["key"] for t in spec["tolerations"]] == ["batch", "reserved"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == "2"
    without = stage_pod(STAGES["gate"], LAB)["spec"]
    assert without["nodeSelector"] == {"zone": "a"}
    assert "runtimeClassName" not in without


def test_the_stage_wins_over_the_pipeline() -> None:
    from refit import pipeline as pipelines
    from refit import plan as plans
    from refit.specs import parse_yaml
    from tests.refit.test_plan import TEXT, bound

    text = TEXT + (
        "runtime: kubernetes\n"
        "resources: {default: {gpus: 1, memory_gib: 6}, stages: {prune: {cpus: 1, gpu_type: slice, gpus: 2}}}\n"
    )
    stages = plans.make_plan(pipelines.from_document(parse_yaml(text, "mine.yaml"), "mine"), LAB, bound())["stages"]
    pods = {s["name"]: stage_pod(PodStage.of(s, plan=PLAN), LAB)["spec"]["containers"][0] for s in stages}
    default = Resources()
    assert pods["train"]["resources"]["limits"] == {"memory": "6Gi", "nvidia.com/gpu": "1"}
    assert pods["train"]["resources"]["requests"]["cpu"] == cpu(default.cpus)
    assert pods["prune"]["resources"]["limits"] == {"memory": memory(default.memory_gib), "nvidia.com/mig-3g.40gb": "2"}
    assert pods["prune"]["resources"]["requests"]["cpu"] == "1"
    assert pods["gate_trained"]["resources"]["limits"] == {"memory": "6Gi"}  # compares files: no GPU


def test_bind_and_look_get_what_the_pipeline_gives_them_and_count_their_workers_by_it() -> None:
    from refit import plan as plans

    text = "resources: {default: {gpus: 1, cpus: 32}, stages: {bind: {cpus: 6, memory_gib: 12}, look: {cpus: 3.5}}}\n"
    place = cluster.settings_in_pod(LAB)
    for share, name, cpus, gib in ((None, "bind", 6, 12), (2, "look-2", 3.5, Resources().memory_gib)):
        made = plans.bind_request(Path("plates.yaml"), text, "r1", {}, place, nonce="", share=share)
        (container,) = stage_pod(PodStage.of({**made, "key": ""}), LAB)["spec"]["containers"]
        assert made["name"] == name
        assert container["resources"] == {
            "requests": {"cpu": cpu(cpus), "memory": memory(gib)},
            "limits": {"memory": memory(gib)},
        }
        assert {"name": "REFIT_CPUS", "value": f"{cpus:g}"} in container["env"]


def test_a_stages_own_image_wins_and_keeps_what_the_profile_knows_of_it() -> None:
    spec = stage_pod(replace(STAGES["tao"], image="nvcr.example/tao:6.0"), LAB)["spec"]
    assert spec["containers"][0]["image"] == "nvcr.example/tao:6.0"
    assert spec["containers"][0]["command"][0] == "/usr/bin/python3"
    assert spec["securityContext"]["runAsUser"] == 0
    unknown = stage_pod(replace(STAGES["gate"], environment="new", image="new:1"), LAB)["spec"]
    assert unknown["containers"][0]["image"] == "new:1"
    assert unknown["initContainers"][0]["image"] == LAB.images["tools"].image


# --- what a profile lacks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (replace(STAGES["train"], environment="tf"), r"environment 'tf', .*\(images: bare, cpu, .*\); add images\.tf"),
        (replace(STAGES["train"], gpu_type="h100"), r"gpu_type 'h100'; .* has default, slice; add gpu\.types\.h100"),
        (replace(STAGES["train"], secrets=("X",)), r"needs the secret X; .* are TAO_KEY, TRITON_.*: add secrets\.X"),
    ],
)
def test_what_the_profile_lacks_is_named(stage: PodStage, message: str) -> None:
    with pytest.raises(PodError, match=message):
        stage_pod(stage, LAB)


def test_a_request_that_a_variable_cannot_hold() -> None:
    long = PodStage.of(request("bind", "bind", "tools", files={"bind.yaml": "x" * MAX_ENV_BYTES}))
    with pytest.raises(PodError, match="smaller"):
        stage_pod(long, LAB)


def test_kubernetes_replaces_nothing_in_a_request() -> None:
    """It would take $(HOME) for a variable of the pod; $$ is its escape, and a lone $ stays as it is."""
    texts = ["$(HOME)", "$$(HOME)", "$HOME $ $$", "a$"]
    stage = PodStage.of(request("bind", "bind", "tools", files={"bind.yaml": json.dumps(texts)}))
    (value,) = [
        e["value"] for e in stage_pod(stage, LAB)["spec"]["containers"][0]["env"] if e["name"] == "REFIT_REQUEST"
    ]
    assert json.loads(json.loads(expanded(value))["files"]["bind.yaml"]) == texts


def expanded(value: str) -> str:
    """What a container sees, with no variable known: as Expand in Kubernetes' third_party/forked/golang/expansion."""
    out, i = "", 0
    while i < len(value):
        two = value[i : i + 2]
        if two == "$$":
            out, i = out + "$", i + 2
        elif two == "$(" and ")" in value[i:]:
            raise AssertionError(f"would be replaced: {value[i : i + 20]}")
        else:
            out, i = out + value[i], i + 1
    return out


def test_a_read_back_asks_for_the_result_of_the_stages_key() -> None:
    by_plan = read_back_pod(STAGES["train"], READ_BACK_FOLDER, LAB)["spec"]["containers"][0]
    assert by_plan["command"][-6:] == ["--plan", PLAN, "--stage", "train", "--answer", READ_BACK_FOLDER]
    by_request = read_back_pod(STAGES["bind"], "/workspace/plates/runs/r1/00-bind", LAB)["spec"]["containers"][0]
    assert by_request["command"][-2:] == ["--answer", "/workspace/plates/runs/r1/00-bind"]
    assert "REFIT_REQUEST" in {e["name"] for e in by_request["env"]}


# --- what travels in bind's result ------------------------------------------------------------------------------------


def test_packed_pods_are_the_same_pods() -> None:
    requests = [
        TRAIN,
        request("evaluate_trained", "evaluate", "cpu", resources=resources(1)),
        request("prune", "prune", "cpu", resources=resources(1)),
        request("gate_trained", "gate", "tools"),
        request("release", "release", "tools", secrets=["TRITON_CONTROL_KEY"]),
    ]
    packed = pack(requests)
    profile = changed(images={n: i.model_dump() for n, i in LAB.images.items()} | {"evaluate": {"image": "other:1"}})
    for asked in requests:
        stage = unpack(packed, asked["name"], pipeline="plates", run="r1", plan=PLAN, model="plates")
        assert stage_pod(stage, profile) == stage_pod(PodStage.of(asked, plan=PLAN), profile)
    with pytest.raises(KeyError):
        unpack(packed, "export", pipeline="plates", run="r1", plan=PLAN)
    smoke = request("smoke_train", "train", "cpu")  # its pod is that of the action, not of the name
    assert unpack(pack([smoke]), "smoke_train", pipeline="plates", run="r1", plan=PLAN).action == "train"


@pytest.mark.parametrize(("cores", "text"), [(2, "2"), (2.0, "2"), (0.5, "500m"), (1.25, "1250m"), (0.0001, "1m")])
def test_cores(cores: float, text: str) -> None:
    assert cpu(cores) == text


@pytest.mark.parametrize(("gib", "text"), [(4, "4Gi"), (0.25, "256Mi"), (30.5, "31232Mi"), (0.0001, "1Mi")])
def test_gibibytes(gib: float, text: str) -> None:
    assert memory(gib) == text
