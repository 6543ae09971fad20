"""`python -m refit.ngc download -e spec.yaml -r out`: bring pretrained weights, as a stage."""

import sys

from refit.command import Action, main

ACTIONS = {
    "download": Action(
        "refit.ngc.spec:DownloadSpec",
        "refit.ngc.stage:run",
        "pretrained weights from NGC, the cache, or a path that a person filled",
    ),
}

if __name__ == "__main__":
    sys.exit(main("refit.ngc", ACTIONS))
