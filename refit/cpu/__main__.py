"""`python -m refit.cpu`."""

import sys

from refit.cpu.cli import run

if __name__ == "__main__":
    sys.exit(run())
