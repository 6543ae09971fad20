"""What only a pod can tell: images, the volume between two pods, Triton. Pods as a stage's, with a harmless command.

Each runs refit/doctor/probe.py and answers by its termination message; `refit.runtime.podstatus` says of one that gives
no answer why. All of them go at the end, also after Ctrl-C.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refit.doctor.finding import Finding, Level
from refit.doctor.objects import Place
from refit.publish.place import FOLDER as PUBLISHED
from refit.runtime import podstatus
from refit.runtime.pod import BIND, LABEL, RELEASE, RUNNER_AT, PodError, PodStage, stage_pod
from refit.runtime.podstatus import Do, Patience

NAME = "refit-doctor"  # the pods' pipeline, and so their folder in the workspace
SOURCE = (Path(__file__).parent / "probe.py").read_text(encoding="utf-8")
PACKAGES = {"tools": "refit", "cpu": "refit", RELEASE: "refit"}  # what an image of ours has in it


@dataclass(frozen=True)
class Probe:
    """A pod and what its findings are called."""

    title: str
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


def examine(place: Place, wait_seconds: float) -> Iterator[Finding]:
    """Start the pods all at once, tell of each as it ends; the volume's room is looked at last, and tidied."""
    token = uuid.uuid4().hex[:8]
    try:
        yield from _run(
            place, token, [*_images(place, token), *_volume(place, token), *_triton(place, token)], wait_seconds
        )
        yield from _run(place, token, [_room(place, token)], wait_seconds)
    except PodError as exc:
        yield Finding(Level.FAIL, "profile", str(exc))
    finally:
        place.kubectl.run("delete", "pods", "-l", f"{LABEL}run={token}", "--wait=false", "--ignore-not-found")


# --- the pods ---------------------------------------------------------------------------------------------------------


def _probe(place: Place, token: str, title: str, stage: PodStage, *words: str) -> Probe:
    small = replace(stage, pipeline=NAME, run=token, gpus=0, cpus=0.1, memory_gib=0.25)
    small = replace(small, timeout_seconds=300, grace_seconds=1)
    manifest = stage_pod(small, place.profile.model_copy(update={"start_timeout_seconds": 600}))
    manifest["metadata"]["name"] = f"{NAME}-{token}-{uuid.uuid4().hex[:4]}"
    container = manifest["spec"]["containers"][0]
    container["command"] = [container["command"][0], "-c", SOURCE, *words]
    # Nothing is published of it: a folder that the mount would make stayed.
    container["volumeMounts"] = [m for m in container["volumeMounts"] if f"/{PUBLISHED}/" not in m["mountPath"]]
    return Probe(title, manifest)


def _images(place: Place, token: str) -> Iterator[Probe]:
    """A pod for each image of the profile, and for those that stages of the pipelines name."""
    profile = place.profile
    shapes = {name: PodStage("", "", name, name, name) for name in profile.images}
    shapes |= {s.image: replace(s, secrets=()) for s in place.stages if s.image}
    for name, stage in shapes.items():
        image = profile.image(stage.environment, stage.action, stage.image)
        runner = image.runner or f"{RUNNER_AT}/runner.py"
        package = [PACKAGES[name]] if name in PACKAGES else []
        yield _probe(place, token, f"image {image.image}", stage, "image", runner, *package)


def _volume(place: Place, token: str) -> Iterator[Probe]:
    folder = f"{place.profile.volumes.workspace.mount_path.rstrip('/')}/{NAME}/{token}"
    for which in ("first", "second"):
        probe = _probe(place, token, "workspace", PodStage("", "", which, BIND, "tools"), which, folder)
        spec = probe.manifest["spec"]
        if which == "second":
            spec["securityContext"]["runAsUser"] += 1  # what the group may do, the user must not matter
        apart = {"labelSelector": {"matchLabels": {f"{LABEL}run": token}}, "topologyKey": "kubernetes.io/hostname"}
        prefer = [{"weight": 1, "podAffinityTerm": apart}]
        spec["affinity"] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": prefer}}
        yield probe


