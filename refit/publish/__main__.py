"""`python -m refit.publish publish -e publish.yaml -r out`."""

import sys

from refit.command import Action, main

ACTIONS = {
    "publish": Action("refit.publish.stage:PublishSpec", "refit.publish.stage:publish", "reports and index for people")
}

if __name__ == "__main__":
    sys.exit(main("refit.publish", ACTIONS))
