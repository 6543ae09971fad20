"""`evaluate`: score a converted model as every other model of the run was scored (`refit.cpu.evaluate`)."""

from __future__ import annotations

from pathlib import Path

from refit.cpu.evaluate import judge
from refit.cpu.specs import EvaluateParams, EvaluateSpec
from refit.cpu.status import StatusWriter
from refit.edge.models import open_edge
from refit.edge.saved_model import read_info
from refit.edge.specs import EdgeEvaluateSpec


def run(spec: EdgeEvaluateSpec, out: Path, status: StatusWriter) -> None:
    """Evaluate `spec.model`. Raises BadSpec, BadData, StageError."""
    how = spec.model_dump(include={"seed", "records", "model", *EvaluateParams.model_fields})
    with open_edge(spec.kind, Path(spec.model), read_info(spec.info)) as model:
        judge(model, EvaluateSpec.model_validate(how), out, status)
