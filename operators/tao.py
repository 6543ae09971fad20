"""One operator per stage, for DAGs of your own: each runs one command of a TAO container (or of any image) as a pod.

    with DAG("plates"):
        convert = TaoDatasetConvertOperator(
            pipeline="plates", network="detectnet_v2", spec=Path("specs/convert.txt"),
            arguments=["-d", "{specs}/convert.txt", "-o", "{out}/records/part"],
            outputs=[Output("records", "records", "tfrecord", kind="dir")],
        )
        train = TaoTrainOperator(
            pipeline="plates", network="detectnet_v2", spec=Path("specs/train.txt"),
            gpus=2, secrets=["TAO_KEY"],
            arguments=["-e", "{specs}/train.txt", "-r", "{out}", "-k", "{secret:TAO_KEY}", "--gpus", "2"],
            inputs={"records": "dataset_convert"},
            outputs=[Output("model", "weights/model.hdf5")],
        )
        convert >> train

A pipeline file needs none of these: its DAG is made by `operators.factory`, with the same pods. What they share with
it: the runner (progress, watchdog, outputs proven and hashed, resume after a preemption), the cluster profile, the
classifier of ends. Commands, specs and inputs may use the runner's tokens (docs/contracts.md). Source of the TAO
commands: the entry points of NVIDIA's tao_tensorflow1_backend, tao_tensorflow2_backend, tao_pytorch_backend and
tao_deploy repositories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from operators import pools
from operators.inputs import BadInput
from operators.pod import TaoStageOperator, kubernetes_profile
from refit import cluster
from refit.pipeline import Resources
from refit.plan import lone_request
from refit.runtime import pod as pods
from refit.toolkits.base import Output

__all__ = [
    "Output",
    "TaoAugmentOperator",
    "TaoBuildEngineOperator",
    "TaoCalibrateOperator",
    "TaoCommandOperator",
    "TaoDatasetConvertOperator",
    "TaoEvaluateOperator",
    "TaoExportOperator",
    "TaoInferenceOperator",
    "TaoPruneOperator",
    "TaoRetrainOperator",
    "TaoTrainOperator",
]


class TaoCommandOperator(TaoStageOperator):
    """Runs a command in a pod, as a stage: the base of the operators below, and of your own.

    Args:
        pipeline: the folder in the workspace that the stages of this DAG share; a-z, 0-9, - and _.
        network: TAO's name of the network, e.g. detectnet_v2: the program that the container starts.
        arguments: what follows `<network> <SUBCOMMAND>`; tokens: {specs}, {out}, {input:NAME}, {secret:NAME} ...
        command: the whole command line, in place of network, SUBCOMMAND and arguments.
        spec: a spec file, written to {specs} under its own name; a mapping of names to texts (or to what becomes
            YAML) for several.
        inputs: NAME -> task id (its last part) of the stage in this DAG whose results {input:NAME} means.
        outputs: what the command must leave below {out}; nothing else is proof of its success.
        environment: whose image of the cluster profile to take; `image` replaces it.
        cluster: the cluster profile's name.
        gpus, gpu_type, cpus, memory_gib, timeout_hours: what the pod asks for.
        secrets: names of the cluster profile's secrets that {secret:NAME} may use.
        watch: the watchdog, see docs/contracts.md.
        exit_codes: of the command, as text -> outcome, e.g. {"3": "bad_data"}; TAO's own codes mean nothing.

    XCom: as TaoStageOperator.
    """

    ACTION: ClassVar[str] = "command"
    SUBCOMMAND: ClassVar[str] = ""
    GPUS: ClassVar[int] = 0

    def __init__(
        self,
        *,
        pipeline: str,
        network: str | None = None,
        arguments: Sequence[str] = (),
        command: Sequence[str] | None = None,
        spec: str | Path | Mapping[str, str | Mapping[str, Any]] | None = None,
        inputs: Mapping[str, str] | None = None,
        outputs: Sequence[Output] = (),
        environment: str = "tao",
        image: str | None = None,
        cluster: str = "kubernetes",
        gpus: int | None = None,
        gpu_type: str | None = None,
        cpus: float = 4,
        memory_gib: float = 16,
        timeout_hours: float = 24,
        secrets: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        watch: Mapping[str, Any] | None = None,
        exit_codes: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        gpus = self.GPUS if gpus is None else gpus
        super().__init__(**{"task_id": self.ACTION, **pools.of_stage("kubernetes", gpus), **kwargs})
        if (command is None) == (network is None):
            raise ValueError(f"{self.task_id}: give network (with arguments), or command")
        self.pipeline, self.cluster_profile = pipeline, cluster
        self.command = list(command or [str(network), self.SUBCOMMAND or self.ACTION, *arguments])
        self.spec, self.inputs, self.outputs = spec, dict(inputs or {}), tuple(outputs)
        self.environment, self.stage_image = environment, image
        self.stage_env, self.stage_secrets = dict(env or {}), tuple(secrets)
        self.watch, self.exit_codes = watch, exit_codes
        wanted = {"cpus": cpus, "memory_gib": memory_gib, "timeout_hours": timeout_hours, "gpu_type": gpu_type}
        self.wanted = Resources.model_validate({"gpus": gpus, **wanted})

    def planned(self, context: Mapping[str, Any]) -> tuple[cluster.KubernetesProfile, pods.PodStage]:
        profile = kubernetes_profile(self.cluster_profile)
        request = lone_request(
            pipeline=self.pipeline,
            run=context["run_id"],
            name=self.stage,
            action=self.ACTION,
            environment=self.environment,
            image=self.stage_image,
            argv=self.command,
            workspace=Path(profile.volumes.workspace.mount_path),
            resources=self.wanted,
            env=self.stage_env,
            specs=self._specs(),
            inputs={name: task.rpartition(".")[2] for name, task in self.inputs.items()},
            outputs=self.outputs,
            secrets=self.stage_secrets,
            watch=self.watch,
            exit_codes=self.exit_codes,
        )
        return profile, pods.PodStage.of(request)

    def _specs(self) -> dict[str, str | Mapping[str, Any]]:
        if self.spec is None:
            return {}
        if isinstance(self.spec, Mapping):
            return dict(self.spec)
        path = Path(self.spec)
        try:
            return {path.name: path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
            raise BadInput(f"{self.task_id}: the spec {path} cannot be read: {reason}") from None


class TaoDatasetConvertOperator(TaoCommandOperator):
    """`<network> dataset_convert`: labels and images to TFRecords. No GPU. Outputs: the shards."""

    ACTION = "dataset_convert"


class TaoAugmentOperator(TaoCommandOperator):
    """`augmentation generate` of TAO's data services: more training images from those there are. Wants a GPU (DALI)."""

    ACTION, SUBCOMMAND, GPUS = "augment", "generate", 1


