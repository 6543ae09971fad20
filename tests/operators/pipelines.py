"""Pipeline files for the tests."""

from __future__ import annotations

from pathlib import Path


def write_pipeline(file: Path, *more: str, marker: str | None = "_SUCCESS", source: str = "inbox") -> Path:
    """A small valid pipeline file with more top-level lines; returns its path."""
    arrival = f"{{marker: {marker or 'null'}, settle_seconds: 3600, poll_seconds: 0.5, timeout_hours: 1}}"
    lines = [
        f"dataset: {{source: {source}, format: kitti, classes: [a, b], arrival: {arrival}}}",
        "toolkit: cpu",
        *more,
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
