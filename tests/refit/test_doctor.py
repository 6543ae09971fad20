"""`refit doctor` without a cluster: answers as kubectl gave them (trimmed), the probes on this machine, and local."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import cli, cluster
from refit.cluster import KubernetesProfile
from refit.doctor import Finding, examine, objects, probe
from refit.doctor import pods as doctor_pods
from refit.doctor.kubectl import Done, Kubectl, KubectlError
from refit.doctor.objects import Place, quantity
from refit.runtime.pod import PodStage

ROOT = Path(__file__).resolve().parents[2]


def profile(**changes: Any) -> KubernetesProfile:
    data = yaml.safe_load((ROOT / "specs" / "clusters" / "kubernetes.yaml").read_text()) | changes
    made = cluster.from_data(data, None)
    assert isinstance(made, KubernetesProfile)
    return made


def node(name: str, gpus: int = 0, labels: dict[str, str] | None = None, taint: str = "") -> dict[str, Any]:
    taints = [{"key": taint, "effect": "NoSchedule"}] if taint else []
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": taints},
        "status": {
            "allocatable": {"cpu": "2", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


class Recorded(Kubectl):
    """Answers by the words that begin a command; what is not recorded is not found, as kubectl says it."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("refit")
        self.answers = {
            "get nodes": {"items": [node("n1", gpus=2)]},
            "version": {"serverVersion": {"gitVersion": "v1"}},
        }
        self.answers |= {name.replace("_", " "): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    def run(self, *words: str, stdin: str | None = None, seconds: float = 60) -> Done:
        command = " ".join(words)
        self.asked.append(command)
        for name, answer in self.answers.items():
            if command.startswith(name):
                if isinstance(answer, Done):
                    return answer
                return Done(0, answer if isinstance(answer, str) else json.dumps(answer), "")
        return Done(1, "", f'Error from server (NotFound): {words[1]} "{words[-1]}" not found')


def said(check: Any, kubectl: Kubectl, stages: tuple[PodStage, ...] = (), **changes: Any) -> list[str]:
    """A check's findings as "level name: text"."""
    found: list[Finding] = list(check(Place(kubectl, profile(**changes), stages)))
    return [f"{f.level} {f.name}: {f.text}" for f in found]


def stage(**changes: Any) -> PodStage:
    return PodStage(
        **({"pipeline": "demo", "run": "", "name": "train", "action": "train", "environment": "cpu"} | changes)
    )


# --- kubectl itself ---------------------------------------------------------------------------------------------------


def test_without_kubectl_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["doctor", "--cluster", "kubernetes"]) == 1
    assert "FAIL  cluster: kubectl is not on the PATH; get the version of your cluster" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_ends_it() -> None:
    refused = "The connection to the server 127.0.0.1:1 was refused - did you specify the right host or port?"
    found = list(objects.examine(Place(Recorded(version=Done(1, "", refused)), profile())))
    assert [(f.level, f.name, f.text) for f in found] == [("FAIL", "cluster", refused)]


def test_a_check_that_may_not_look_is_a_failure_and_the_others_go_on() -> None:
    forbidden = 'Error from server (Forbidden): nodes is forbidden: User "u" cannot list resource "nodes"'
    kubectl = Recorded(get_namespace={"metadata": {}}, get_serviceaccount={}, get_resourcequota=Done(1, "", forbidden))
    lines = [str(f) for f in objects.examine(Place(kubectl, profile()))]
    assert any(line.startswith(f"FAIL  quota: {forbidden}") for line in lines)
    assert lines[-1].startswith("note  pools: ")


# --- objects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("enforced", "root", "words"),
    [
        ("restricted", True, "FAIL pod security: the namespace enforces restricted, and images.cpu run as root"),
        ("restricted", False, "ok pod security: enforced is restricted"),
        ("baseline", True, "ok pod security: enforced is baseline"),
        (None, False, "ok pod security: nothing is enforced; all pods of this profile would pass restricted"),
    ],
)
def test_pod_security(enforced: str | None, root: bool, words: str) -> None:
    labels = {objects.ENFORCE: enforced} if enforced else {}
    images = {"tools": {"image": "t:1"}, "cpu": {"image": "c:1", "root": root}}
    lines = said(objects.namespace, Recorded(get_namespace={"metadata": {"labels": labels}}), images=images)
    assert lines[1].startswith(words)