class TaoTrainOperator(TaoCommandOperator):
    """`<network> train`. Resumes from its last checkpoint when its pod was taken away, where the network can."""

    ACTION, GPUS = "train", 1


class TaoEvaluateOperator(TaoCommandOperator):
    """`<network> evaluate`: figures of a model on a labelled split, from status.json into the result's metrics."""

    ACTION, GPUS = "evaluate", 1


class TaoPruneOperator(TaoCommandOperator):
    """`<network> prune` (TF1 and TF2 networks; the PyTorch networks have none). Retrain afterwards."""

    ACTION, GPUS = "prune", 1


class TaoRetrainOperator(TaoCommandOperator):
    """`<network> train` with a spec that names the pruned model."""

    ACTION, SUBCOMMAND, GPUS = "retrain", "train", 1


class TaoExportOperator(TaoCommandOperator):
    """`<network> export`: to ONNX."""

    ACTION, GPUS = "export", 1


class TaoCalibrateOperator(TaoCommandOperator):
    """`<network> gen_trt_engine --data_type int8` for its calibration cache: on the GPU type that will serve."""

    ACTION, SUBCOMMAND, GPUS = "calibrate", "gen_trt_engine", 1


class TaoBuildEngineOperator(TaoCommandOperator):
    """`<network> gen_trt_engine`: the TensorRT engine, on the GPU type (and TensorRT version) that will serve it."""

    ACTION, SUBCOMMAND, GPUS = "build_engine", "gen_trt_engine", 1


class TaoInferenceOperator(TaoCommandOperator):
    """`<network> inference`: a folder of images to labels and drawn pictures."""

    ACTION, GPUS = "inference", 1
