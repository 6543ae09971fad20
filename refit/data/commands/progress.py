"""What a person at a terminal sees while images are read."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Progress:
    """A bar on stderr where that is a terminal; gives the callback, or None."""

    def __init__(self, quiet: bool, what: str = "Reading images") -> None:
        self.what = what
        self.quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> Callable[[int, int], None] | None:
        if self.quiet:
            return None
        from rich.console import Console
        from rich.progress import Progress as Bar

        self.bar = Bar(console=Console(stderr=True), transient=True)
        self.bar.start()
        task = self.bar.add_task(self.what, total=None)
        return lambda done, total: self.bar.update(task, completed=done, total=total)

    def __exit__(self, *exc: object) -> None:
        if not self.quiet:
            self.bar.stop()
