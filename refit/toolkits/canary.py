"""The stage that tries a challenger before its release: made of the release itself, so that every toolkit has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from refit.pipeline import Pipeline, WatchLines
from refit.toolkits.base import Output, Stage, command

CANARY = "canary"
_OF_THE_RELEASE = ("keep_versions", "watched", "signing")
"""Keys of a release's spec that say nothing about a trial."""


def with_canary(pipeline: Pipeline, stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages, with the trial before the release where the pipeline asks for one."""
    wanted = pipeline.release.canary if pipeline.release else None
    for stage in stages:
        if wanted is None or stage.name != "release":
            yield stage
            continue
        spec = stage.files["release.yaml"]
        assert not isinstance(spec, str)
        lines = wanted.model_dump(include=set(WatchLines.model_fields))
        asked: dict[str, Any] = {key: value for key, value in spec.items() if key not in _OF_THE_RELEASE}
        asked |= {
            "snapshot": "{snapshot}",
            "images_asked": wanted.images,
            "min_agreement": wanted.min_agreement,
            "minutes": wanted.minutes,
            "lines": lines,
            "policy": wanted.policy,
        }
        key = pipeline.release.signing.secret if pipeline.release and pipeline.release.signing else None
        yield replace(
            stage,
            name=CANARY,
            title="Try it beside the version that serves",
            argv=command("refit.triton", "canary", "canary.yaml"),
            files={"canary.yaml": asked},
            outputs=(Output("verdict", "verdict.json", "json"), Output("comparison", "comparison.json", "json")),
            code=(*stage.code, "refit/gates"),
            secrets=tuple(name for name in stage.secrets if name != key),
            env={name: value for name, value in stage.env.items() if value != f"{{secret:{key}}}"},
            reads_snapshot=True,
        )
        yield replace(stage, after=(*stage.after, CANARY))
