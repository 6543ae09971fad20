"""What `make run` shows: a live picture of the run on a terminal, one line per event everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from refit.embedded.follow import Step

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "bold cyan"),
    "retrying": ("↻", "yellow"),
    "done": ("✓", "green"),
    "reused": ("=", "green"),
    "off": ("-", "dim"),
    "blocked": ("-", "dim"),
    "failed": ("✗", "bold red"),
}
WIDE = 110  # columns of a terminal that has room for whole titles and long bars
LINE_SECONDS = 10  # between two lines about the same running stage, in plain output


def figures(step: Step) -> str:
    """The figures of a step in a few words: epoch, time left, loss, mAP; or what it reached."""
    if step.state in ("done", "reused"):
        return _reached(step)
    if step.state == "retrying":
        return f"attempt {step.attempt} failed"
    if step.state != "running":
        return {"off": "not needed in this run", "blocked": "not run"}.get(step.state, "")
    words = []
    if step.unit == "epoch":
        words.append(f"epoch {step.done}/{step.total}")
    elif step.total:
        words.append(step.message)  # "Reading images: 40 of 100"
    if step.eta is not None:  # before the figures: a narrow terminal cuts the end
        words.append(f"{clock(step.eta)} left")
    if step.loss is not None:
        words.append(f"loss {step.loss:.4g}")
    if "val_mAP50" in step.metrics:
        words.append(f"mAP@0.5 {step.metrics['val_mAP50']:.3f}")
    return "  ".join(words) or step.message


def _reached(step: Step) -> str:
    row = step.result
    words = []
    if row is not None:
        if row.map50 is not None:
            words.append(f"mAP@0.5 {row.map50:.3f}")
        if row.parameters is not None:
            words.append(f"{row.parameters:,} parameters")
        if row.bytes is not None:
            words.append(f"{row.bytes:,} bytes")
    return "  ".join(words or [step.message])


def seconds(step: Step) -> str:
    """How long the stage took, "" while it is not over, when it was reused, or when nobody measured it."""
    return f"{step.result.seconds:.1f} s" if step.state == "done" and step.result and step.result.seconds else ""


def clock(value: float) -> str:
    """1:05 for 65 seconds, 1:02:03 above an hour."""
    whole = round(value)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class PlainView:
    """Lines, flushed as they come: for logs and CI. A running stage gets a line every few seconds at most."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._next: dict[str, float] = {}

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def say(self, text: str) -> None:
        """One or more lines that stay."""
        print(text, flush=True)

    def wait(self, text: str) -> None:
        """What is waited for now."""
        if self._told.get("") != text:
            self._told[""] = text
            print(text, flush=True)

    def show(self, steps: Iterable[Step]) -> None:
        """The run as it stands."""
        for step in steps:
            if step.state in ("waiting", "blocked"):
                continue
            text = f"{step.name}: {step.state}"
            detail = "  ".join(filter(None, [seconds(step), figures(step)]))
            line = f"{text}  {detail}".rstrip() if detail else text
            fresh = self._told.get(step.name, "").split("  ")[0] != text
            late = time.monotonic() >= self._next.get(step.name, 0) and step.state == "running"
            if line != self._told.get(step.name) and (fresh or late):
                self._told[step.name] = line
                self._next[step.name] = time.monotonic() + LINE_SECONDS
                print(line, flush=True)

    def leave(self) -> None:
        """The run is over; what was shown stays."""


class TerminalView:
    """A table that moves, below lines that stay."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._steps: Sequence[Step] = ()

    def __enter__(self) -> TerminalView:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        # soft_wrap: a path that is broken over two lines cannot be copied.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def wait(self, text: str) -> None:
        self._draw(Spinner("dots", Text(text)))

    def show(self, steps: Iterable[Step]) -> None:
        self._steps = list(steps)
        self._draw(picture(self._steps, self.console.width))

    def _draw(self, what: RenderableType) -> None:
        self._live.update(what)
        self._live.start()  # does nothing where it has been started

    def leave(self) -> None:
        self._live.stop()
        if self._steps:
            self.console.print(picture(self._steps, self.console.width))


def picture(steps: Sequence[Step], width: int) -> RenderableType:
    """A row per step: mark, title, bar, time, figures; on a terminal of 80 columns titles and bars are shorter."""
    bar = 20 if width >= WIDE else 8
    title = min(max((len(s.title) for s in steps), default=0), 45 if width >= WIDE else 27)
    # Every width is set: rich takes what is missing from the narrowest column, which is the mark.
    table = Table.grid(padding=(0, 1))
    for each in (1, title, bar):
        table.add_column(no_wrap=True, overflow="ellipsis", width=each)
    table.add_column(no_wrap=True, width=8, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis", width=max(1, width - (1 + title + bar + 8 + 4)))
    for step in steps:
        mark, style = MARKS[step.state]
        table.add_row(
            Text(mark, style),
            Text(step.title, style),
            _bar(step, bar),
            "reused" if step.state == "reused" else seconds(step),
            figures(step),
        )
    return table


def _bar(step: Step, width: int) -> RenderableType:
    if step.state in ("done", "reused"):
        return ProgressBar(total=1, completed=1, width=width)
    if step.state == "running":
        known = step.total > 0
        return ProgressBar(total=step.total if known else None, completed=step.done, width=width, pulse=not known)
    return Text()


View = PlainView | TerminalView


def choose() -> View:
    """The terminal's view where standard output is one that can draw."""
    console = Console()
    live = sys.stdout.isatty() and not console.is_dumb_terminal
    return TerminalView(console) if live else PlainView()
