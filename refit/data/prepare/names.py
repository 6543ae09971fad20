"""Class names as TAO's files can hold them. Standard library only: specs are rendered with the same names.

A KITTI line is separated by spaces, TAO lowers the case of the name that it reads there
(nvidia_tao_tf1/cv/detectnet_v2/dataio/kitti_converter_lib.py, `_add_targets`; common/dataio/detection_data_sequence.py)
and encodes it as ASCII when it counts objects; its specs are protobuf text with the name in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from refit.specs import did_you_mean

_SEPARATORS = re.compile(r"[^A-Za-z0-9_.+-]+")
_DONT_CARE = "dontcare"


def written(classes: Sequence[str], form: str, given: Mapping[str, str]) -> dict[str, str]:
    """Class -> its name in TAO's files, in the order of `classes`. Raises ValueError that says what to write."""
    for name in given:
        if name not in classes:
            raise ValueError(f"names: there is no class {name!r}{did_you_mean(name, list(classes))}")
    rule = _kitti if form == "kitti" else _coco
    found = {c: rule(c, given.get(c, c)) for c in classes}
    first: dict[str, str] = {}
    for c, name in found.items():
        if name in first:
            raise ValueError(
                f"the classes {first[name]!r} and {c!r} would both be {name!r} in TAO's files; "
                f"give one another name, e.g. names: {{{c!r}: {name + '_2'!r}}}"
            )
        first[name] = c
    return found


def _kitti(cls: str, name: str) -> str:
    if not name.isascii():
        odd = "".join(dict.fromkeys(ch for ch in name if not ch.isascii()))
        raise ValueError(
            f"class {cls!r}: {odd!r} cannot stand in TAO's KITTI labels, which are ASCII; "
            f"give it a name, e.g. names: {{{cls!r}: {_SEPARATORS.sub('_', name).strip('_').lower() or 'thing'!r}}}"
        )
    made = _SEPARATORS.sub("_", name).strip("_").lower()
    if not made or made == _DONT_CARE:
        why = "TAO leaves DontCare out" if made else "nothing of it can stand in KITTI labels"
        raise ValueError(f"class {cls!r}: {why}; give it another name, e.g. names: {{{cls!r}: 'thing'}}")
    return made


def _coco(cls: str, name: str) -> str:
    """TAO strips the lines of a class map, and a name may hold anything else that is one line."""
    if not name.strip() or "\n" in name or "\r" in name:
        raise ValueError(f"class {cls!r}: {name!r} is no line of a class map; give it another name in names")
    return name.strip()
