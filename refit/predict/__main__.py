"""`python -m refit.predict inference -e spec.yaml -r out`: images through Triton (docs/predict.md)."""

import sys

from refit.command import Action, main

ACTIONS = {
    "inference": Action(
        "refit.predict.specs:TritonInferenceSpec",
        "refit.predict.stage:run",
        "detect objects in a folder or bucket of images, through Triton; goes on where it was killed",
    )
}

if __name__ == "__main__":
    sys.exit(main("refit.predict", ACTIONS))