def pvc(phase: str = "Bound", mode: str = "ReadWriteMany", **meta: Any) -> dict[str, Any]:
    spec = {"accessModes": [mode], "storageClassName": "late"}
    return {"metadata": meta, "spec": spec, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "FAIL volume workspace: the claim refit-workspace does not exist"),
        (
            {"get_persistentvolumeclaim": pvc("Lost")},
            "FAIL volume workspace: the claim refit-workspace is Lost, not Bound",
        ),
        ({"get_persistentvolumeclaim": pvc("Pending")}, "FAIL volume workspace: the claim refit-workspace is Pending"),
        (
            {
                "get_persistentvolumeclaim": pvc("Pending"),
                "get_storageclass": {"volumeBindingMode": "WaitForFirstConsumer"},
            },
            "ok volume workspace: refit-workspace is bound by the first pod",
        ),
        (
            {"get_persistentvolumeclaim": pvc(deletionTimestamp="2026-11-21T14:57:25Z")},
            "FAIL volume workspace: the claim re",
        ),
        (
            {"get_persistentvolumeclaim": pvc(mode="ReadWriteOnce")},
            "ok volume workspace: refit-workspace is Bound, ReadW",
        ),
        (
            {
                "get_persistentvolumeclaim": pvc(mode="ReadWriteOnce"),
                "get_nodes": {"items": [node("n1"), node("n2")]},
            },
            "FAIL volume workspace: the claim refit-workspace has ReadWriteOnce: pods on 2 nodes cannot share it",
        ),
    ],
)
def test_claims(answers: dict[str, Any], words: str) -> None:
    assert said(objects.volumes, Recorded(**answers))[0].startswith(words)


def test_secrets_are_asked_for_their_entries_only() -> None:
    kubectl = Recorded(get_secret="other\n")
    assert said(objects.secrets, kubectl, image_pull_secrets=["pull"]) == [
        "FAIL secret: refit-triton-control has no entry control-key, which TRITON_CONTROL_KEY is taken from; "
        "its entries are: other",
        "FAIL secret: image_pull_secrets: pull is of type other\n",
    ]
    assert not any("json " in f"{command} " or "yaml" in command for command in kubectl.asked)


@pytest.mark.parametrize(
    ("nodes", "gpu", "words"),
    [
        ([node("n1", 1), node("n2", 1)], {}, "FAIL gpu default: no node has 2 nvidia.com/gpu (n1: 1, n2: 1)"),
        ([node("n1", 8, taint="team/a")], {}, "FAIL gpu default: the nodes have taints that are not tolerated: team/a"),
        ([node("n1", 8, taint="nvidia.com/gpu")], {}, "ok gpu default: 2 nvidia.com/gpu on one node are there (n1: 8)"),
        ([node("n1", 8)], {"node_selector": {"gpu": "a100"}}, "FAIL gpu default: no node has the labels gpu=a100"),
        (
            [node("n1", 8)],
            {"resource": "nvidia.com/mig-1g.10gb"},
            "FAIL gpu default: no node has 2 nvidia.com/mig-1g.10gb",
        ),
    ],
)
def test_gpus(nodes: list[Any], gpu: dict[str, Any], words: str) -> None:
    kind = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}], **gpu}
    lines = said(objects.gpus, Recorded(get_nodes={"items": nodes}), (stage(gpus=2),), gpu={"types": {"default": kind}})
    assert lines[0].startswith(words)


def test_more_gpus_in_the_profile_than_in_the_nodes() -> None:
    lines = said(objects.gpus, Recorded(), gpu={"total": 4})
    assert lines[1] == "warn gpu: gpu.total is 4, and the nodes have 2 (n1: 2)"


def test_a_node_that_takes_no_pods_counts_for_nothing() -> None:
    asleep = node("n1", 8)
    asleep["spec"]["unschedulable"] = True
    assert Place(Recorded(get_nodes={"items": [asleep, node("n2")]}), profile()).nodes == [node("n2")]


def quota(hard: str, used: str, priority: str | None = None) -> dict[str, Any]:
    expression = {"scopeName": "PriorityClass", "operator": "In", "values": [priority]}
    spec = {"scopeSelector": {"matchExpressions": [expression]}} if priority else {}
    status = {"hard": {"requests.memory": hard}, "used": {"requests.memory": used}}
    return {"items": [{"metadata": {"name": "q"}, "spec": spec, "status": status}]}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (quota("4Gi", "0"), "FAIL quota q: requests.memory is limited to 4Gi, and a stage needs 8.58993e+09"),
        (quota("16Gi", "10Gi"), "warn quota q: is used up for now: 10Gi of 16Gi requests.memory; stages wait"),
        (quota("16Gi", "1Gi"), "ok quota q: has room for a stage"),
        (quota("4Gi", "0", "others"), None),
        (quota("16Gi", "0", "refit-stages"), "ok quota q: has room for a stage"),
    ],
)
def test_quota(answer: Any, words: str | None) -> None:
    lines = said(objects.quota, Recorded(get_resourcequota=answer), (stage(memory_gib=8),))
    assert lines[:1] == ([words] if words else [])


