"""`python -m refit.embedded`: see `refit.embedded.live`."""

import sys

from refit.embedded.live import main

if __name__ == "__main__":
    sys.exit(main())
