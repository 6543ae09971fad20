"""Cluster profiles: what is accepted, and the error that each mistake gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from refit import cluster
from refit import pipeline as pipelines
from refit.cluster import KubernetesProfile, LocalProfile
from refit.config import Settings
from refit.specs import SpecError, parse_yaml

SPECS = Path(__file__).resolve().parents[2] / "specs" / "clusters"
KUBERNETES = yaml.safe_load((SPECS / "kubernetes.yaml").read_text())


def load(name: str, folder: Path = SPECS, **env: str) -> cluster.Profile:
    return cluster.load(name, Settings.from_env({"REFIT_CLUSTERS": str(folder), "REFIT_HOME": "/h", **env}))


def errors(folder: Path, text: str | dict[str, Any]) -> str:
    (folder / "mine.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    with pytest.raises(SpecError) as caught:
        load("mine", folder)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_profiles_are_good(path: Path) -> None:
    profile = load(path.stem)
    assert profile.runtime == ("local" if path.stem == "local" else "kubernetes")
    assert profile.triton.control_key_secret == "TRITON_CONTROL_KEY"


def test_the_reference_names_every_key() -> None:
    assert set(KUBERNETES) == set(KubernetesProfile.model_fields)
    assert set(KUBERNETES["triton"]) == set(cluster.KubernetesTriton.model_fields)
    assert set(KUBERNETES["gpu"]) == set(cluster.Gpu.model_fields)


def test_the_workstation_gives_gpus_by_its_runtime_class() -> None:
    profile = load("workstation")
    assert isinstance(profile, KubernetesProfile)
    assert profile.gpu.types["default"].runtime_class == "nvidia"
    assert profile.gpu_resources() == {"nvidia.com/gpu"}


def test_the_environments_triton_wins_on_one_machine_only() -> None:
    env = {"REFIT_TRITON_URL": "http://other:1", "REFIT_MODEL_REPOSITORY": "/elsewhere"}
    local = load("local", **env)
    assert isinstance(local, LocalProfile)
    assert (local.triton.url, local.triton.repository) == ("http://other:1", "/elsewhere")
    assert load("local").triton.repository == "/h/models"
    assert load("kubernetes", **env) == load("kubernetes")


def test_the_profiles_of_a_runtime(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("runtime: kubernetes\n")
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(KUBERNETES))
    settings = Settings.from_env({"REFIT_CLUSTERS": str(tmp_path)})
    assert cluster.names(settings, "kubernetes") == ["good"]
    assert cluster.names(settings, "local") == []


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"kubernets\.yaml: no such cluster profile; did you mean 'kubernetes'\?"):
        load("kubernets")
    with pytest.raises(SpecError, match="there is none; set REFIT_CLUSTERS"):
        load("x", tmp_path)


def test_a_profile_of_another_runtime() -> None:
    text = "dataset: {source: x, classes: [a]}\ntoolkit: cpu\nruntime: kubernetes\ncluster: local\n"
    pipeline = pipelines.from_document(parse_yaml(text, "mine.yaml"), "mine")
    with pytest.raises(SpecError, match="is a profile of runtime local; the pipeline says runtime: kubernetes; name"):
        cluster.of_pipeline(pipeline, Settings.from_env({}))


TRITON = "triton: {url: 'http://t:8000', repository: m}\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "kubernets"}, "'kubernets' is not a choice; use local, kubernetes; did you mean 'kubernetes'?"),
        ({"runtime": ["x"]}, "['x'] is not a choice"),
        ({"namespase": "x"}, "namespase: unknown key; did you mean 'namespace'?"),
        ({"namespace": "Refit"}, "namespace: String should match pattern"),
        ({"images": {"cpu": {"image": "a:1"}}}, "images has no 'tools': it brings the runner into every stage pod"),
        ({"images": {"tools": {"image": ""}}}, "images.tools.image: String should have at least 1 character"),
        ({"images": {"tools": {"image": "a", "runner": "runner.py"}}}, "images.tools.runner: String should match"),
        ({"images": {"tools": {"image": "a", "pull_policy": "always"}}}, "did you mean 'Always'?"),
        ({"secrets": {}}, "triton.control_key_secret is TRITON_CONTROL_KEY, which secrets does not name"),
        ({"secrets": {"key": {"name": "a", "key": "b"}}}, "secrets.key"),
        ({"gpu": {"types": {"a100": {}}}}, "types has no 'default'; it has a100"),
        ({"gpu": {"total": -1}}, "gpu.total: Input should be greater than or equal to 0"),
        ({"labels": {"a": "x y"}}, "labels.a: String should match pattern"),
        ({"labels": {"a": True}}, "labels.a: Input should be a valid string"),
        ({"shared_memory": "lots"}, "shared_memory: String should match pattern"),
        ({"security": {"umask": "0008"}}, "security.umask: String should match pattern"),
        ({"security": {"user": 0}}, "security.user: Input should be greater than or equal to 1"),
        ({"poll_seconds": 0}, "poll_seconds: Input should be greater than or equal to 0.2"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    found = errors(tmp_path, {**KUBERNETES, **change})
    assert message in found
    assert "mine.yaml:" in found


@pytest.mark.parametrize("mount", ["workspace", "/a:b", "/a{b}", "/a'b"])
def test_a_volume_lies_at_an_absolute_plain_path(tmp_path: Path, mount: str) -> None:
    volumes = {**KUBERNETES["volumes"], "workspace": {"claim": "c", "mount_path": mount}}
    assert "volumes.workspace.mount_path: String should match pattern" in errors(
        tmp_path, {**KUBERNETES, "volumes": volumes}
    )


def test_a_local_profile_knows_nothing_of_clusters(tmp_path: Path) -> None:
    assert "mine.yaml:2: namespace: unknown key" in errors(tmp_path, TRITON + "namespace: x\n")


def test_what_helm_leaves_empty_is_none() -> None:
    names = ("service_account", "priority_class", "queue")
    profile = KubernetesProfile.model_validate({**KUBERNETES, **dict.fromkeys(names, "")})
    assert [getattr(profile, name) for name in names] == [None, None, None]


@pytest.mark.parametrize(
    ("image", "digest"),
    [
        ("refit-cpu:1", None),
        ("r.example:5000/refit-cpu:1@sha256:ab", "sha256:ab"),
        ("refit-cpu@sha256:ab", "sha256:ab"),
    ],
)
def test_a_digest_pins_an_image(image: str, digest: str | None) -> None:
    assert cluster.Image(image=image).digest == digest


def test_the_image_of_a_stage() -> None:
    profile = load("kubernetes")
    assert isinstance(profile, KubernetesProfile)
    assert profile.image("tools", "gate") == profile.images["tools"]
    assert profile.image("tools", "release") == profile.images["release"]
    assert profile.image("tools", "gate", "own:1") == profile.images["tools"].model_copy(update={"image": "own:1"})
    with pytest.raises(KeyError):
        profile.image("tf", "train")


def test_where_things_lie_in_a_pod() -> None:
    profile = KubernetesProfile.model_validate(KUBERNETES)
    assert cluster.settings_in_pod(profile).workspace == Path("/workspace")
    assert cluster.settings_in_pod(profile).data_roots == (Path("/inbox"),)
    volumes = {k: v for k, v in KUBERNETES["volumes"].items() if k != "inbox"}
    without = KubernetesProfile.model_validate({**KUBERNETES, "volumes": volumes})
    assert cluster.settings_in_pod(without).data_roots == (Path("/workspace/inbox"),)


def test_a_profile_survives_the_way_into_a_pod() -> None:
    """Airflow reads it, bind gets it in its request."""
    data = {**KUBERNETES, "tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 5}]}
    profile = KubernetesProfile.model_validate(data)
    sent = profile.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    assert cluster.from_data(sent, parse_yaml(yaml.safe_dump(sent), "sent")) == profile


def test_which_gpus_triton_has() -> None:
    types = {"default": {}, "t4": {"compute_capability": "7.5"}, "t4-spot": {"compute_capability": "7.5"}}
    triton = {**KUBERNETES["triton"], "gpu_types": ["t4", "t4-spot"]}
    profile = KubernetesProfile.model_validate({**KUBERNETES, "gpu": {"types": types}, "triton": triton})
    assert profile.triton_capabilities() == ["7.5"]
    assert KubernetesProfile.model_validate(KUBERNETES).triton_capabilities() == []


@pytest.mark.parametrize(
    ("gpu_type", "said"),
    [("a100", "gpu.types has no 'a100'; it has default"), ("default", "gpu.types.default says no compute_capability")],
)
def test_gpus_of_triton_that_nobody_describes(tmp_path: Path, gpu_type: str, said: str) -> None:
    triton = {**KUBERNETES["triton"], "gpu_types": [gpu_type]}
    assert said in errors(tmp_path, {**KUBERNETES, "triton": triton})
