"""The challenger beside the champion, before it may take its place: loaded under a name of its own, asked the same
pictures, and for a while whatever share of requests clients send it (`refit.triton.route`).

It is loaded by a release under that name, with a ledger in the stage's own folder: staged, proven, crash-safe like any.
The champion is not touched. However the trial ends, the challenger is unloaded and its files go; the release that
follows a good one brings it in as a version of the champion's model. A trial that is killed leaves a challenger that
nobody asks, and the next one replaces it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from refit.gates.verdict import Verdict
from refit.triton import fleet
from refit.triton.artefact import read_request
from refit.triton.errors import ArtefactError, TritonError
from refit.triton.fleet import Servers
from refit.triton.release import release
from refit.triton.route import challenger_of
from refit.triton.shadow import Comparison, compare
from refit.triton.specs import CanarySpec, ReleaseSpec
from refit.triton.traffic import Traffic, failing, is_slower, slower
from refit.triton.transaction import exclusive, reached

STEPS = ("trial-loaded", "trial-compared", "trial-unloaded", "trial-dropped")
"""Steps of a trial after those of the challenger's release, in order."""

Say = Callable[[str], None]
_LOOK_SECONDS = 5.0


def canary(spec: CanarySpec, out: Path, say: Say = lambda _: None) -> tuple[Verdict, Comparison | None]:
    """Try a challenger and drop it again.

    Returns:
        the verdict, and the comparison (None where nothing serves that it could be compared with).

    Raises:
        as `release`: the challenger does not load or answer; the champion was not touched.
    """
    with fleet.connect(spec.url, spec.timeout_seconds) as servers:
        client = servers[0]
        if not client.ready_versions(spec.model):
            return Verdict("canary", "pass", f"nothing serves as {spec.model} yet: nothing to be compared with"), None
        pictures = _pictures(spec)
        trial = spec.model_copy(update={"model": challenger_of(spec.model), "ledger": out / "ledger"})
        request = read_request(out)
        about = {"keep_versions": 1, "pipeline": request.get("pipeline"), "run": request.get("run")}
        asked = trial.model_dump(include=set(ReleaseSpec.model_fields))
        release(ReleaseSpec.model_validate({**asked, **about}), None, say)
        reached("trial-loaded")
        try:
            say(f"Asking {spec.model} and {trial.model} the same {len(pictures)} pictures")
            found = compare(client, spec.model, trial.model, pictures)
            fault = _fault(spec, found) or _routed(spec, servers, trial.model, say)
            reached("trial-compared")
        except TritonError as exc:
            raise type(exc)(f"the challenger was not compared, and is dropped: {exc}") from exc
        finally:
            _drop(trial, say)
    if fault:
        return Verdict("canary", spec.policy, f"the challenger is dropped: {fault}", found.figures()), found
    before, now = found.milliseconds()
    reason = (
        f"it agrees with the champion on {found.agreement:.1%} of the objects in {found.images} pictures, "
        f"{now:.2f} ms against {before:.2f} ms"
    )
    return Verdict("canary", "pass", reason, found.figures()), found


def _fault(spec: CanarySpec, found: Comparison) -> str:
    if found.agreement < spec.min_agreement:
        worst = ", ".join(name for _, name in sorted(found.differ)[:3])
        return (
            f"it agrees with the champion on {found.agreement:.1%} of the objects in {found.images} pictures, and "
            f"{spec.min_agreement:.1%} are asked for; they differ most on {worst}"
        )
    before, now = found.milliseconds()
    if is_slower(spec.lines, now, before):
        return f"it takes {now:.2f} ms, the champion {before:.2f} ms; {spec.lines.max_slowdown:g} times is allowed"
    return ""


def _routed(spec: CanarySpec, servers: Servers, challenger: str, say: Say) -> str:
    """Wait while clients route a share of their requests to the challenger, and hold its counters against those of the
    champion in the same time."""
    if spec.minutes == 0:
        return ""
    names = (challenger, spec.model)
    versions = {name: servers[0].ready_versions(name)[-1] for name in names}

    def counted(name: str) -> Traffic:
        return sum((server.traffic(name, versions[name]) for server in servers), Traffic())

    begun = {name: counted(name) for name in names}
    say(f"Clients may ask {challenger} for {spec.minutes:g} minutes")
    end = time.monotonic() + spec.minutes * 60
    while True:
        now, before = (counted(name) - begun[name] for name in names)
        fault = failing(spec.lines, now, before) or slower(spec.lines, now, before)
        if fault:
            return f"of the requests that clients sent it, {fault.replace('before the swap', 'the champion meanwhile')}"
        left = end - time.monotonic()
        if left <= 0:
            say(f"The challenger was asked {now.requests + now.failed} times, the champion {before.requests} times")
            return ""
        time.sleep(min(_LOOK_SECONDS, left))


def _drop(trial: CanarySpec, say: Say) -> None:
    with exclusive(trial, "the end of a trial", say) as held:
        errors = fleet.each(held.servers, lambda server: server.unload(trial.model))
        reached("trial-unloaded")
        held.repository.drop(trial.model, "the trial is over")
        reached("trial-dropped")
    for exc in errors:
        say(f"{trial.model} was not unloaded: {exc}")


def _pictures(spec: CanarySpec) -> list[Path]:
    """The first pictures of the snapshot's evaluation part.

    Raises:
        ArtefactError: there is none.
    """
    file = spec.snapshot / "annotations.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        names = sorted(row["file"] for row in rows if row["split"] != "train")
    except (OSError, ValueError, KeyError) as exc:
        raise ArtefactError(f"{file}: cannot be read as a snapshot's annotations ({exc})") from None
    if not names:
        raise ArtefactError(f"{file}: no picture outside of the training part to compare with")
    return [spec.snapshot / "images" / name for name in names[: spec.images_asked]]
