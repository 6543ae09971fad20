"""What the chains of all toolkits have in common: the quality gate after an evaluation, and the release."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from refit.cluster import LocalProfile, Profile
from refit.cpu.specs import AugmentParams
from refit.data.source import secret_name
from refit.pipeline import Pipeline, Policy, Release, Resources, TritonTarget, WatchLines
from refit.specs import Key, did_you_mean
from refit.start import spec as start
from refit.toolkits.base import Output, Stage, command

WATCH = "watch"  # the stage after the release, where the pipeline wants one
NO_PROFILE = LocalProfile.model_validate({"triton": {"url": "http://127.0.0.1:8000", "repository": "models"}})

FIRST = ("bind", "look")  # what takes the data in, in every pipeline
SIGNING_KEY = "REFIT_SIGNING_KEY"  # refit.triton.signing

CPU_CODE = (
    "refit/cpu",
    "refit/data/tfrecord.py",
    "refit/postprocess",
    "refit/command.py",
    "refit/files.py",
    "refit/specs.py",
    "refit/start/spec.py",
    "refit/status.py",
)

RELEASE_CODE = ("refit/triton", "refit/engine", "refit/postprocess", "refit/picture.py", "refit/specs.py")


def unknown_resources(pipeline: Pipeline, stages: Callable[[], Iterable[Stage]]) -> Iterator[tuple[Key, str]]:
    """What `resources.stages` names that the pipeline does not have. The chain is listed only where it names any:
    Airflow parses every pipeline file over and over."""
    if not pipeline.resources.stages:
        return
    names = sorted([*FIRST, *(s.name for s in stages())])
    for name, wanted in pipeline.resources.stages.items():
        if name in FIRST and wanted.gpus:
            yield ("resources", "stages", name, "gpus"), f"{name} reads data and uses no GPU; leave it out"
        if name not in names:
            hint = did_you_mean(name, names) or f"; known here: {', '.join(names)}"
            yield ("resources", "stages", name), f"this pipeline has no such stage{hint}"


def starts(pipeline: Any, network: str, endings: Sequence[str]) -> Iterator[tuple[Key, str]]:
    """What no training of a pipeline can begin with; `endings`: of the files that its network can."""
    for block, value in start.given(pipeline.stages):
        key: Key = ("stages", block, "start_from")
        if fault := start.misfit(network, value, endings, block):
            yield key, fault
        elif value == start.CHAMPION and pipeline.release is None:
            yield key, "with release: false there is no champion; name a run: run:RUN"


def doubtful_starts(pipeline: Any) -> Iterator[tuple[Key, str]]:
    """Weights that may have been trained on images that they are evaluated on now."""
    if pipeline.dataset.split.evaluation == "fresh":
        for block, value in start.given(pipeline.stages):
            text = (
                f"{value} may have been trained on images that are evaluated on now, as dataset.split.evaluation is "
                "fresh: its figures would be too good; frozen holds them apart"
            )
            yield ("stages", block, "start_from"), text


def served_by(release: Release | None, profile: Profile) -> tuple[TritonTarget, str | None]:
    """The Triton that a release goes to (None: a pipeline that is not known here), and its control key's secret: the
    profile names that of its own server, and no pipeline has it sent to another."""
    target = (release.triton if release else None) or profile.triton
    return target, profile.triton.control_key_secret if target.url == profile.triton.url else None


def control_key(secret: str | None) -> dict[str, str]:
    """How a stage gets the control key: a token that the runner replaces."""
    return {"REFIT_SECRET_TRITON_CONTROL_KEY": f"{{secret:{secret}}}"} if secret else {}


def access(target: TritonTarget, secret: str | None) -> dict[str, Any]:
    """`secrets` and `env` of a stage that changes what a Triton serves: the control key, the login of a bucket."""
    env, secrets = control_key(secret), [secret] if secret else []
    if target.connection is not None:
        login = secret_name(target.connection)
        secrets.append(login)
        env["REFIT_CONNECTION"] = f"{{secret:{login}}}"
    return {"secrets": tuple(secrets), "env": env}


class Chain:
    """The stages of one pipeline in one place; `dataset` as in `refit.plan.Bound`, in a run."""

    def __init__(self, pipeline: Pipeline, profile: Profile, dataset: Mapping[str, Any] | None = None) -> None:
        self.pipeline, self.profile, self.dataset = pipeline, profile, dataset

    def resources(self, name: str) -> Resources:
        block = self.pipeline.resources
        return block.stages.get(name, block.default)

    def light(self, name: str) -> Resources:
        """Of a stage that only compares files or talks to a server: no GPU, unless it is named to have one."""
        default = self.pipeline.resources.default
        light = default.model_copy(update={"gpus": 0, "gpu_type": None, "cpus": min(1.0, default.cpus)})
        return self.pipeline.resources.stages.get(name, light)

    def augment(self, name: str, params: AugmentParams) -> Stage:
        """The snapshot with changed copies of its training images, as a stage of this name: no GPU, unless named so."""
        default = self.pipeline.resources.default.model_copy(update={"gpus": 0, "gpu_type": None})
        return Stage(
            name=name,
            action="augment",
            title="Augment the training part",
            environment="cpu",
            argv=command("refit.cpu", "augment", "augment.yaml"),
            files={"augment.yaml": {"seed": self.pipeline.seed, "snapshot": "{snapshot}", **params.model_dump()}},
            env={"OMP_WAIT_POLICY": "passive"},
            outputs=(
                Output("dataset", "dataset.json", "json"),
                Output("annotations", "annotations.jsonl", "jsonl"),
                Output("preview", "preview.jpg", "jpg"),
            ),
            code=(*CPU_CODE, "refit/data/faults.py", "refit/data/snapshot.py"),
            resources=self.pipeline.resources.stages.get(name, default),
            reads_snapshot=True,
        )

    def gate(
        self,
        name: str,
        baseline: str | None,
        *,
        floor: bool,
        results: str = "{{input:evaluate_{}.results}}",
        ladder: str | None = None,
        limit: float | None = None,
        policy: Policy | None = None,
    ) -> Stage:
        """The quality gate on the figures of evaluate_<name>; `results` is the form of the token for them, `ladder`
        the stage that chose the model among several, `limit` the most that it may lose where that is no gate's."""
        gate = self.pipeline.gates.quality
        if limit is None:
            limit = {"quantized": gate.max_drop_quantized}.get(name, gate.max_drop_pruned)
        spec = {
            "model": name,
            "metric": gate.metric,
            "candidate": results.format(name),
            "baseline": results.format(baseline) if baseline else None,
            "floor": gate.floor if floor else None,
            "max_drop": limit if baseline else None,
            "policy": policy or gate.policy,
            **(self._parts() if baseline else {}),
            **({"ladder": f"{{input:{ladder}.ladder}}"} if ladder else {}),
            **self._evaluation("previous"),
        }
        inputs = (f"evaluate_{name}", *((f"evaluate_{baseline}",) if baseline else ()), *((ladder,) if ladder else ()))
        return self._quality(f"gate_{name}", f"Gate: is the {name} model good enough?", spec, inputs)

    def _quality(self, name: str, title: str, spec: Mapping[str, Any], inputs: tuple[str, ...]) -> Stage:
        return Stage(
            name=name,
            action="gate",
            title=title,
            environment="tools",
            argv=command("refit.gates", "quality", "quality.yaml"),
            files={"quality.yaml": spec},
            inputs=inputs,
            outputs=(Output("verdict", "verdict.json", "json"),),
            summary="summary.json",
            code=("refit/gates", "refit/specs.py"),
            resources=self.light(name),
            reads_snapshot="snapshot" in spec,
        )

    def _parts(self) -> dict[str, Any]:
        """What the quality gate looks at beside the whole, and where the images' groups and tags stand."""
        gate = self.pipeline.gates.quality
        return {"max_drop_class": gate.max_drop_class, "slices": gate.slices, "snapshot": "{snapshot}"}

    def _evaluation(self, before: str) -> dict[str, str | None]:
        """The versions of the evaluation set that a verdict names: today's, and that of the data set before
        (`previous`) or with which the model that serves was released (`served`), where they differ."""
        about = (self.dataset or {}).get("evaluation", {})
        return {"evaluation": about.get("version"), "evaluation_before": about.get(before)}

    def gate_champion(self, judged: str) -> Stage:
        """The quality gate of the model that would be released against the one that serves (evaluate_champion)."""
        champion = self.pipeline.gates.champion
        assert champion is not None
        spec = {
            "model": judged,
            "against": "of the champion",
            "metric": self.pipeline.gates.quality.metric,
            "candidate": f"{{input:evaluate_{judged}.results}}",
            "baseline": "{input:evaluate_champion.results}",
            "max_drop": champion.margin,
            "only_shown": True,
            "policy": champion.policy,
            **self._parts(),
            **self._evaluation("served"),
        }
        title = "Gate: is it as good as the version that serves?"
        return self._quality("gate_champion", title, spec, (f"evaluate_{judged}", "evaluate_champion"))

    def release(
        self,
        model: str,
        judged: str,
        *,
        results: str = "{{input:evaluate_{}.results}}",
        path: str | None = None,
        after: tuple[str, ...] = (),
        **more: Any,
    ) -> Stage:
        """The release of the `model` output of a stage (or of a path in its results) that evaluate_<judged> judged.

        `more` are further keys of the release's spec.
        """
        release = self.pipeline.release
        assert release is not None
        target, secret = served_by(release, self.profile)
        spec = {
            "model_path": path or f"{{input:{model}.model}}",
            "results": results.format(judged),
            **self._target(release, target),
            "reference_images": release.images,
            "prove": "auto" if release.prove else "never",
            **({"watched": True} if release.watch else {}),
            **({"signing": {"public_key": release.signing.public_key}} if release.signing else {}),
            **more,
        }
        reach = access(target, secret)
        secrets = [*reach["secrets"]]
        if release.signing:
            secrets.append(release.signing.secret)
            reach["env"][SIGNING_KEY] = f"{{secret:{release.signing.secret}}}"
        return Stage(
            name="release",
            action="release",
            title="Release to Triton",
            environment="tools",
            argv=command("refit.triton", "release", "release.yaml"),
            files={"release.yaml": spec},
            inputs=(model, f"evaluate_{judged}"),
            after=(f"gate_{judged}", *after),
            outputs=(Output("release", "release.json", "json"),),
            summary="summary.json",
            secrets=tuple(secrets),
            env=reach["env"],
            code=RELEASE_CODE,
            resources=self.light("release"),
        )

    def _target(self, release: Release, target: TritonTarget) -> dict[str, Any]:
        """What every change of a model is told of it and of its Triton (`refit.triton.specs.Target`)."""
        return {
            "model": release.model or self.pipeline.name,
            "url": target.url,
            "repository": target.repository,
            "ledger": "{workspace}/releases",
            "keep_versions": release.keep_versions,
            "timeout_seconds": release.timeout_seconds,
            "tolerance": release.tolerance.model_dump(),
        }

    def watch(self) -> Iterator[Stage]:
        """After the release, where the pipeline wants it: the time in which the version before stays loaded."""
        release = self.pipeline.release
        if release is None or release.watch is None:
            return
        target, secret = served_by(release, self.profile)
        spec = {
            **self._target(release, target),
            "minutes": release.watch.minutes,
            "every_seconds": release.watch.every_seconds,
            "lines": release.watch.model_dump(include=set(WatchLines.model_fields)),
        }
        yield Stage(
            name=WATCH,
            action="release",
            title="Watch the new version",
            environment="tools",
            argv=command("refit.triton", "watch", "watch.yaml"),
            files={"watch.yaml": spec},
            inputs=("release",),
            outputs=(Output("release", "release.json", "json"),),
            summary="summary.json",
            **access(target, secret),
            code=RELEASE_CODE,
            resources=self.light(WATCH),
        )
