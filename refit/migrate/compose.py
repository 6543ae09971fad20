"""From what was found to the pipeline file and the files beside it, as texts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refit.migrate import dvc, facts
from refit.migrate.cli import Role
from refit.migrate.edit import edit
from refit.migrate.facts import Said, said
from refit.migrate.fetch import ImportFault, place
from refit.migrate.kubeflow import Kubeflow
from refit.migrate.mounts import Mounts
from refit.migrate.recognise import Spec, backbone
from refit.migrate.secrets import Vault, marked, shown
from refit.tao import networks
from refit.tao.networks import Role as Fact

TAO_KEY, NGC_KEY = "TAO_KEY", "NGC_API_KEY"
_LABELS = 2000  # label files that are looked at for the names in them
_GPU = {"gpus": 1, "cpus": 8, "memory_gib": 32}


@dataclass
class Old:
    """All that was found of an old system."""

    name: str
    network: str
    specs: dict[Role, Spec]
    kubeflow: Kubeflow | None
    mounts: Mounts
    vault: Vault
    classes: tuple[str, ...] = ()
    data: str = ""


@dataclass
class Made:
    """What import writes: path relative to the target folder -> text. Notes are for the person."""

    files: dict[str, str] = field(default_factory=dict)
    scripts: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Lines:
    """YAML, line by line, each with a comment that says where its value came from."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, indent: int, key: str, value: Any, why: str = "") -> None:
        self.lines.append(f"{'  ' * indent}{key}: {flow(value)}{_comment(why)}")

    def block(self, indent: int, key: str, why: str = "") -> None:
        self.lines.append(f"{'  ' * indent}{key}:{_comment(why)}")

    def note(self, indent: int, text: str) -> None:
        self.lines.append(f"{'  ' * indent}# {one_line(text)}")

    def gap(self) -> None:
        self.lines.append("")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def flow(value: Any) -> str:
    """A value on one line."""
    text = str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000))
    return text.removesuffix("\n").removesuffix("\n...")


def one_line(text: str) -> str:
    return " ".join("".join(ch if ch.isprintable() else " " for ch in text).split())


def _comment(why: str) -> str:
    return f"   # {one_line(why)}" if why else ""


def compose(old: Old) -> Made:
    """Raises ImportFault where something is missing without which there is no pipeline."""
    made = Made()
    start = facts.pretrained_path(old.specs["train"]) if "train" in old.specs else None
    kept = {r: s for r, s in old.specs.items() if r != "augment" or s.tree.form == "yaml"}
    specs = {role: f"{old.name}/{_file(role, spec)}" for role, spec in kept.items()}
    for role, spec in kept.items():
        changed, notes = facts.changes(spec, old.mounts)
        made.notes += notes
        result = edit(spec.tree, spec.text, changed)
        if changed and not result.kept_comments:
            made.notes.append(f"{spec.file}: rewritten as a whole: its comments are not kept")
        made.files[specs[role]] = result.text
    training = [spec for role, spec in old.specs.items() if role in ("train", "retrain")]
    training.sort(key=lambda s: s.role, reverse=True)  # the first training first
    for what, one, two in facts.differences(training):
        made.warnings.append(
            f"{two.where}: {two.path}: {what}: {one_line(two.short)}; and {one_line(one.short)} in {one.where}; each "
            "spec keeps its own: make them equal"
        )
    composed = _Pipeline(old, made, specs, training, start).text()
    made.files[f"{old.name}.yaml"] = composed
    made.files = {path: shown(text) for path, text in made.files.items()}
    return made


