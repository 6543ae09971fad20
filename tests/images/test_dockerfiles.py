"""What every Dockerfile promises, read from its text: no cluster and no build is needed."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from refit.embedded.setup import ENVIRONMENTS
from refit.runtime.local import EnvironmentMissing, interpreter

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))
NAMES = [path.parent.name for path in DOCKERFILES]
LABELS = ("title", "description", "licenses", "version", "revision")


def _instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


@pytest.fixture(params=DOCKERFILES, ids=NAMES)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_is_one_for_each_image_of_the_contract() -> None:
    assert NAMES == ["airflow", "cpu", "release", "tensorflow", "tensorrt", "tfjs", "tools", "triton"]


class TestEach:
    def test_ends_as_a_user_that_is_not_root_by_number(self, dockerfile: Path) -> None:
        users = [rest for word, rest in _final_stage(dockerfile) if word == "USER"]
        if dockerfile.parent.name == "release":
            assert not users  # refit-triton's
        else:
            assert users[-1] == ("50000" if dockerfile.parent.name == "airflow" else "10001:10001")

    def test_has_every_label(self, dockerfile: Path) -> None:
        (labels,) = [rest for word, rest in _final_stage(dockerfile) if word == "LABEL"]
        found = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', labels))
        assert set(found) == set(LABELS)
        assert found["title"] == f"refit-{dockerfile.parent.name}"
        assert found["licenses"] == "Apache-2.0"

    def test_takes_its_base_as_an_argument(self, dockerfile: Path) -> None:
        instructions = _instructions(dockerfile)
        assert instructions[0][0] == "ARG"
        stages = {rest.rpartition(" ")[2] for word, rest in instructions if word == "FROM" and " AS " in rest}
        bases = {rest.split()[0] for word, rest in instructions if word == "FROM"}
        assert all(base.startswith("${") or base in stages for base in bases)

    def test_copies_what_is_there_and_in_the_build_context(self, dockerfile: Path) -> None:
        allowed = [line[2:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!/")]
        for word, rest in _instructions(dockerfile):
            if word != "COPY" or "--from=" in rest:
                continue
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] in {name.split("/")[0] for name in allowed}, source

    def test_installs_from_its_lock_only(self, dockerfile: Path) -> None:
        name = dockerfile.parent.name
        text = " ".join(rest for _, rest in _instructions(dockerfile))
        if name != "release":
            assert f"images/{name}/{'cluster' if name == 'airflow' else 'requirements'}.txt" in text
        # relocate.py's tool is named with its version, and stays in the build stage.
        unpinned = re.findall(r"pip install (?:--\S+ (?:/\S+ )?)*([a-z][\w-]*)(?!\S)", text)
        assert not unpinned

    def test_versions_agree(self, dockerfile: Path) -> None:
        version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
        assert f"ARG VERSION={version}" in dockerfile.read_text()


def test_the_account_is_the_charts() -> None:
    security = yaml.safe_load((ROOT / "helm" / "refit" / "values.yaml").read_text())["security"]
    account = re.search(r"refit:x:(\d+):(\d+):", (ROOT / "images" / "build" / "user.sh").read_text())
    assert (int(account[1]), int(account[2])) == (security["runAsUser"], security["runAsGroup"])


def test_the_chart_wants_the_images_of_this_version() -> None:
    chart = yaml.safe_load((ROOT / "helm" / "refit" / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()
    values = yaml.safe_load((ROOT / "helm" / "refit" / "values.yaml").read_text())
    wanted = {image["repository"] for image in [*values["images"].values(), values["triton"]["image"]]}
    airflow = yaml.safe_load((ROOT / "helm" / "airflow-values.yaml").read_text())
    named = wanted | {airflow["images"]["airflow"]["repository"]}
    optional = {"tensorrt", "tensorflow", "tfjs"}  # named by whoever builds engines, or edge bundles
    assert named == {f"refit-{name}" for name in NAMES if name not in optional}
    assert airflow["images"]["airflow"]["tag"] == chart["appVersion"]


def test_airflow_in_a_cluster_is_the_airflow_that_is_tested() -> None:
    """The image's lock has the versions of requirements.txt, except where its two further providers forbid one."""
    tested, image = (_pins(ROOT / name) for name in ("requirements.txt", "images/airflow/cluster.txt"))
    assert not set(tested) - set(image)
    assert {name for name in tested if tested[name] != image[name]} <= {"python-dateutil"}


@pytest.mark.parametrize("name", [name for name in NAMES if name in ENVIRONMENTS and name != "airflow"])
def test_pip_can_install_the_lock(name: str) -> None:
    """uv, which makes locks and environments, takes a package that is for older Pythons only; pip, in an image, not."""
    try:
        environment = interpreter(name).parents[1]
    except EnvironmentMissing as exc:
        pytest.skip(str(exc))
    (packages,) = environment.glob("lib/python*/site-packages")
    locked = {_name(pin) for pin in _pins(ROOT / "images" / name / "requirements.txt")}
    for found in distributions(path=[str(packages)]):
        pythons = SpecifierSet(found.metadata["Requires-Python"] or "")
        assert _name(found.name) not in locked or "3.11.2" in pythons, f"{found.name} {found.version}: {pythons}"


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _final_stage(path: Path) -> list[tuple[str, str]]:
    instructions = _instructions(path)
    last = max(i for i, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[last:]


def _pins(path: Path) -> dict[str, str]:
    return dict(line.split("==") for line in path.read_text().split() if "==" in line)