def _triton(place: Place, token: str) -> Iterator[Probe]:
    triton = place.profile.triton
    secrets = (triton.control_key_secret,) if triton.control_key_secret else ()
    stage = PodStage("", "", "triton", RELEASE, "tools", secrets=secrets)
    yield _probe(place, token, "triton", stage, "triton", triton.url, triton.repository)


def _room(place: Place, token: str) -> Probe:
    """As bind's, but with the whole workspace mounted: all pipelines' runs are looked at."""
    volume = place.profile.volumes.workspace
    folder = f"{volume.mount_path.rstrip('/')}/{NAME}"
    probe = _probe(
        place, token, "workspace", PodStage("", "", "room", BIND, "tools"), "disk", volume.mount_path, folder
    )
    mounts = probe.manifest["spec"]["containers"][0]["volumeMounts"]
    mine = next(m for m in mounts if m["name"] == "workspace")
    mine |= {"mountPath": volume.mount_path, "subPath": volume.sub_path}
    return probe


# --- running them -----------------------------------------------------------------------------------------------------


def _run(place: Place, token: str, probes: Sequence[Probe], wait_seconds: float) -> Iterator[Finding]:
    open_: dict[str, Probe] = {}
    for probe in probes:
        done = place.kubectl.run("create", "-f", "-", stdin=json.dumps(probe.manifest))
        if done.code:
            verdict = podstatus.refused(None, done.err, place.namespace)
            yield Finding(Level.FAIL, probe.title, verdict.reason, verdict.advice)
        else:
            open_[probe.name] = probe
    waits = {"likely": min(20, wait_seconds), "unknown": min(60, wait_seconds)}
    patience = Patience(schedule=60, start=wait_seconds, certain=5, **waits)
    until = time.monotonic() + 60 + 2 * wait_seconds
    while open_ and time.monotonic() < until:
        time.sleep(1)
        seen = {p["metadata"]["name"]: p for p in place.kubectl.all("pods", "-l", f"{LABEL}run={token}")}
        for name, probe in list(open_.items()):
            pod = seen.get(name)
            findings = _look(probe, pod, patience)
            if findings is not None:
                del open_[name]
                stuck = pod is not None and not podstatus.has_ended(pod)
                yield from (_with_cause(place, name, f) for f in findings) if stuck else findings
    for probe in open_.values():
        show = place.command("describe", "pod", probe.name)
        yield Finding(Level.FAIL, probe.title, "its pod neither ended nor failed in time", show)


def _look(probe: Probe, pod: Mapping[str, Any] | None, patience: Patience) -> list[Finding] | None:
    """What a pod has come to; None: not yet."""
    if pod is None or podstatus.has_ended(pod):
        answer = _answer(pod)
        if answer is None:
            verdict = podstatus.judge(pod, probe.title)
            return [Finding(Level.FAIL, probe.title, verdict.reason, verdict.advice)]
        return [Finding(Level(level), f"{probe.title} {name}", text, fix) for level, name, text, fix in answer]
    verdict = podstatus.watch(pod, time.time(), patience).verdict
    if verdict.do is not Do.FAIL:
        return None
    return [Finding(Level.FAIL, probe.title, verdict.reason, verdict.advice)]


def _with_cause(place: Place, name: str, finding: Finding) -> Finding:
    """And what the node said first of a pod that does not start: later it says only that it waits ("Back-off")."""
    events = place.kubectl.all("events", "--field-selector", f"involvedObject.name={name},reason=Failed")
    said = (str(event["message"]) for event in events)
    cause = next((text for text in said if not text.startswith("Error: ") and text not in finding.text), "")
    return replace(finding, text=f"{finding.text}: {cause}") if cause else finding


def _answer(pod: Mapping[str, Any] | None) -> list[tuple[str, str, str, str]] | None:
    try:
        rows = json.loads(podstatus.message_of(pod or {}))
        return [(str(level), str(name), str(text), str(fix)) for level, name, text, fix in rows]
    except (ValueError, TypeError):
        return None