@pytest.mark.parametrize(("text", "value"), [("500m", 0.5), ("2Gi", 2**31), ("2", 2), ("1e3", 1000), ("3k", 3000)])
def test_quantity(text: str, value: float) -> None:
    assert quantity(text) == value


def test_rights_that_cannot_be_asked_for() -> None:
    text = 'Error from server (Forbidden): serviceaccounts "a" is forbidden: User "u" cannot impersonate resource'
    place = Place(Recorded(auth=Done(1, "", text)), profile(), accounts=("airflow:a",))
    with pytest.raises(KubectlError, match="cannot ask what airflow:a may do"):
        list(objects.rights(place))


def test_a_stage_that_the_profile_has_no_image_for() -> None:
    (line,) = said(objects.stages, Recorded(), (stage(environment="tao"),))
    assert "FAIL pipeline: demo: stage train runs in environment 'tao'" in line


# --- pods -------------------------------------------------------------------------------------------------------------


def ended(message: str, code: int = 0) -> dict[str, Any]:
    over = {"terminated": {"exitCode": code, "message": message, "reason": "Completed" if not code else "Error"}}
    return {"metadata": {}, "status": {"phase": "Succeeded", "containerStatuses": [{"name": "stage", "state": over}]}}


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (ended('[["ok", "python", "Python 3.8.10", ""]]'), "ok    image x python: Python 3.8.10"),
        (ended("sh: python: not found", 127), "FAIL  image x: the command cannot be started in this image: sh: python"),
        (None, "FAIL  image x: the pod is gone"),
    ],
)
def test_what_a_pod_comes_to(pod: Any, words: str) -> None:
    found = doctor_pods._look(doctor_pods.Probe("image x", {}), pod, doctor_pods.Patience(60, 60))
    assert found is not None
    assert str(found[0]).startswith(words)


def test_a_pod_that_is_refused_is_named_with_what_mends_it_and_all_are_deleted() -> None:
    text = (
        'Error from server (Forbidden): pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot'
    )
    kubectl = Recorded(create=Done(1, "", text), delete="")
    found = list(doctor_pods.examine(Place(kubectl, profile()), 1))
    assert {f.name for f in found} >= {"image refit-cpu:0.1.0", "workspace", "triton"}
    assert all("pod-security.kubernetes.io/enforce=baseline" in f.fix for f in found)
    assert kubectl.asked[-1].startswith("delete pods -l refit/run=")


def test_its_pods_ask_for_no_gpu_no_secret_but_tritons_and_end_soon() -> None:
    place = Place(Recorded(), profile())
    made = [*doctor_pods._images(place, "t"), *doctor_pods._volume(place, "t"), *doctor_pods._triton(place, "t")]
    named = [p.title for p in made if "secretKeyRef" in json.dumps(p.manifest)]
    assert named == ["triton"]
    assert "nvidia.com/gpu" not in json.dumps([p.manifest["spec"]["containers"][0]["resources"] for p in made])
    assert {p.manifest["spec"]["activeDeadlineSeconds"] for p in made} == {300 + 600 + 1 + 120}


def test_the_pods_are_left_out_where_none_could_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = Recorded(get_namespace={"metadata": {}}, get_serviceaccount={}, get_resourcequota={"items": []})
    monkeypatch.setattr("refit.doctor.Kubectl", lambda namespace: kubectl)
    last = list(examine(profile(), cli.Settings.from_env(), accounts=["airflow:a"]))[-1]
    assert str(last).startswith("note  pods: no pods were started: mend priority, volume first")
    assert not any(command.startswith("create") for command in kubectl.asked)


# --- the probes, on this machine --------------------------------------------------------------------------------------


def levels(rows: list[probe.Row]) -> dict[str, str]:
    return {name: level for level, name, _, _ in rows}


def test_two_processes_prove_a_folder(tmp_path: Path) -> None:
    env = {**os.environ, "REFIT_UMASK": "0002"}
    words = [[sys.executable, "-c", doctor_pods.SOURCE, which, str(tmp_path)] for which in ("first", "second")]
    both = [subprocess.Popen(w, env=env, stdout=subprocess.PIPE) for w in words]
    rows = [json.loads(p.communicate(timeout=60)[0]) for p in both]
    wanted = ("rename and fsync", "hard links", "seen by a second pod", "locks", "group")
    assert levels([*rows[0], *rows[1]]) == dict.fromkeys(wanted, "ok")


