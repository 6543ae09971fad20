"""What the toolkit `tao` plans for Refit's own stages is what these stages take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

from refit import cluster, pipeline, toolkits
from refit.config import Settings
from refit.data.prepare.spec import PrepareSpec
from refit.ngc.spec import DownloadSpec

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "specs" / "examples").glob("*.yaml"))


def specs(example: Path) -> dict[str, Any]:
    """Stage -> its spec, of the stages that are Refit's own."""
    made = pipeline.load(example)
    profile = cluster.of_pipeline(made, Settings.from_env())
    stages = toolkits.get(made.toolkit).stages(made, profile)
    return {s.name: next(iter(s.files.values())) for s in stages if s.name in ("prepare", "pretrained")}


def test_there_are_examples_with_both() -> None:
    assert {name for example in EXAMPLES for name in specs(example)} == {"prepare", "pretrained"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_specs_of_an_example_are_taken(example: Path) -> None:
    for name, spec in specs(example).items():
        model = PrepareSpec if name == "prepare" else DownloadSpec
        assert model.model_validate(spec)
