"""Which images calibrate INT8: of the train split only, an equal number of each class as far as there are."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from hashlib import sha256


def choose(images: Mapping[str, Sequence[str]], count: int, seed: int) -> list[str]:
    """`count` names of `images` (name -> classes of its objects), sorted; the same ones on every machine.

    Each turn the class that has the fewest images so far, of those the rarest, gets one more; images without objects
    come last. Raises ValueError where there are too few.
    """
    if count > len(images):
        raise ValueError(f"{count} of {len(images)} images")
    order = sorted(images, key=lambda name: sha256(f"{seed}:{name}".encode()).digest())
    waiting: dict[str, deque[str]] = {}
    for name in order:
        for cls in set(images[name]):
            waiting.setdefault(cls, deque()).append(name)
    total = {cls: len(queue) for cls, queue in waiting.items()}
    taken: dict[str, None] = {}
    have: Counter[str] = Counter()
    while len(taken) < count and waiting:
        cls = min(waiting, key=lambda c: (have[c], total[c], c))
        queue = waiting[cls]
        while queue and queue[0] in taken:
            queue.popleft()
        if not queue:
            del waiting[cls]
            continue
        taken[queue[0]] = None
        have.update(set(images[queue.popleft()]))
    rest = (name for name in order if name not in taken)
    return sorted([*taken, *(name for name, _ in zip(rest, range(count - len(taken)), strict=False))])


def digest(rows: Sequence[tuple[str, str]]) -> str:
    """One sha256 over (name, sha256) rows, as of a folder output (docs/contracts.md, "result.json")."""
    lines = sorted((name.encode(), f"{hash_}  {name}\n".encode()) for name, hash_ in rows)
    return sha256(b"".join(line for _, line in lines)).hexdigest()
