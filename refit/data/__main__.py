"""`python -m refit.data`: make the demo's data set, check a data set, prepare one for TAO. See refit/data/cli.py."""

import sys

from refit.data.cli import main

if __name__ == "__main__":
    sys.exit(main())