class _Pipeline:
    def __init__(self, old: Old, made: Made, specs: dict[Role, str], training: list[Spec], start: Said | None) -> None:
        self.old, self.made, self.specs, self.training, self.start = old, made, specs, training, start
        self.network = networks.load(old.network)
        self.kubeflow = old.kubeflow
        self.out = Lines()
        self.train = old.specs.get("train") or old.specs.get("retrain")

    def text(self) -> str:
        old, out = self.old, self.out
        files = [s.file for s in old.specs.values()]
        if self.kubeflow:
            files.insert(0, place(self.kubeflow.file))
        if old.mounts.file:
            files.append(old.mounts.file)
        out.note(0, f"Written by `refit import` from {', '.join(files)}.")
        out.note(
            0, "Each comment says where its value came from. Check it: refit validate; see the stages: refit plan."
        )
        out.gap()
        out.put(0, "runtime", "kubernetes", "TAO runs in NVIDIA's containers")
        self._schedule()
        out.gap()
        self._dataset()
        out.gap()
        out.put(0, "toolkit", "tao")
        self._network()
        out.gap()
        self._stages()
        out.gap()
        self._resources()
        self._mounts()
        return out.text()

    # -- blocks --

    def _schedule(self) -> None:
        if self.kubeflow and self.kubeflow.dvc:
            self.out.put(0, "schedule", "on_arrival", f"{self.old.name}/dvc.sh pull brings the data")
        else:
            self.out.note(0, "schedule: on_arrival, or a cron expression; left out: started by hand, as before")

    def _dataset(self) -> None:
        out, old = self.out, self.old
        source, why, image_dir, label_dir = self._source()
        out.block(0, "dataset")
        out.put(1, "source", source, why)
        self._coco()
        kubeflow = self.kubeflow
        if kubeflow and kubeflow.url:
            out.note(1, f"the data came from {place(kubeflow.url.value)} ({kubeflow.url.where})")
        if kubeflow and kubeflow.version:
            out.note(1, f"version {kubeflow.version.value} ({kubeflow.version.where})")
        convert = old.specs.get("dataset_convert")
        if self.network.data.form == "kitti" or (convert and convert.tree.has("kitti_config")):
            out.put(1, "format", "kitti")
        if image_dir:
            out.put(1, "image_dir", image_dir.value, f"{image_dir.where} {image_dir.path}")
        if label_dir:
            out.put(1, "label_dir", label_dir.value, f"{label_dir.where} {label_dir.path}")
        classes, class_map, where = self._classes(source, label_dir)
        out.put(1, "classes", classes, where)
        if class_map:
            out.put(1, "class_map", class_map, "labels that are another class, or (null) none")
        if kubeflow and kubeflow.dvc:
            out.put(1, "arrival", {"marker": dvc.MARKER}, "dvc.sh writes it last")
            self._dvc(source)

    def _coco(self) -> None:
        """Refit reads the user's COCO files, and writes those that TAO reads itself."""
        if self.train is None:
            return
        for path, scalar in self.train.tree.leaves():
            if path.startswith("dataset.train_data_sources") and path.endswith(".json_file") and scalar.value:
                self.made.notes.append(
                    f"{self.train.file}:{scalar.line}: {path}: the data are COCO annotations: put them and their "
                    "images into dataset.source (`refit dataset check FOLDER` tells whether they are good); a run "
                    "splits them, and writes the COCO files that TAO reads"
                )
                return

    def _dvc(self, source: str) -> None:
        assert self.kubeflow is not None
        block = self.kubeflow.dvc
        assert block is not None
        path = f"{self.old.name}/dvc.sh"
        self.made.files[path] = dvc.script(block, self.old.name, source)
        self.made.scripts.add(path)
        for what, container in block.containers:
            url = f"az://{one_line(container)}"
            self.out.note(
                1, f"{what}: {url} (line {block.line}); Refit reads folders: dvc.sh, or a mount of it at the inbox"
            )
        self.made.notes.append(
            f"{self.kubeflow.file}:{block.line}: dvc_specs: is now {path}: `pull` before a run, `push` after a release"
        )

    def _network(self) -> None:
        out, old = self.out, self.old
        out.block(0, "network")
        where = self.kubeflow.network.where if self.kubeflow else ", ".join(s.file for s in self.training)
        out.put(1, "name", old.network, where)
        self._backbone()
        sides: tuple[tuple[str, Fact], ...] = (("input_width", "width"), ("input_height", "height"))
        for key, role in sides:
            side = self._agreed(role)
            if side:
                out.put(1, key, side.value, f"{side.where} {side.path}")
            elif self._said(role):
                out.note(1, f"{key}: the specs differ; make them equal there, and write it here")
        channels = self._agreed("channels")
        if channels and channels.value == 1:
            out.put(1, "channels", 1, f"{channels.where} {channels.path}")
        extension = self._agreed("extension") or self._converted_extension()
        if extension:
            ending = str(extension.value).lstrip(".").lower().replace("jpeg", "jpg")
            if ending in ("jpg", "png"):
                out.put(1, "image_extension", ending, f"{extension.where} {extension.path}")
            else:
                out.note(
                    1, f"image_extension: {ending} ({extension.where}) is none of jpg, png: stages.prepare.convert"
                )
        self._pretrained()
        if "encryption" in old.vault.kinds() and self.network.encrypted:
            out.put(1, "key_secret", TAO_KEY, "the Secret with the key; it stood in plain text in the old files")

    def _backbone(self) -> None:
        own = backbone(self.train.tree, self.network) if self.train else None
        named = self.kubeflow.backbone if self.kubeflow else None
        if own:
            assert self.train is not None
            self.out.put(1, "backbone", own, self.train.file)
            if named and named.value != own:
                self.made.warnings.append(
                    f"{named.where}: {named.path}: is {named.value}, and {self.train.file} has {own}, which is kept"
                )
        elif named and named.value in self.network.backbones:
            self.out.put(1, "backbone", named.value, named.where)
        elif named:
            self.out.note(1, f"backbone: {named.value} ({named.where}) is none that Refit knows for {self.old.network}")

    def _pretrained(self) -> None:
        secret = {"secret": NGC_KEY} if "ngc" in self.old.vault.kinds() else {}
        model = self.kubeflow.model_type if self.kubeflow else None
        version = self.kubeflow.backbone if self.kubeflow else None
        if model and version:
            name = model.value.rpartition("/")[2].removeprefix("tlt_").removeprefix("tao_")
            org = model.value.partition("/")[0]
            ngc = f"nvidia/tao/{name}:{version.value}" if org == "nvidia" else f"{model.value}:{version.value}"
            if re.fullmatch(r"[^/:\s]+(/[^/:\s]+){1,2}:[^/:\s]+", ngc):
                self.out.put(1, "pretrained", {"ngc": ngc, **secret}, f"{model.where} {model.value}, by today's name")
                return
            self.out.note(1, f"pretrained: {model.value} ({model.where}) is no model of NGC")
        start = self.start
        if start is None or marked(start.value):
            return
        ngc_model = facts.ngc_name(str(start.value))
        if ngc_model:
            self.out.put(1, "pretrained", {"ngc": ngc_model, **secret}, f"{start.where} {start.path}: {start.value}")
            return
        host = self.old.mounts.host(str(start.value)) or str(start.value)
        seen = f"pods see the pipeline's folder of the workspace alone (/workspace/{self.old.name}): copy it there, and"
        self.out.put(1, "pretrained", {"path": host}, f"{start.where}; {seen} name that place")

    def _stages(self) -> None:
        out, kubeflow = self.out, self.kubeflow
        out.block(0, "stages")
        out.note(1, "what is not named here is as the spec files have it; `refit plan --specs` shows what stages read")
        if "dataset_convert" in self.specs and "dataset_convert" in self.network.stages:
            out.put(1, "dataset_convert", {"spec": self.specs["dataset_convert"]}, self._from("dataset_convert"))
        self._training("train")
        wants_prune = "retrain" in self.specs or kubeflow is not None
        if wants_prune and "prune" in self.network.stages:
            where = "the prune command's -pth; it stands in no file, this is Refit's default"
            out.put(1, "prune", True if self.network.format == "yaml" else {"threshold": 0.1}, where)
            if "retrain" in self.specs:
                self._training("retrain")
            elif "train" in self.specs:
                out.put(
                    1, "retrain", {"spec": self.specs["train"]}, "no spec of a retraining was named: the training's"
                )
        if "inference" in self.specs:
            out.put(1, "inference", {"spec": self.specs["inference"]}, self._from("inference"))
        if "augment" in self.old.specs:
            self._augment()
        engine: dict[str, Any] = {"precision": "int8"}
        why = "Refit's default"
        if kubeflow and kubeflow.precision:
            engine, why = {"precision": kubeflow.precision.value}, f"{kubeflow.precision.where} data_type"
        last: Role = "retrain" if "retrain" in self.specs else "train"  # the training that makes the engine's model
        qat = said(self.old.specs[last], "qat") if last in self.specs else None
        if qat and qat.value is True and engine["precision"] == "int8":
            engine["int8"] = "qat"
            why += f"; trained for it ({qat.where})"
        out.put(1, "build_engine", engine, why)

    def _augment(self) -> None:
        """TLT's own tool read a prototxt, TAO's data services read YAML."""
        spec = self.old.specs["augment"]
        if "augment" in self.specs:
            self.out.put(1, "augment", {"spec": self.specs["augment"]}, self._from("augment"))
            return
        found, notes = facts.augmentation(spec)
        self.out.put(1, "augment", found, f"{self._from('augment')}; in TAO's data services now")
        self.made.notes += notes

    def _training(self, role: Role) -> None:
        if role not in self.specs:
            return
        out, spec = self.out, self.old.specs[role]
        out.block(1, role, self._from(role))
        out.put(2, "spec", self.specs[role])
        epochs = said(spec, "epochs")
        if epochs and isinstance(epochs.value, int) and not isinstance(epochs.value, bool) and epochs.value > 0:
            out.put(2, "epochs", epochs.value, f"{epochs.where} {epochs.path}; wins over the spec")
        own = said(spec, "qat")
        before = said(self.old.specs["train"], "qat") if role == "retrain" and "train" in self.specs else None
        if own and own.value is False and before and before.value is True:
            out.put(2, "qat", False, f"{own.where} {own.path}; else it would be as in the training")
        if own and own.value is True:
            out.put(2, "qat", True, f"{own.where} {own.path}")
            self.made.warnings.append(
                f"{own.where}: {own.path}: quantization-aware training is on: INT8 takes its scales, no calibration "
                "images; for a regular (PTQ) model set it to false in each spec, and take qat out of the pipeline file"
            )

    def _resources(self) -> None:
        gpus = self.kubeflow.gpus if self.kubeflow else None
        self.out.block(0, "resources")
        self.out.put(1, "default", _GPU, "cpus and memory stood in no file: adapt them to your nodes")
        if gpus and gpus.value > 1:
            own = {"gpus": gpus.value, "cpus": 8 * gpus.value, "memory_gib": 32 * gpus.value}
            names = ["train", *(["retrain"] if "prune" in self.network.stages else [])]
            self.out.put(1, "stages", {n: dict(own) for n in names}, f"{gpus.where} num_gpus")

    def _mounts(self) -> None:
        old = self.old.mounts
        if not old.file:
            return
        self.out.gap()
        self.out.note(0, f"{old.file}: folders of the machine, as the containers saw them:")
        for container, host in old.folders:
            self.out.note(0, f"  {container} was {host}")
        for name, value in old.envs:
            told = "(taken out: a secret)" if marked(value) else value
            self.out.note(
                0, f"  environment {name}={told}: not set by Refit; env of the cluster profile, where it is needed"
            )
            self.made.notes.append(
                f"{old.file}: Envs: {name}={told}: not set by Refit; env of the cluster profile sets it"
            )
        for name, value in old.options:
            place_ = {"user": "security.user", "shm_size": "shared_memory"}.get(name, "its pod settings")
            self.out.note(0, f"  DockerOptions.{name}={value}: in Refit {place_} of the cluster profile")

    # -- facts --

    def _said(self, role: Fact) -> list[Said]:
        return [s for spec in self.training if (s := said(spec, role))]

    def _agreed(self, role: Fact) -> Said | None:
        """What all training specs say alike."""
        found = self._said(role)
        return found[0] if found and all(f.value == found[0].value for f in found) else None

    def _converted_extension(self) -> Said | None:
        convert = self.old.specs.get("dataset_convert")
        path = "kitti_config.image_extension"
        if convert and convert.tree.has(path) and not self._said("extension"):
            return Said(convert.tree.value(path), convert.file, convert.tree.line(path), path)
        return None

    def _from(self, role: Role) -> str:
        return f"from {place(self.old.specs[role].file)}"

    def _source(self) -> tuple[str, str, Said | None, Said | None]:
        """dataset.source with its reason, and the folders in it."""
        old, convert = self.old, self.old.specs.get("dataset_convert")

        def of(path: str) -> Said | None:
            assert convert is not None
            value = convert.tree.value(path)
            return (
                Said(value, convert.file, convert.tree.line(path), path) if isinstance(value, str) and value else None
            )

        image_dir = of("kitti_config.image_dir_name") if convert else None
        label_dir = of("kitti_config.label_dir_name") if convert else None
        if old.data:
            return old.data, "--data", image_dir, label_dir
        root = of("kitti_config.root_directory_path") if convert else None
        if root is None and self.train is not None:
            path = "dataset_config.data_sources.image_directory_path"
            value = self.train.tree.values(path)
            if value:
                root = Said(str(value[0]), self.train.file, self.train.tree.line(path), path)
        if self.kubeflow or root is None or not str(root.value).startswith("/"):
            return f"inbox/{old.name}", "below the first data root; put the data here", image_dir, label_dir
        # `edit` has put the machine's path into the spec already, where a mount holds it.
        host = old.mounts.host(str(root.value)) or str(root.value)
        mapped = any(host == h or host.startswith(f"{h.rstrip('/')}/") for _, h in old.mounts.folders)
        why = f"{root.where} {root.path}"
        if not mapped:
            why += "; a path of the old container: import it with ~/.tlt_mounts.json, or name the folder here"
        else:
            why += "; pods see the inbox volume alone: the data must lie there"
        return host, why, image_dir, label_dir

    def _classes(self, source: str, label_dir: Said | None) -> tuple[list[str], dict[str, str | None], str]:
        """classes, class_map and where they come from."""
        if self.old.classes:
            return list(self.old.classes), {}, "--classes"
        for spec in self.training:
            found = said(spec, "mapping")
            if found and found.value:
                targets = {k: v.lower() for k, v in found.value.items() if v}
                classes = list(dict.fromkeys(targets.values()))
                renamed: dict[str, str | None] = {k: v for k, v in targets.items() if k != v}
                renamed |= self._as_written(source, label_dir, targets)
                return classes, renamed, f"{found.where} {found.path}"
        if self.train is not None and self.train.tree.has("inference.color_map"):
            names = self.train.tree.keys("inference.color_map")
            return names, {}, f"{self.train.file}:{self.train.tree.line('inference.color_map')} inference.color_map"
        for path in ("dataset.infer_data_sources.classmap", "evaluate.label_map", "inference.label_map"):
            value = self.train.tree.value(path) if self.train else None
            names = _class_file(Path(self.old.mounts.host(str(value)) or str(value))) if value else []
            if names and self.train:
                return names, {}, f"{value} ({self.train.file}:{self.train.tree.line(path)} {path})"
        raise ImportFault(
            "the names of the classes stand in none of these files; give the training's spec with its mapping, or name "
            "them: --classes car,person"
        )

    def _as_written(self, source: str, label_dir: Said | None, targets: dict[str, str]) -> dict[str, str | None]:
        """Names in the label files that differ from the mapping's: TAO lowers their case, and skips those it lacks."""
        folder = Path(source) / (str(label_dir.value) if label_dir else "labels")
        names = _label_names(folder)
        if not names:
            self.made.notes.append(
                f"{folder}: no labels are seen here, so the names in them were not compared; TAO lowers their case: if "
                "yours say Car, write class_map: {Car: car} (`refit dataset check` tells)"
            )
        found: dict[str, str | None] = {}
        for name, count in names.items():
            if name.lower() == "dontcare" or name in targets:
                continue
            found[name] = targets.get(name.lower())
            if found[name] is None:
                self.made.notes.append(f"{folder}: {name!r} ({count} objects) is in no mapping: left out, as TAO did")
        return found


def _file(role: Role, spec: Spec) -> str:
    return f"{role}.{'txt' if spec.tree.form == 'prototxt' else 'yaml'}"


def _label_names(folder: Path) -> Counter[str]:
    """First words of the lines of a KITTI label folder's first files."""
    names: Counter[str] = Counter()
    try:
        files = sorted(e.path for e in os.scandir(folder) if e.name.endswith(".txt") and e.is_file())[:_LABELS]
    except OSError:
        return names
    for file in files:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        names.update(line.split()[0] for line in text.splitlines() if line.strip())
    return names


def _class_file(path: Path) -> list[str]:
    """Names of a classmap (a line each) or a label map (id: name), [] where there is none to be read."""
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    if isinstance(data, dict):
        return [str(v) for v in data.values()]
    return [line.strip() for line in text.splitlines() if line.strip()]


def find_root(folder: Path, image_dir: str) -> Path:
    """The folder of an unpacked data set that holds `image_dir`: itself, or one not far below."""

    def search(at: Path, depth: int) -> Iterator[Path]:
        if (at / image_dir).is_dir():
            yield at
        elif depth:
            for below in sorted(p for p in at.iterdir() if p.is_dir()):
                yield from search(below, depth - 1)

    return next(search(folder, 3), folder)
