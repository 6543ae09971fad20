"""`python -m refit.gates quality -e spec.yaml -r out`: run one gate as a stage."""

import sys

from refit.command import Action, main

ACTIONS = {
    "quality": Action(
        "refit.gates.quality:QualitySpec", "refit.gates.stage:run_quality", "mAP floor, and what pruning or INT8 cost"
    ),
    "approve": Action(
        "refit.gates.approval:ApproveSpec", "refit.gates.approval:run_approve", "must a person be asked, and what"
    ),
    "answered": Action(
        "refit.gates.answered:AnsweredSpec", "refit.gates.answered:run", "score what one Triton answered of two models"
    ),
    "parity": Action(
        "refit.gates.parity:ParitySpec", "refit.gates.stage:run_parity", "Triton's answers against the evaluations"
    ),
}

if __name__ == "__main__":
    sys.exit(main("refit.gates", ACTIONS))
