"""`python -m refit.prove prepare -e spec.yaml -r out`."""

import sys

from refit.command import Action, main

ACTIONS = {
    "prepare": Action(
        "refit.prove.specs:PrepareSpec", "refit.prove.prepare:run", "model repository and pictures for a proof"
    ),
}

if __name__ == "__main__":
    sys.exit(main("refit.prove", ACTIONS))
