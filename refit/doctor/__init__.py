"""`refit doctor`: looks at the place that a cluster profile describes, and says what is missing and what mends it.

For an administrator: on Kubernetes it asks with `kubectl`, with that account's rights, and starts small pods in the
profile's namespace; it leaves nothing behind. Secrets are looked for by name; their values are never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from refit import toolkits
from refit.cluster import KubernetesProfile, Profile
from refit.config import Settings
from refit.doctor import local, objects, pods
from refit.doctor.finding import Finding, Level
from refit.doctor.kubectl import Kubectl
from refit.runtime.pod import PodError, PodStage, stage_pod
from refit.specs import Problem

__all__ = ["Finding", "Level", "examine", "lacking", "stages_of"]


def examine(
    profile: Profile,
    settings: Settings,
    stages: Sequence[PodStage] = (),
    *,
    accounts: Sequence[str] = (),
    start_pods: bool = True,
    wait_seconds: float = 300,
) -> Iterator[Finding]:
    """Every finding about a place, as it is found.

    stages: of the pipelines that are to run there. accounts: Airflow's service accounts, "namespace:name"; none: those
    that the namespace's Roles let make pods. wait_seconds: for images to be pulled.
    """
    if not isinstance(profile, KubernetesProfile):
        yield from local.examine(settings)
        return
    place = objects.Place(Kubectl(profile.namespace), profile, tuple(stages), tuple(accounts))
    failed = set()
    for finding in objects.examine(place):
        if finding.level is Level.FAIL:
            failed.add(finding.name.partition(" ")[0])
        yield finding
    if start_pods and (stopper := failed & objects.NEEDED_BY_PODS):
        why = f"no pods were started: mend {', '.join(sorted(stopper))} first, then ask again"
        yield Finding(Level.NOTE, "pods", why)
    elif start_pods:
        yield from pods.examine(place, wait_seconds)


def lacking(pipeline: Any, profile: Profile, settings: Settings) -> list[Problem]:
    """What the pods of a pipeline's stages need and the cluster profile does not have, each told once."""
    if not isinstance(profile, KubernetesProfile):
        return []
    file, found = settings.clusters / f"{pipeline.profile}.yaml", dict[str, Problem]()
    for stage in stages_of([pipeline], profile):
        try:
            stage_pod(stage, profile)
        except PodError as exc:
            found.setdefault(exc.key, Problem(str(file), 0, exc.key, f"pipeline {pipeline.name}: {exc}"))
    return list(found.values())


def stages_of(pipelines: Iterable[Any], profile: KubernetesProfile) -> list[PodStage]:
    """The stages of pipelines, as far as their pods depend on them."""
    return [
        PodStage(
            pipeline=pipeline.name,
            run="",
            name=stage.name,
            action=stage.action,
            environment=stage.environment,
            image=stage.image,
            gpus=stage.resources.gpus,
            gpu_type=stage.resources.gpu_type,
            cpus=stage.resources.cpus,
            memory_gib=stage.resources.memory_gib,
            secrets=tuple(stage.secrets),
        )
        for pipeline in pipelines
        for stage in toolkits.get(pipeline.toolkit).stages(pipeline, profile)
    ]
