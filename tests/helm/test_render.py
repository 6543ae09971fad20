"""The chart, rendered over a matrix of values, as a cluster's administrator would read it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import helm_sdkpy
import pytest
import yaml

from refit import cluster
from refit.config import Settings
from tests.helm import apiserver, manifests
from tests.helm.charts import CHART, Rendered, render

EVERYTHING = {**apiserver.TODAY, **apiserver.KUEUE, **apiserver.PROMETHEUS}
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
KUBERNETES = ("1.37", "1.29")
"""Versions that manifests are judged for."""


def _example(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


# name -> (values, names that they say exist already)
MATRIX: dict[str, tuple[dict[str, Any], set[str]]] = {
    "defaults": ({}, set()),
    "smallest": (
        {
            "triton": {"enabled": False},
            "priorityClasses": {"create": False},
            "networkPolicies": {"enabled": False},
            "profile": {"create": False},
            "storage": {"inbox": {"enabled": False}},
            "airflow": {"serviceAccounts": []},
        },
        set(),
    ),
    "everything named, nothing made": (
        {
            "triton": {"controlKey": {"existingSecret": "control"}, "priorityClassName": "high"},
            "storage": {k: {"existingClaim": f"my-{k}"} for k in ("workspace", "models", "inbox")},
            "stages": {"serviceAccount": {"create": False, "name": "runner"}, "priorityClassName": "low"},
            "priorityClasses": {"create": False},
            "tensorboard": {"enabled": True},
            "prePull": {"enabled": True},
        },
        {"control", "high", "my-workspace", "my-models", "my-inbox", "runner", "low"},
    ),
    "gpu with plugins": (
        {
            "triton": {
                "device": "gpu",
                "image": {"repository": "nvidia/tritonserver", "tag": "25.08-py3"},
                "gpu": {"count": 2},
                "plugins": {"libraries": ["/plugins/a.so", "/plugins/b.so"], "existingClaim": "plugins"},
                "runtimeClassName": "nvidia",
            }
        },
        {"plugins"},
    ),
    "all that can be on": (
        {
            "triton": {
                "autoscaling": {"enabled": True},
                "serviceMonitor": {"enabled": True},
                "autoCompleteConfig": True,
                "logVerbose": 1,
                "extraArgs": ["--rate-limit=execution_count"],
                "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "2"}],
                "extraVolumes": [{"name": "more", "emptyDir": {"sizeLimit": "1Gi"}}],
                "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
                "affinity": {"nodeAffinity": {}},
                "topologySpreadConstraints": [
                    {
                        "maxSkew": 1,
                        "topologyKey": "topology.kubernetes.io/zone",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "triton"}},
                    }
                ],
                "podLabels": {"team": "vision"},
                "podAnnotations": {"note": "x"},
                "service": {"type": "LoadBalancer", "annotations": {"internal": "true"}},
                "readiness": {"model": "demo"},
            },
            "storage": {"models": {"subPath": "a/b", "storageClassName": "", "annotations": {"backup": "yes"}}},
            "quota": {"enabled": True},
            "kueue": {"enabled": True, "clusterQueue": "gpus"},
            "tensorboard": {"enabled": True, "pipelines": ["demo", "bccd"]},
            "prePull": {"enabled": True, "images": ["other:1"]},
            "airflow": {"createServiceAccount": True, "namespace": "airflow"},
            "networkPolicies": {
                "clients": [{"namespaceSelector": {}}],
                "metricsClients": [{"podSelector": {}}],
                "tensorboardClients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                "stageEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
                "releaseEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
                "tritonEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            },
            "commonLabels": {"owner": "ml"},
            "imageRegistry": "registry.example.com/team/",
            "imagePullSecrets": ["pull"],
        },
        set(),
    ),
    "long names": ({"fullnameOverride": "a-very-long-name-that-somebody-took-from-a-ticket"}, set()),
    **{
        path.stem: (_example(path), {"triton-control", "labelled-images"})
        for path in EXAMPLES
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MATRIX, ids=[name.replace(" ", "-") for name in MATRIX])
def case(request: pytest.FixtureRequest) -> tuple[Rendered, frozenset[str]]:
    values, existing = MATRIX[request.param]
    return render(values, kinds=EVERYTHING), frozenset(existing)


class TestEveryCombination:
    @pytest.mark.parametrize("version", KUBERNETES)
    def test_is_valid_for_kubernetes(self, case: tuple[Rendered, frozenset[str]], version: str) -> None:
        assert not manifests.schema_faults(case[0], version)

    def test_pods_pass_pod_security_restricted(self, case: tuple[Rendered, frozenset[str]]) -> None:
        faults = [
            f"{who}: {f}" for who, _, spec in manifests.pod_specs(case[0]) for f in manifests.restricted_faults(spec)
        ]
        assert not faults

    def test_pods_keep_the_house_rules(self, case: tuple[Rendered, frozenset[str]]) -> None:
        faults = [f"{who}: {f}" for who, _, spec in manifests.pod_specs(case[0]) for f in manifests.house_faults(spec)]
        assert not faults

    def test_names_and_labels_are_good(self, case: tuple[Rendered, frozenset[str]]) -> None:
        assert not manifests.name_faults(case[0])

    def test_what_is_named_exists(self, case: tuple[Rendered, frozenset[str]]) -> None:
        rendered, existing = case
        assert not manifests.reference_faults(rendered, existing=existing)

    def test_no_rights_but_the_one_role(self, case: tuple[Rendered, frozenset[str]]) -> None:
        rendered, _ = case
        assert not rendered.of("ClusterRole")
        assert not rendered.of("ClusterRoleBinding")
        for role in rendered.of("Role").values():
            assert role["rules"] == [
                {
                    "apiGroups": [""],
                    "resources": ["pods"],
                    "verbs": ["create", "get", "list", "watch", "patch", "delete"],
                },
                {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "list", "watch"]},
            ]


class TestLint:
    def test_helm_lint_has_nothing_to_say(self) -> None:
        with apiserver.serve(apiserver.TODAY, "1.37.0") as kubeconfig:
            config = helm_sdkpy.Configuration(kubeconfig=kubeconfig)
            result = asyncio.run(helm_sdkpy.Lint(config).run(str(CHART)))
        assert not result["Errors"]
        # Severity 1 is information: that the chart has no icon.
        assert [m for m in result["Messages"] if m["Severity"] > 1] == []


class TestTriton:
    def test_control_is_explicit_and_needs_the_key(self) -> None:
        args = _triton(render({}))["args"]
        for flag in (
            "--model-control-mode=explicit",
            "--load-model=*",
            "--exit-on-error=false",
            "--strict-readiness=false",
        ):
            assert flag in args
        apis = "model-repository,model-config,trace,logging,shared-memory"
        for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
            assert f"{flag}={apis}:refit-control-key=$(TRITON_CONTROL_KEY)" in args

    def test_gpu_limits_and_plugins(self) -> None:
        container = _triton(render(MATRIX["gpu with plugins"][0]))
        assert container["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 2}
        assert {"name": "LD_PRELOAD", "value": "/plugins/a.so:/plugins/b.so"} in container["env"]
        assert {"name": "plugins", "mountPath": "/plugins", "readOnly": True} in container["volumeMounts"]
        assert "--allow-gpu-metrics=false" not in container["args"]

    def test_servers_read_a_folder_inside_the_volume(self) -> None:
        """A release stages beside the repository and renames: the volume's own top has no beside."""
        rendered = render({})
        spec = rendered.one("Deployment", "refit-triton")["spec"]["template"]["spec"]
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "models"]
        assert mount == {"name": "models", "mountPath": "/models", "readOnly": True}
        repository = _profile(rendered)["triton"]["repository"]
        assert f"--model-repository={repository}" in spec["containers"][0]["args"]
        assert repository.startswith(_profile(rendered)["volumes"]["models"]["mount_path"] + "/")
        assert f"mkdir -p {repository}" in spec["initContainers"][0]["command"][-1]

    def test_a_stop_lets_requests_end(self) -> None:
        spec = render({"triton": {"shutdown": {"preStopSeconds": 7, "exitSeconds": 40}}}).one(
            "Deployment", "refit-triton"
        )["spec"]["template"]["spec"]
        container = spec["containers"][0]
        assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
        assert "--exit-timeout-secs=40" in container["args"]
        assert spec["terminationGracePeriodSeconds"] > 47

    def test_a_start_may_take_as_long_as_said(self) -> None:
        deployment = render({"triton": {"startupSeconds": 1200}}).one("Deployment", "refit-triton")
        probe = deployment["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == 1200
        assert deployment["spec"]["progressDeadlineSeconds"] > 1200

    def test_a_model_can_decide_readiness(self) -> None:
        container = _triton(render({"triton": {"readiness": {"model": "demo"}}}))
        assert container["readinessProbe"]["httpGet"]["path"] == "/v2/models/demo/ready"
        assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"

    def test_replicas_are_the_autoscalers_where_there_is_one(self) -> None:
        rendered = render({"triton": {"autoscaling": {"enabled": True}}})
        assert "replicas" not in rendered.one("Deployment", "refit-triton")["spec"]
        assert rendered.one("HorizontalPodAutoscaler", "refit-triton")["spec"]["minReplicas"] == 2

    def test_the_headless_service_names_servers_that_are_not_ready_too(self) -> None:
        service = render({}).one("Service", "refit-triton-each")["spec"]
        assert service["clusterIP"] == "None"
        assert service["publishNotReadyAddresses"] is True

    def test_a_new_chart_version_alone_restarts_no_server(self) -> None:
        labels = render({}).one("Deployment", "refit-triton")["spec"]["template"]["metadata"]["labels"]
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


class TestControlKey:
    PATH = "/api/v1/namespaces/vision/secrets/refit-triton-control"

    def test_is_random_and_fits_tritons_argument(self) -> None:
        import base64

        keys = {render({}).one("Secret", "refit-triton-control")["data"]["control-key"] for _ in range(2)}
        assert len(keys) == 2
        assert all(len(base64.b64decode(k)) == 48 and base64.b64decode(k).isalnum() for k in keys)

    def test_is_kept_by_an_upgrade(self) -> None:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "refit-triton-control", "namespace": "vision"},
            "data": {"control-key": "S0VZ"},
        }
        # Helm asks by name for what it would overwrite, too: the object belongs to this release.
        secret["metadata"] |= {
            "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": "refit", "meta.helm.sh/release-namespace": "vision"},
        }
        rendered = render({}, objects={self.PATH: secret})
        assert rendered.one("Secret", "refit-triton-control")["data"] == {"control-key": "S0VZ"}

    def test_an_existing_secret_is_used_and_none_is_made(self) -> None:
        rendered = render({"triton": {"controlKey": {"existingSecret": "mine", "key": "k"}}})
        assert not rendered.of("Secret")
        variable = next(v for v in _triton(rendered)["env"] if v["name"] == "TRITON_CONTROL_KEY")
        assert variable["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "k"}
        assert _profile(rendered)["secrets"]["TRITON_CONTROL_KEY"] == {"name": "mine", "key": "k"}


class TestImages:
    def test_a_digest_wins_over_a_tag(self) -> None:
        digest = "sha256:" + "a" * 64
        container = _triton(render({"triton": {"image": {"tag": "9", "digest": digest}}}))
        assert container["image"] == f"refit-triton@{digest}"

    def test_the_registry_stands_before_every_image(self) -> None:
        rendered = render(MATRIX["all that can be on"][0], kinds=EVERYTHING)
        ours = [
            c["image"]
            for _, _, spec in manifests.pod_specs(rendered)
            for c in manifests.containers(spec)
            if c["image"] != "other:1"
        ]
        assert ours
        assert all(image.startswith("registry.example.com/team/refit-") for image in ours)
        assert all(
            i["image"].startswith("registry.example.com/team/refit-") for i in _profile(rendered)["images"].values()
        )

    def test_every_pod_has_the_pull_secrets(self) -> None:
        rendered = render(MATRIX["all that can be on"][0], kinds=EVERYTHING)
        assert all(spec["imagePullSecrets"] == [{"name": "pull"}] for _, _, spec in manifests.pod_specs(rendered))
        assert _profile(rendered)["image_pull_secrets"] == ["pull"]


class TestNetworkPolicies:
    def test_triton_lets_in_its_clients_and_reaches_nothing(self) -> None:
        spec = render({}).one("NetworkPolicy", "refit-triton")["spec"]
        assert spec["egress"] == []
        (rule,) = spec["ingress"]
        assert rule["from"] == [{"podSelector": {"matchLabels": {"refit/triton-client": "true"}}}]
        assert [p["port"] for p in rule["ports"]] == ["http", "grpc"]

    def test_stage_pods_reach_names_only_and_releases_triton(self) -> None:
        rendered = render({})
        labels = _profile(rendered)["labels"]
        stages = rendered.one("NetworkPolicy", "refit-stages")["spec"]
        assert stages["podSelector"]["matchLabels"].items() <= labels.items()
        assert stages["ingress"] == []
        assert [{p["port"] for p in rule["ports"]} for rule in stages["egress"]] == [{53}]
        releases = rendered.one("NetworkPolicy", "refit-releases")["spec"]
        wanted = releases["podSelector"]["matchLabels"]
        assert wanted == stages["podSelector"]["matchLabels"] | _profile(rendered)["triton"]["client_labels"]
        assert [p["port"] for p in releases["egress"][0]["ports"]] == ["http", "grpc"]

    @pytest.mark.parametrize("own", [True, False])
    def test_pods_that_release_reach_the_store_of_a_bucket(self, own: bool) -> None:
        """With the chart's Triton or one elsewhere; no other stage pod does."""
        store = {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
        bucket = {"overrides": {"triton": {"repository": "s3://models/production"}}}
        values = {"networkPolicies": {"releaseEgress": [store]}, "profile": bucket, "triton": {"enabled": own}}
        rendered = render(values)
        releases = rendered.one("NetworkPolicy", "refit-releases")["spec"]
        assert releases["podSelector"]["matchLabels"].items() >= _profile(rendered)["triton"]["client_labels"].items()
        assert releases["egress"][int(own) :] == [store]
        assert store not in rendered.one("NetworkPolicy", "refit-stages")["spec"]["egress"]

    def test_the_test_pod_is_a_client(self) -> None:
        assert render({}).one("Pod", "refit-test-serving")["metadata"]["labels"]["refit/triton-client"] == "true"


class TestQueueing:
    def test_the_quota_counts_stage_pods_only(self) -> None:
        rendered = render({"quota": {"enabled": True, "hard": {"requests.nvidia.com/gpu": 4}}})
        (expression,) = rendered.one("ResourceQuota", "refit-stages")["spec"]["scopeSelector"]["matchExpressions"]
        assert expression["values"] == [_profile(rendered)["priority_class"]]

    def test_serving_comes_before_stages(self) -> None:
        classes = render({}).of("PriorityClass")
        assert classes["vision-refit-serving"]["value"] > classes["vision-refit-stages"]["value"]
        assert classes["vision-refit-stages"]["preemptionPolicy"] == "Never"

    @pytest.mark.parametrize(
        ("kinds", "version"), [(apiserver.KUEUE, "v1beta1"), ({**apiserver.KUEUE, **apiserver.KUEUE_NEW}, "v1beta2")]
    )
    def test_kueue(self, kinds: apiserver.Kinds, version: str) -> None:
        values = {"kueue": {"enabled": True, "clusterQueue": "gpus", "queueName": "training"}}
        rendered = render(values, kinds={**apiserver.TODAY, **kinds})
        queue = rendered.one("LocalQueue", "training")
        assert queue["apiVersion"] == f"kueue.x-k8s.io/{version}"
        assert queue["spec"] == {"clusterQueue": "gpus"}
        assert _profile(rendered)["queue"] == "training"


class TestProfile:
    def test_names_what_the_chart_made(self) -> None:
        rendered = render({"stages": {"secrets": {"TAO_KEY": {"name": "tao", "key": "api"}}}})
        profile = _profile(rendered)
        assert profile["namespace"] == "vision"
        assert profile["service_account"] in rendered.of("ServiceAccount")
        assert profile["priority_class"] in rendered.of("PriorityClass")
        assert {v["claim"] for v in profile["volumes"].values()} == set(rendered.of("PersistentVolumeClaim"))
        assert profile["secrets"]["TAO_KEY"] == {"name": "tao", "key": "api"}
        assert profile["secrets"]["TRITON_CONTROL_KEY"]["name"] in rendered.of("Secret")
        service = rendered.one("Service", "refit-triton")
        assert profile["triton"]["url"] == f"http://{service['metadata']['name']}.vision.svc:8000"
        assert profile["triton"]["selector"] == service["spec"]["selector"]
        user = rendered.one("Deployment", "refit-triton")["spec"]["template"]["spec"]["securityContext"]
        assert (profile["security"]["user"], profile["security"]["group"]) == (user["runAsUser"], user["runAsGroup"])
        assert profile["security"]["umask"] == "0002"

    def test_overrides_win(self) -> None:
        rendered = render(
            {"profile": {"name": "gpus", "overrides": {"triton": {"url": "http://10.0.0.1:80"}, "extra": 1}}}
        )
        profile = _profile(rendered, "gpus")
        assert profile["triton"]["url"] == "http://10.0.0.1:80"
        assert profile["triton"]["repository"] == "/models/repository"
        assert profile["extra"] == 1

    def test_says_who_has_a_runner_and_how_many_gpus_there_are(self) -> None:
        profile = _profile(render({"stages": {"gpu": {"total": 8}}}))
        assert {n: i.get("runner") for n, i in profile["images"].items()} == {
            "tools": "/refit/runner.py",
            "cpu": None,
            "release": "/refit/runner.py",
            "triton": None,
        }
        assert profile["gpu"]["total"] == 8

    def test_holds_no_secret(self) -> None:
        rendered = render({})
        key = rendered.one("Secret", "refit-triton-control")["data"]["control-key"]
        assert key not in str(rendered.of("ConfigMap"))

    def test_refit_reads_it(self, tmp_path: Path) -> None:
        (tmp_path / "kubernetes.yaml").write_text(yaml.safe_dump(_profile(render({}))))
        settings = Settings.from_env({"REFIT_CLUSTERS": str(tmp_path)})
        assert cluster.load("kubernetes", settings).namespace == "vision"

    def test_taos_images_come_from_the_mirror(self, tmp_path: Path) -> None:
        values = {
            "tao": {"repository": "a/tao", "pullPolicy": "Never"},
            "imageRegistry": "registry.example.com/x",
        }
        (tmp_path / "kubernetes.yaml").write_text(yaml.safe_dump(_profile(render(values))))
        profile = cluster.load("kubernetes", Settings.from_env({"REFIT_CLUSTERS": str(tmp_path)}))
        assert isinstance(profile, cluster.KubernetesProfile)
        image = profile.image("tao_tf1", "train", "5.0.0-tf1.15.5")
        assert (image.image, image.pull_policy) == ("registry.example.com/x/a/tao:5.0.0-tf1.15.5", "Never")
        assert image.root

    def test_what_is_pulled_before_is_what_stages_run(self) -> None:
        values = _example(CHART / "examples" / "gpu-cluster.yaml")
        repository = _profile(render(values, kinds=EVERYTHING))["tao"]["repository"]
        assert [i.rpartition(":")[0] for i in values["prePull"]["images"]] == [repository]

    @pytest.mark.parametrize("name", ["kubernetes", "workstation"])
    def test_refits_own_profiles_are_what_the_chart_writes(self, name: str, tmp_path: Path) -> None:
        values = _example(CHART / "examples" / "workstation.yaml") if name == "workstation" else {}
        written = _profile(render(values, namespace="refit"))
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(written))
        theirs = cluster.load(name, Settings.from_env({"REFIT_CLUSTERS": str(tmp_path)}))
        ours = cluster.load(name, Settings.from_env({}))
        assert ours.model_copy(update={"description": theirs.description}) == theirs


class TestOldCluster:
    """Kubernetes 1.20, as the test cluster: the API versions that it has."""

    VALUES: ClassVar[dict[str, Any]] = {"triton": {"autoscaling": {"enabled": True}}}

    def test_api_versions_follow_the_cluster(self) -> None:
        old = render(self.VALUES, kinds=apiserver.OF_1_20, version="1.20.2")
        new = render(self.VALUES)
        for kind, before, today in (
            ("PodDisruptionBudget", "policy/v1beta1", "policy/v1"),
            ("HorizontalPodAutoscaler", "autoscaling/v2beta2", "autoscaling/v2"),
        ):
            assert old.one(kind, "refit-triton")["apiVersion"] == before
            assert new.one(kind, "refit-triton")["apiVersion"] == today


class TestNotes:
    def test_say_what_comes_next(self) -> None:
        notes = render({"tensorboard": {"enabled": True}}).notes
        for words in (
            "helm test refit -n vision",
            "refit doctor",
            "port-forward svc/refit-triton",
            "cluster: kubernetes",
        ):
            assert words in notes

    def test_warn_of_open_doors(self) -> None:
        assert "WARNING: networkPolicies" in render({"networkPolicies": {"enabled": False}}).notes
        values = {"triton": {"replicas": 2}, "storage": {"models": {"accessModes": ["ReadWriteOnce"]}}}
        assert "WARNING: storage.models" in render(values).notes
        assert "WARNING" not in render({}).notes


def _triton(rendered: Rendered) -> dict[str, Any]:
    return rendered.one("Deployment", "refit-triton")["spec"]["template"]["spec"]["containers"][0]


def _profile(rendered: Rendered, name: str = "kubernetes") -> dict[str, Any]:
    (config,) = rendered.of("ConfigMap").values()
    return yaml.safe_load(config["data"][f"{name}.yaml"])