def test_a_lock_that_does_not_reach_the_second_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFIT_UMASK", "0002")
    monkeypatch.setattr(probe.fcntl, "flock", lambda *_: None)
    other = threading.Thread(target=probe.first, args=(str(tmp_path),))
    other.start()
    rows = probe.second(str(tmp_path))
    other.join()
    assert levels(rows)["locks"] == "FAIL"


def test_a_umask_that_shuts_the_group_out_is_seen(tmp_path: Path) -> None:
    env = {**os.environ, "REFIT_UMASK": "0077"}
    words = [[sys.executable, "-c", doctor_pods.SOURCE, which, str(tmp_path)] for which in ("first", "second")]
    both = [subprocess.Popen(w, env=env, stdout=subprocess.PIPE) for w in words]
    rows = json.loads(both[0].communicate(timeout=60)[0])
    both[1].wait(60)
    assert levels(rows)["umask"] == "FAIL"


def test_a_file_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.1)
    monkeypatch.setenv("REFIT_UMASK", "0002")
    (tmp_path / "shared").mkdir()
    assert probe.main(["second", str(tmp_path)]) == 0
    assert "the other pod's file did not appear" in capsys.readouterr().out


def test_the_forecast_counts_the_runs_that_were(tmp_path: Path) -> None:
    for pipeline, run, size in (("a", "r1", 2**20), ("a", "r2", 3 * 2**20), ("b", "r1", 2 * 2**20)):
        folder = tmp_path / pipeline / "runs" / run / "01-train"
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(b"\0" * size)
    assert sum(probe.run_bytes(str(tmp_path))) == 6 * 2**20
    level, _, text, _ = probe.room(str(tmp_path))
    assert level == "ok"
    assert "the last 3 runs took 0.00 GiB each, so " in text


@pytest.mark.parametrize(("free", "level"), [(2**20, "FAIL"), (2**22, "warn"), (2**30, "ok")])
def test_little_room_is_told_by_what_runs_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    monkeypatch.setattr(probe.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    monkeypatch.setattr(probe, "run_bytes", lambda _: [2**21, 2**21])
    assert probe.room(str(tmp_path))[0] == level


class Triton(http.server.BaseHTTPRequestHandler):
    """Answers as Triton with and without a restricted control API (checked on the real one in test_doctor_cluster)."""

    key: str | None = "right"
    ready = 200

    def do_GET(self) -> None:
        self._say(self.ready)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(200 if self.key in (None, self.headers.get("refit-control-key")) else 403)

    def _say(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def triton() -> Iterator[tuple[type[Triton], str]]:
    handler = type("Handler", (Triton,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("served", "given", "ready", "wanted"),
    [
        ("right", "right", 200, {"answers": "ok", "control": "ok"}),
        ("right", "wrong", 200, {"answers": "ok", "control": "FAIL"}),
        (None, "right", 200, {"answers": "ok", "control": "FAIL"}),
        (None, "", 200, {"answers": "ok", "control": "warn"}),
        ("right", "right", 503, {"answers": "FAIL"}),
    ],
)
def test_tritons_control(
    triton: Any, monkeypatch: pytest.MonkeyPatch, served: str | None, given: str, ready: int, wanted: dict[str, str]
) -> None:
    handler, url = triton
    handler.key, handler.ready = served, ready
    for name in [n for n in os.environ if n.startswith("REFIT_SECRET_")]:
        monkeypatch.delenv(name)
    if given:
        monkeypatch.setenv("REFIT_SECRET_TRITON_CONTROL_KEY", given)
    assert levels(probe.control(url)) == wanted


def test_a_repository_that_cannot_be_renamed_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    assert probe.beside(str(repository))[0] == "FAIL"
    repository.mkdir()
    assert probe.beside(str(repository))[0] == "ok"
    assert list(repository.iterdir()) == []

    def rename(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(probe.os, "rename", rename)
    assert "Invalid cross-device link" in probe.beside(str(repository))[2]


# --- this machine -----------------------------------------------------------------------------------------------------


def test_a_machine_without_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFIT_HOME", str(tmp_path))
    monkeypatch.setenv("REFIT_ENVS", str(tmp_path / "envs"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("AIRFLOW_PORT", str(port))
        assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"FAIL  environment cpu: environment 'cpu' has no Python at {tmp_path / 'envs'}/cpu/bin/python" in out
    assert "FAIL  tritonserver: " in out
    assert f"warn  port {port}: Airflow: something listens already" in out
    assert "ok    workspace room: " in out


def test_an_unknown_profile_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--cluster", "kubernets"]) == 2
    assert "did you mean 'kubernetes'" in capsys.readouterr().err
