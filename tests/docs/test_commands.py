"""Every command of the README and of docs/ is run as it stands, in a folder of its own with data where the page says
that data lie; one that cannot run here is named with the test that does.

A block that begins with ```sh is run, line by line; a YAML block whose first line is `# specs/pipelines/NAME.yaml` is
written there first. Exit code 0 is meant.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data.helpers import SETTINGS, kitti_line, kitti_set  # isort: skip

from refit.data.ingest import ingest
from refit.triton.ledger import Ledger, Record

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(REPOSITORY.glob("docs/**/*.md"), key=str)
PAGES = [REPOSITORY / "README.md", REPOSITORY / "helm/refit/README.md", *PAGES]

# A command that begins so -> where it is run for real: a test, a script, or the file that says so of another kind.
ELSEWHERE = {
    r"git clone .*": ".ci/run",
    r"make (run|test|docs|chaos|e2e)\b.*": ".ci/run",
    r"kubectl .*|helm .*|curl .*localhost:8000.*|EOF|mkdir -p clusters": "tests/helm/test_cluster.py",
    r"REFIT_CLUSTERS=clusters bin/refit doctor .*|bin/refit doctor .*(--cluster|--pipeline).*": (
        "tests/refit/test_doctor_cluster.py"
    ),
    r"bin/refit run .*": "tests/refit/test_cli_run.py",
    r"bin/refit (rollback|reconcile|verify) .*": "tests/triton/test_reconcile.py",
    r"bin/refit predict .*": "tests/predict/test_triton.py",
    r"bin/refit (reconcile|verify) .*": "tests/triton/test_reconcile.py",
    r"bin/refit reproduce .*": "tests/refit/test_reproduce.py",
    r"bin/refit import .*": "tests/migrate",
    r"sh bin/setup .*": "tests/embedded/test_setup.py",
}
# The pipeline that several pages speak of.
PLATES = """
dataset: {source: /data/plates, classes: [plate]}
toolkit: cpu
stages: {augment: {copies: 1, presets: [drip]}}
"""
OF_ANOTHER_TEST = {"coming-from.md": "tests/migrate/test_docs.py"}


@dataclass(frozen=True)
class Block:
    kind: str  # sh, yaml
    line: int
    text: str

    def commands(self) -> Iterator[str]:
        """Its lines, without comments, those that go on joined; what a here-document holds is no command."""
        text = re.sub(r"<<'EOF'\n.*?\nEOF$", "", self.text, flags=re.DOTALL | re.MULTILINE)
        for line in text.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#\s.*$", "", line).strip()
            if command and not command.startswith("#"):
                yield command


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(sh|yaml)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield Block(found[1], text.count("\n", 0, found.start()) + 2, found[2])


def elsewhere(command: str) -> str | None:
    return next((test for begins, test in ELSEWHERE.items() if re.fullmatch(begins, command)), None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for /data and <workspace>: plates as KITTI with lists, a snapshot of them, what a model found."""
    root = tmp_path_factory.mktemp("docs")
    plates = kitti_set(root / "data" / "plates", lines=[kitti_line("plate"), kitti_line("plate", 30, 20, 50, 40)])
    (plates / "lists").mkdir()
    for part, numbers in (("train", range(9)), ("val", range(9, 12))):
        (plates / "lists" / f"{part}.txt").write_text("".join(f"{i:03}.jpg\n" for i in numbers))
    settings = SETTINGS.model_copy(update={"classes": ["plate"]})
    taken = ingest(plates, settings, root / "workspace" / "plates")
    (root / "fingerprint").write_text(taken.fingerprint)
    judged = root / "workspace" / "plates" / "runs" / "one" / "07-evaluate_retrained" / "out"
    judged.mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i:03}.jpg"} for i in range(12)]
    (judged / "ground_truth.json").write_text(
        json.dumps({"images": images, "categories": [{"id": 1, "name": "plate"}], "annotations": []})
    )
    (judged / "detections.json").write_text(
        json.dumps([{"image_id": 3, "category_id": 1, "bbox": [5, 6, 20, 24], "score": 0.9}])
    )
    about = {"url": "http://127.0.0.1:8000", "repository": "models", "config": "", "metrics": {"mAP50": 0.9}}
    record = Record(
        model="plates",
        version=1,
        state="serving",
        sha256="0" * 64,
        bytes=1,
        pipeline="plates",
        run="one",
        key="k",
        **about,
    )
    Ledger(root / "workspace" / "plates" / "releases").write(record)
    kitti_set(root / "data" / "cars", 120, lines=[kitti_line("car"), kitti_line("person", 30, 20, 50, 40)])
    return root


