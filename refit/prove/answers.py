"""The raw answers of a Triton, as `refit.prove.server` kept them."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.triton.config import NUMPY_TYPES

Outputs = Mapping[str, NDArray[Any]]


class AnswersError(ValueError):
    """Files that are not what `prove` writes; names them."""


@dataclass(frozen=True)
class Answers:
    """What one server said.

    Attributes:
        triton: its version.
        unloaded: role of a model that it could not load ("served", "onnx") -> why.
        outputs: (role, way, image) -> outputs by name, the batch of one first. They are views of the file, read where
            they are used: those of 5,000 pictures can be a gigabyte.
        errors: the same -> why there are none.
        milliseconds: of the answers to the client's way, by role: the median, as the client sees it.
    """

    triton: str
    unloaded: Mapping[str, str]
    outputs: Mapping[tuple[str, str, int], Outputs]
    errors: Mapping[tuple[str, str, int], str]
    milliseconds: Mapping[str, float]

    def of(self, role: str, way: str) -> dict[int, Outputs]:
        """Image -> outputs."""
        return {image: found for (r, w, image), found in self.outputs.items() if (r, w) == (role, way)}

    @staticmethod
    def read(folder: Path) -> Answers:
        """Read answers.json and answers.bin of a folder. Raises AnswersError."""
        try:
            index = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
            data = _mapped(folder / "answers.bin")
            outputs, errors = {}, {}
            times: dict[str, list[float]] = {}
            for row in index["answers"]:
                key = row["model"], row["way"], int(row["image"])
                if "error" in row:
                    errors[key] = str(row["error"])
                    continue
                outputs[key] = {o["name"]: _array(o, data) for o in row["outputs"]}
                times.setdefault(row["model"], []).append(float(row["milliseconds"]))
            unloaded = {role: str(model["error"]) for role, model in index["models"].items() if model["error"]}
            medians = {role: round(float(np.median(found)), 3) for role, found in times.items()}
            return Answers(str(index["triton"]), unloaded, outputs, errors, medians)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise AnswersError(f"{folder}: cannot be read as answers of Triton ({exc!r}); run prove again") from None


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        empty = path.stat().st_size == 0  # no model was loaded
        return memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _array(output: Mapping[str, Any], data: memoryview) -> NDArray[Any]:
    dtype = np.dtype(NUMPY_TYPES[output["datatype"]])
    at, size = int(output["at"]), int(output["bytes"])
    return np.frombuffer(data[at : at + size], dtype).reshape(output["shape"])
