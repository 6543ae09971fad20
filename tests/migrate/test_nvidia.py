"""NVIDIA's own training samples: import knows each by its content.

REFIT_NVIDIA_SOURCES: see tests/tao/test_schema_nvidia.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.migrate.conftest import Called

VARIABLE = "REFIT_NVIDIA_SOURCES"
FOLDERS = {
    "detectnet_v2": "tao_tensorflow1_backend/nvidia_tao_tf1/cv/detectnet_v2/experiment_specs/default_spec*.txt",
    "faster_rcnn": "tao_tensorflow1_backend/nvidia_tao_tf1/cv/faster_rcnn/experiment_spec/*.txt",
    "efficientdet_tf2": "tao_tensorflow2_backend/nvidia_tao_tf2/cv/efficientdet/experiment_specs/train*.yaml",
    "rtdetr": "tao_pytorch_backend/nvidia_tao_pytorch/cv/rtdetr/experiment_specs/train*.yaml",
    "dino": "tao_pytorch_backend/nvidia_tao_pytorch/cv/dino/experiment_specs/train*.yaml",
    "deformable_detr": "tao_pytorch_backend/nvidia_tao_pytorch/cv/deformable_detr/experiment_specs/train*.yaml",
}


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no checkouts of NVIDIA's sources")
@pytest.mark.parametrize("network", FOLDERS)
def test_every_sample_is_known(network: str, refit: Callable[..., Called], tmp_path: Path) -> None:
    samples = sorted(Path(os.environ[VARIABLE]).glob(FOLDERS[network]))
    assert samples
    for i, sample in enumerate(samples):
        told = refit("import", sample, "--into", f"{i}", "--name", "x", "--classes", "car,person")
        assert told.code == 0, told.text
        made = yaml.safe_load((tmp_path / f"{i}" / "x.yaml").read_text())
        assert made["network"]["name"] == network, sample
        assert "unknown key" not in told.out or "dump_ir" in told.out, (
            f"{sample}: {told.out}"
        )  # NVIDIA's own misspelling
