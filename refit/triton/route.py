"""Which of two models a client asks while a challenger is tried: its share, by a hash of what the request is about.

Standard library only, so that a client can copy it. The same key goes to the same model each time, so that the pictures
of one camera are not answered by both in turns; another salt draws anew.
"""

from __future__ import annotations

import hashlib


def challenger_of(model: str) -> str:
    """The name under which a model's challenger is loaded beside it."""
    return f"{model}__challenger"


def model_for(model: str, key: str, share: float, salt: str = "") -> str:
    """The name to ask for: the challenger's for about ``share`` (0 to 1) of all keys.

    A client falls back to ``model`` where the challenger is not there (Triton answers 404): it comes and goes.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{salt}\n{key}".encode()).digest()[:8], "big") / 2**64
    return challenger_of(model) if drawn < share else model