class Sandbox:
    """A folder like a clone, with `bin/refit`, the pipeline files, and data; commands are run in it by the shell."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        (folder / "bin").mkdir()
        (folder / "bin" / "refit").symlink_to(REPOSITORY / "bin" / "refit")
        shutil.copytree(REPOSITORY / "specs", folder / "specs")
        shutil.copytree(data / "data" / "plates" / "lists", folder / "lists")
        (folder / "specs" / "pipelines" / "plates.yaml").write_text(self.placed(PLATES))
        self.env = {
            **os.environ,
            "REFIT_HOME": str(folder / "home"),
            "REFIT_ENVS": os.environ.get("REFIT_ENVS") or str(REPOSITORY / ".refit" / "envs"),
            "REFIT_WORKSPACE": str(data / "workspace"),
            "REFIT_PIPELINES": str(folder / "specs" / "pipelines"),
        }

    def placed(self, text: str) -> str:
        """The text with what the pages leave open filled in."""
        snapshot = f"<workspace>/plates/datasets/{(self.data / 'fingerprint').read_text()}"
        text = re.sub(r"<workspace>/(plates|<pipeline>)/datasets/<fingerprint>", snapshot, text)
        text = text.replace("<pipeline>/runs/<run>", "plates/runs/one").replace("--data DIR", "--data /data/cars")
        text = text.replace("<workspace>", str(self.data / "workspace"))
        return re.sub(r"(?<![\w.])/data/", f"{self.data}/data/", text)

    def write(self, text: str) -> None:
        named = re.match(r"# (specs/pipelines/[\w-]+\.yaml)\n", text)
        if named:
            (self.folder / named[1]).write_text(self.placed(text))

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        argv = ["sh", "-c", self.placed(command)]
        return subprocess.run(argv, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_the_commands_of_a_page_run(page: Path, data: Path, tmp_path: Path) -> None:
    if page.name in OF_ANOTHER_TEST:
        assert (REPOSITORY / OF_ANOTHER_TEST[page.name]).exists()
        return
    sandbox = Sandbox(tmp_path, data)
    for block in blocks(page):
        if block.kind == "yaml":
            sandbox.write(block.text)
            continue
        for command in block.commands():
            at = f"{page.relative_to(REPOSITORY)}:{block.line}: {command}"
            other = elsewhere(command)
            if other is not None:
                assert (REPOSITORY / other).exists(), f"{at}: {other} is gone"
                continue
            done = sandbox.run(command)
            assert done.returncode == 0, f"{at}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_nothing_is_listed_that_no_page_has() -> None:
    commands = [c for page in PAGES for block in blocks(page) if block.kind == "sh" for c in block.commands()]
    unused = [begins for begins in ELSEWHERE if not any(re.fullmatch(begins, c) for c in commands)]
    assert unused == []


def test_a_block_of_commands_says_that_it_is_one() -> None:
    """Else it would never be run."""
    missed = []
    for page in PAGES:
        for found in re.finditer(
            r"^```\n((?:bin/refit|make|kubectl|helm) [^\n\[|]*)\n", page.read_text(), re.MULTILINE
        ):
            missed.append(f"{page.relative_to(REPOSITORY)}: {found[1]}")
    assert missed == []
