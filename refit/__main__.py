"""`python -m refit`: the command line, which Ctrl-C ends quietly while it is still being imported, too."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command of this process; returns its exit code."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else somebody wants it to be ignored
        # No exception: imports wrap some in others, or pass them over. There is nothing to clean up yet.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from refit import cli

    signal.signal(signal.SIGINT, before)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
