"""Release a model: staged aside, proven aside, put in place by rename, loaded, proven in place, recorded.

The champion goes on serving whatever fails. The order, and why each step is there, is that of the measured facts:

1. The artefact is read and Triton is asked what serves, before anything is written.
2. The version is written outside the repository on the same file system and synced. Its number was never used.
3. A throwaway Triton on this machine serves it first: what fails there leaves production's readiness alone.
4. The version folder is renamed in, config.pbtxt is replaced in one step and pins the version, Triton loads it.
5. The index, the configuration's sha256, and the version and values of real inferences are checked (`proof`), on every
   server behind the address (`fleet`).
6. The ledger is written and old versions are removed.

`transaction` makes this safe against being killed anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from refit.config import Settings
from refit.engine import match
from refit.triton import config as cfg
from refit.triton import fleet, proof, reference, verify
from refit.triton.artefact import Artefact, Origin, read_artefact, read_origin
from refit.triton.champion import Champion, look
from refit.triton.config import ModelConfig, pin
from refit.triton.errors import ArtefactError, InstallationError, ProofFailed, RepositoryError
from refit.triton.installation import Installation, find
from refit.triton.ledger import Ledger, Previous, Record
from refit.triton.lineage import Lineage
from refit.triton.proof import Proof
from refit.triton.reconcile import changed_by_hand
from refit.triton.reference import Reference, Samples
from refit.triton.specs import ReleaseReport, ReleaseSpec
from refit.triton.traffic import Traffic
from refit.triton.transaction import MODEL_AT_FAULT, Change, Held, exclusive, reached, tolerance
from refit.version import version


def release(
    spec: ReleaseSpec,
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    lineage: Lineage | None = None,
) -> ReleaseReport:
    """Make a model the champion of every Triton server behind an address, or leave everything as it was.

    Args:
        spec: what is released, and where to.
        out: the stage's result folder; the throwaway server's log goes there, and request.json beside it says what
            the spec does not.
        say: is told what happens, a sentence each.
        lineage: what the model was made from, for the ledger.

    Raises:
        ArtefactError: the model or what stands beside it cannot be used; nothing was touched.
        TritonUnavailable: there is no Triton at the URL; nothing was touched.
        AccessRefused, ModelLocked, RepositoryError, InstallationError, ServersDiffer: nothing was touched.
        LockLost: this process was paused for so long that another one took the lock; that one settles what was begun.
        ReleaseFailed: something failed on the way; says what serves now.
    """
    artefact = read_artefact(spec.model_path, spec.reference_images)
    origin = read_origin(spec, out)
    installation = _prover(spec, artefact)
    batch = _max_batch_size(spec, artefact)
    with exclusive(spec, f"{origin.pipeline}/{origin.run}", say) as held:
        _check_plans(spec, artefact, held.servers)
        champion = look(held.servers, spec.model, say)
        if champion.version is not None and _is_same(champion, artefact):
            report = _confirm(spec, held, champion, artefact, origin, say)
            if report is not None:
                return report
        if champion.version is not None:
            changed = changed_by_hand(Ledger(spec.ledger), held.repository, spec.model, champion.version)
            if changed:  # the gates judged the ledger's champion, and going back would load the changed one
                raise RepositoryError(f"{changed}. Put it back first: refit reconcile {spec.model} --mend, or the DAG")
        return _Release(spec, artefact, origin, held, champion, installation, batch, say, lineage).run(out)


def _prover(spec: ReleaseSpec, artefact: Artefact) -> Installation | None:
    """The local Triton for the proof aside; None where the spec does not want one, or has none and needs none."""
    if spec.prove == "never" or (spec.prove == "auto" and _kind(spec, artefact) == "KIND_GPU"):
        return None
    if artefact.model.engines:
        raise InstallationError("prove: always: the throwaway Triton has no GPU, which a TensorRT plan needs; say auto")
    try:
        return find()
    except InstallationError:
        if spec.prove == "always":
            raise
        return None


def _kind(spec: ReleaseSpec, artefact: Artefact) -> str:
    return spec.kind or ("KIND_GPU" if artefact.model.engines else "KIND_CPU")


def _max_batch_size(spec: ReleaseSpec, artefact: Artefact) -> int:
    limit = artefact.model.max_batch_size
    if limit is not None and spec.max_batch_size is not None and spec.max_batch_size > limit:
        raise ArtefactError(
            f"max_batch_size: {spec.max_batch_size}, and {spec.model_path} takes batches up to {limit}; "
            "lower it, or build the engine with a larger batch.max"
        )
    return spec.max_batch_size or limit or 8


def _check_plans(spec: ReleaseSpec, artefact: Artefact, servers: fleet.Servers) -> None:
    """Plans are for the TensorRT of every server, and there is one for each kind of its GPUs."""
    engines = artefact.model.engines
    if not engines:
        return
    try:
        table = match.load(Settings.from_env().repository)
        for server in servers:
            triton = server.server()["version"]
            tensorrt = spec.tensorrt or match.tensorrt_of(table, triton)
            match.check(engines, tensorrt, spec.compute_capabilities, f"Triton {triton} at {server.url}")
    except match.Misfit as exc:
        raise ArtefactError(str(exc)) from None


def _is_same(champion: Champion, artefact: Artefact) -> bool:
    served = champion.served
    return (
        served is not None
        and served.sha256 == artefact.sha256
        and served.sidecar == artefact.sidecar
        and set(champion.versions) <= set(served.versions or ())
    )


def _confirm(
    spec: ReleaseSpec,
    held: Held,
    champion: Champion,
    artefact: Artefact,
    origin: Origin,
    say: Callable[[str], None],
) -> ReleaseReport | None:
    """The artefact serves already: prove it and report; None when it does not answer right, or is not signed as it is
    to be, and must be released."""
    version = champion.versions[-1]
    begin = time.perf_counter()
    stored = Ledger(spec.ledger).find(spec.model, version)
    if stored is not None and spec.signing is not None:
        from refit.triton import signing  # cryptography is needed only here

        try:
            verify.signed(stored[0].path(version), stored[1], spec.signing.public_key)
        except signing.SigningError as exc:
            say(f"Version {version} is this model, but its signature does not hold; it is released again: {exc}")
            return None
    expected = artefact.reference or champion.answers
    try:
        if stored is not None and stored[0].reference(version).exists():
            expected = Reference.load(stored[0].reference(version), artefact.signature, "the ledger")
    except ArtefactError as exc:
        say(f"The ledger's answers of version {version} are left aside: {exc}")
    try:
        if expected is None:
            raise ProofFailed("it does not answer")
        seen = fleet.verify(
            held.servers,
            spec.model,
            version,
            artefact.sha256,
            expected,
            loaded=champion.versions,
            tolerance=tolerance(spec),
            timeout_seconds=spec.timeout_seconds,
        )
    except MODEL_AT_FAULT as exc:
        say(f"Version {version} is this model, but does not serve as it should; it is released again: {exc}")
        return None
    return _report(
        spec,
        held,
        origin,
        artefact.sha256,
        outcome="already_serving",
        version=version,
        previous=version,
        seen=seen,
        proven_by=expected.source,
        seconds={"verify": time.perf_counter() - begin},
        notes=["the same artefact serves already: nothing was changed"],
    )


class _Release:
    """One release, with the model's lock held and nothing half done behind it."""

    def __init__(
        self,
        spec: ReleaseSpec,
        artefact: Artefact,
        origin: Origin,
        held: Held,
        champion: Champion,
        installation: Installation | None,
        max_batch_size: int,
        say: Callable[[str], None],
        lineage: Lineage | None,
    ) -> None:
        self.spec = spec
        self.artefact = artefact
        self.origin = origin
        self.held = held
        self.repository = held.repository
        self.champion = champion
        self.installation = installation
        self.max_batch_size = max_batch_size
        self.say = say
        self.ledger = Ledger(spec.ledger)
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        numbers = (
            held.repository.used_versions(spec.model)
            | self.ledger.used_versions()
            | {e.version for server in held.servers for e in server.index(spec.model) if e.version is not None}
        )
        self.version = max(numbers, default=0) + 1
        self.config = self._config().text()  # that pins this version alone
        self.lineage = lineage and lineage.of(spec.model, self.version, artefact.sha256, self.config, origin.metrics)

    def run(self, out: Path | None) -> ReleaseReport:
        """Do it; the errors are those of `release`."""
        spec = self.spec
        beside = self._beside()
        change = Change.begin(
            "release",
            spec,
            self.held,
            version=self.version,
            champion=self.champion,
            keep_versions=spec.keep_versions,
            run=f"{self.origin.pipeline}/{self.origin.run}",
            say=self.say,
            beside=beside,
            note="" if beside is None else f"version {beside} stays loaded for the watch",
        )
        begin = time.perf_counter()
        try:
            config = pin(self.config.encode(), change.journal.loaded).decode()
            self.ledger.write(self._record())
            self.ledger.keep(self.version, self.artefact.files())
            reached("begun")
            self.say(f"Staging {spec.model} as version {self.version}")
            self.held.lock.check()
            tree = self.repository.stage(spec.model, self.version, self.artefact.files(), config)
            if self.artefact.model.digest(tree / spec.model / str(self.version)) != self.artefact.sha256:
                raise RepositoryError(
                    f"{tree}: the copy differs from {spec.model_path}: it changed, or the disk is bad"
                )
            if self.lineage is not None:
                self.lineage.write(self.ledger.path(self.version), tree / spec.model / str(self.version))
            self._lap("stage", begin)
            reached("staged")
            expected = self._prove(tree, out)
            reached("proven")
            self.say(
                f"Loading version {self.version} of {spec.model} into {', '.join(s.url for s in self.held.servers)}"
            )
            self.held.lock.check()
            self.repository.install(spec.model, self.version)
            reached("installed")
            begin = time.perf_counter()
            seen = change.swap(config.encode(), self.artefact.sha256, expected)
            self._lap("swap", begin)
            Reference(expected.inputs, seen.answers, "").save(self.ledger.reference(self.version))
        except BaseException as exc:
            change.fail(exc)
            raise
        removed = change.finish()
        if removed:
            self.notes.append(f"removed old versions {removed}")
        return _report(
            spec,
            self.held,
            self.origin,
            self.artefact.sha256,
            outcome="released",
            version=self.version,
            previous=self.champion.version,
            seen=seen,
            proven_by=expected.source,
            seconds=self.seconds,
            notes=self.notes,
        )

    def _beside(self) -> int | None:
        """The champion, where it is to stay loaded for the watch: both versions share one configuration."""
        before, served = self.champion.version, self.champion.served
        if not self.spec.watched or before is None or served is None:
            return None
        files = self.repository.files(self.spec.model, before)
        if served.signature == self.artefact.signature and files == set(self.artefact.files()):
            return before
        self.notes.append(
            f"version {before} has other inputs, outputs or files, so it cannot stay loaded: going back loads it again"
        )
        return None

    def _config(self) -> ModelConfig:
        spec, artefact, origin = self.spec, self.artefact, self.origin
        return ModelConfig(
            name=spec.model,
            version=self.version,
            signature=artefact.signature,
            max_batch_size=self.max_batch_size,
            instances=spec.instances,
            kind=_kind(spec, artefact),
            plans=artefact.model.plans,
            dynamic_batching=spec.dynamic_batching,
            free_dims=artefact.free_dims(),
            parameters={
                cfg.SHA256: artefact.sha256,
                cfg.MODEL: json.dumps(artefact.sidecar, ensure_ascii=False, separators=(",", ":")),
                cfg.PIPELINE: origin.pipeline,
                cfg.RUN: origin.run,
                cfg.KEY: origin.key,
                cfg.REFIT: version(),
            },
        )

    def _record(self) -> Record:
        spec, artefact, origin, served = self.spec, self.artefact, self.origin, self.champion.served
        previous = None
        if self.champion.version is not None and served is not None:
            previous = Previous(
                version=self.champion.version, sha256=served.sha256, pipeline=served.parameters.get(cfg.PIPELINE)
            )
        return Record(
            model=spec.model,
            version=self.version,
            state="staged",
            sha256=artefact.sha256,
            bytes=artefact.model.bytes,
            pipeline=origin.pipeline,
            run=origin.run,
            key=origin.key,
            metrics=origin.metrics,
            url=spec.url,
            repository=self.repository.place,
            previous=previous,
            traffic_before=self._traffic() if spec.watched else None,
            config=self.config,
            sidecar=artefact.sidecar,
            **(self.lineage.told if self.lineage else {}),
        ).turn("staged", f"staged by {origin.run}")

    def _traffic(self) -> Traffic | None:
        """What the champion's requests cost on all servers: what the watch holds the new version against."""
        before = self.champion.version
        if before is None:
            return None
        return sum((s.traffic(self.spec.model, before) for s in self.held.servers), Traffic())

    def _prove(self, tree: Path, out: Path | None) -> Reference:
        """Serve the staged version aside, and get the answers that production must give.

        The stage's own reference comes first: it was made by onnxruntime itself, so it can tell that a server is wrong.
        """
        spec, artefact = self.spec, self.artefact
        given = artefact.reference
        parts: list[Samples] = [given.inputs] if given else []
        if spec.images is not None:
            paths = spec.images if isinstance(spec.images, list) else [spec.images]
            parts.append(reference.from_images(artefact.signature, artefact.info, paths))
        if not parts:
            parts.append(reference.made_up(artefact.signature, artefact.sidecar))
        if artefact.model.engines and not spec.compute_capabilities:
            self.notes.append("compute_capabilities not said: only the load has proven that the plan fits the GPUs")
        if self.installation is None:
            self.notes.append("not proven on a throwaway Triton")
            if given is not None:
                return given
            self.notes.append(f"no {reference.FILE}: shapes and types of the answers were proven, values were not")
            return Reference(parts[0], {}, "nothing")
        inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self.say("Serving it from a throwaway Triton")
        begin = time.perf_counter()
        outputs = proof.prove_aside(
            tree,
            spec.model,
            self.version,
            artefact.signature,
            inputs,
            installation=self.installation,
            folder=out / "proof" if out is not None else None,
        )
        source = "a throwaway Triton"
        if given is not None:
            rows = len(given)
            first = {name: array[:rows] for name, array in outputs.items()}
            reference.difference(given.outputs, first, tolerance(spec))
            outputs = {name: np.concatenate([given.outputs[name], array[rows:]]) for name, array in outputs.items()}
            source = f"{given.source}, and a throwaway Triton"
        self._lap("prove", begin)
        return Reference(inputs, outputs, source)

    def _lap(self, name: str, begin: float) -> None:
        self.seconds[name] = time.perf_counter() - begin


def _report(
    spec: ReleaseSpec,
    held: Held,
    origin: Origin,
    sha256: str,
    *,
    outcome: str,
    version: int,
    previous: int | None,
    seen: Proof,
    proven_by: str,
    seconds: dict[str, float],
    notes: list[str],
) -> ReleaseReport:
    return ReleaseReport(
        outcome=outcome,
        model=spec.model,
        version=version,
        previous=previous,
        sha256=sha256,
        url=spec.url,
        servers=[server.url for server in held.servers],
        pipeline=origin.pipeline,
        run=origin.run,
        probes=len(next(iter(seen.answers.values()))),
        difference=seen.difference,
        milliseconds=seen.milliseconds,
        proven_by=proven_by,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        notes=notes,
    )
