"""`python -m refit.engine <action> -e spec.yaml -r out`: TensorRT engines as stages."""

import sys

from refit.command import Action, main

ACTIONS = {
    "build": Action(
        "refit.engine.specs:BuildSpec", "refit.engine.build:run", "build a TensorRT engine on this machine's GPU"
    ),
    "describe": Action(
        "refit.engine.specs:DescribeSpec", "refit.engine.describe:run", "engine.json for an engine that TAO built"
    ),
    "package": Action(
        "refit.engine.specs:PackageSpec",
        "refit.engine.package:run",
        "the files of a release, and the DeepStream bundle",
    ),
}

if __name__ == "__main__":
    sys.exit(main("refit.engine", ACTIONS))
