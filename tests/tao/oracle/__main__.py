"""`python -m tests.tao.oracle`: what NVIDIA's code says to NVIDIA's own samples, a line for each network and stage."""

from __future__ import annotations

import sys
from collections import Counter

from tests.tao.oracle import Accepted, missing
from tests.tao.oracle.samples import ask, questions


def main() -> int:
    reason = missing()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    answers = ask(list(questions()))
    for question, verdict, stale in answers:
        place = f"{'deploy ' if question.deploy else ''}{question.network} {question.stage}"
        notes = [f"without the stale keys {', '.join(stale)}"] if stale else []
        notes += [] if isinstance(verdict, Accepted) else [" ".join(verdict.reason.split())]
        print(f"{place:<40} {type(verdict).__name__:<12} {'; '.join(notes)}".rstrip())
    counts = Counter(type(answer.verdict).__name__ for answer in answers)
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
