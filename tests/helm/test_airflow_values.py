"""helm/airflow-values.yaml fits the chart of Refit, and the official Airflow chart.

The official chart is not here: REFIT_AIRFLOW_CHART names its folder (chart/ of Airflow's sources, or an unpacked
release), and without it only the names are compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.helm import manifests
from tests.helm.charts import ROOT, Rendered, render

VALUES = yaml.safe_load((ROOT / "helm" / "airflow-values.yaml").read_text())


class TestAgreesWithRefitsChart:
    """Both charts as their comments say: releases refit and airflow in one namespace."""

    refit = staticmethod(lambda: render({}, namespace="refit"))

    def test_mounts_the_cluster_profile_where_refit_looks(self) -> None:
        (volume,) = VALUES["volumes"]
        (mount,) = VALUES["volumeMounts"]
        assert volume["configMap"]["name"] in self.refit().of("ConfigMap")
        assert mount["name"] == volume["name"]
        assert {"name": "REFIT_CLUSTERS", "value": mount["mountPath"]} in VALUES["env"]

    def test_the_triggerer_and_nobody_else_sees_the_inbox(self) -> None:
        (volume,) = VALUES["triggerer"]["extraVolumes"]
        claim = volume["persistentVolumeClaim"]
        assert claim["claimName"] in self.refit().of("PersistentVolumeClaim")
        assert claim["readOnly"]
        assert all(mount["readOnly"] for mount in VALUES["triggerer"]["extraVolumeMounts"])
        assert not [key for key in ("scheduler", "dagProcessor") if "extraVolumes" in VALUES[key]]

    def test_the_api_server_sees_of_the_workspace_what_is_published(self) -> None:
        (volume,) = VALUES["apiServer"]["extraVolumes"]
        (mount,) = VALUES["apiServer"]["extraVolumeMounts"]
        assert volume["persistentVolumeClaim"]["claimName"] in self.refit().of("PersistentVolumeClaim")
        assert (mount["name"], mount["subPath"], mount["readOnly"]) == (volume["name"], "published", True)
        assert VALUES["apiServer"]["env"] == [{"name": "REFIT_PUBLISHED", "value": mount["mountPath"]}]

    def test_the_triggerer_is_in_the_group_of_the_volumes(self) -> None:
        group = self.refit().one("Deployment", "refit-triton")["spec"]["template"]["spec"]["securityContext"][
            "runAsGroup"
        ]
        assert VALUES["triggerer"]["securityContexts"]["pod"]["supplementalGroups"] == [group]

    def test_only_refits_chart_gives_rights_on_pods(self) -> None:
        assert VALUES["allowPodLaunching"] is False
        (binding,) = self.refit().of("RoleBinding").values()
        assert {s["name"] for s in binding["subjects"]} == {"airflow-scheduler", "airflow-worker", "airflow-triggerer"}

    def test_the_image_and_the_bundle_are_those_of_images_airflow(self) -> None:
        dockerfile = (ROOT / "images" / "airflow" / "Dockerfile").read_text()
        variable = next(
            line.partition("=")[2].rstrip("\\ ").strip("'")
            for line in dockerfile.splitlines()
            if "DAG_BUNDLE_CONFIG_LIST" in line
        )
        assert json.loads(variable) == VALUES["dagProcessor"]["dagBundleConfigList"]
        assert f"slim-{VALUES['airflowVersion']}-" in dockerfile
        assert VALUES["config"]["core"]["plugins_folder"] in dockerfile

    def test_no_value_is_a_secret(self) -> None:
        words = ("password", "fernetKey", "jwtSecret", "apiSecretKey", "connection", "pass")
        assert not [path for path, _ in _leaves(VALUES) if path.rpartition(".")[2] in words]


@pytest.fixture(scope="module")
def official() -> Path:
    folder = os.environ.get("REFIT_AIRFLOW_CHART")
    if not folder:
        pytest.skip("REFIT_AIRFLOW_CHART does not name the official Airflow chart's folder")
    return Path(folder)


@pytest.fixture(scope="module")
def rendered(official: Path) -> Rendered:
    return render(VALUES, release="airflow", namespace="refit", chart=official)


class TestOfficialChart:
    def test_its_schema_takes_every_value(self, official: Path) -> None:
        schema = json.loads((official / "values.schema.json").read_text())
        faults = [
            f"{'.'.join(map(str, e.absolute_path))}: {e.message}"
            for e in jsonschema.Draft7Validator(schema).iter_errors(VALUES)
        ]
        assert not faults

    def test_it_knows_every_value(self, official: Path) -> None:
        """Its schema lets unknown names pass at the lower levels; its own values.yaml tells."""
        known = yaml.safe_load((official / "values.yaml").read_text())
        unknown = []
        for path, _ in _leaves(
            {k: v for k, v in VALUES.items() if k not in ("config", "env", "volumes", "volumeMounts")}
        ):
            at: Any = known
            for part in path.split("."):
                if not isinstance(at, dict) or not at:
                    break  # a free-form block
                if part not in at:
                    unknown.append(path)
                    break
                at = at[part]
        assert not unknown

    def test_what_comes_out_is_valid_kubernetes(self, rendered: Rendered) -> None:
        assert not manifests.schema_faults(rendered, "1.37")

    def test_pods_pass_pod_security_restricted(self, rendered: Rendered) -> None:
        faults = [
            f"{who}: {f}" for who, _, spec in manifests.pod_specs(rendered) for f in manifests.restricted_faults(spec)
        ]
        assert not faults

    def test_every_component_has_the_profile_and_the_image(self, rendered: Rendered) -> None:
        pods = {who: spec for who, _, spec in manifests.pod_specs(rendered)}
        assert {
            "Deployment/airflow-scheduler",
            "Deployment/airflow-triggerer",
            "Deployment/airflow-dag-processor",
            "Deployment/airflow-api-server",
        } <= set(pods)
        for who, spec in pods.items():
            for container in spec["containers"]:
                assert container["image"] == "refit-airflow:0.1.0", who
            if "log-groomer" not in (main := spec["containers"][0])["name"]:
                assert "/etc/refit/clusters" in [m["mountPath"] for m in main["volumeMounts"]], who
                assert "REFIT_CLUSTERS" in [v["name"] for v in main["env"]], who

    def test_tokens_only_where_pods_are_started_or_watched(self, rendered: Rendered) -> None:
        with_token = {
            name
            for name, account in rendered.of("ServiceAccount").items()
            if account.get("automountServiceAccountToken", True)
        }
        pods = [(who, spec) for who, _, spec in manifests.pod_specs(rendered)]
        used = {who for who, spec in pods if spec["serviceAccountName"] in with_token}
        assert used == {"Deployment/airflow-scheduler", "Deployment/airflow-triggerer"}

    def test_it_gives_no_rights_itself(self, rendered: Rendered) -> None:
        assert not rendered.of("Role")
        assert not rendered.of("ClusterRole")

    def test_no_secret_is_made_from_a_value(self, rendered: Rendered) -> None:
        assert not rendered.of("Secret")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
