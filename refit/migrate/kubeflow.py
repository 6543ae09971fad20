"""The input YAML of the Kubeflow TLT pipeline, in its three shapes. All scalars may be text (`num_gpus: '1'`).

1. `url, api_key, num_gpus, model{...}, specs{data_convert_spec, train_spec, retrain_spec}`
2. the same with `dvc_specs{use_dvc, git_repo, git_user, azure_*_container, commit_msg, commit_checkout_msg}`
3. `dataset{name, version, url}` in place of `url`, and `spec{spec_url}`, a zip
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from refit.migrate.cli import Role
from refit.migrate.facts import Said
from refit.specs import Document, Key, Problem, SpecError, did_you_mean, parse_yaml
from refit.tao import networks

ROLES: dict[str, Role] = {
    "data_convert_spec": "dataset_convert",
    "train_spec": "train",
    "retrain_spec": "retrain",
    "augment_spec": "augment",
    "inference_spec": "inference",
}
_KNOWN = {
    (): ("url", "api_key", "num_gpus", "model", "specs", "dvc_specs", "dataset", "spec"),
    ("model",): ("model_name", "model_download_dir", "model_type", "base_model", "data_type"),
    ("dataset",): ("name", "version", "url"),
    ("spec",): ("spec_url",),
    ("dvc_specs",): (
        "use_dvc", "git_repo", "git_user", "azure_model_container", "azure_data_container", "azure_specs_container",
        "commit_msg", "commit_checkout_msg",
    ),
}  # fmt: skip
_PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Dvc:
    git_repo: str
    git_user: str
    commit_msg: str
    checkout_msg: str  # "": the latest
    containers: tuple[tuple[str, str], ...]  # (what, container)
    line: int


@dataclass(frozen=True)
class Kubeflow:
    """What it says; None or empty: nothing."""

    file: str
    network: Said
    backbone: Said | None
    model_type: Said | None
    precision: Said | None
    gpus: Said | None
    url: Said | None
    name: Said | None
    version: Said | None
    spec_url: Said | None
    specs: tuple[tuple[Role, Said], ...]
    dvc: Dvc | None
    notes: tuple[str, ...]


def read(text: str, file: str) -> Kubeflow:
    """Raises SpecError with every fault."""
    doc = parse_yaml(text, file)
    problems: list[Problem] = []
    notes: list[str] = []

    def get(*key: str) -> Said | None:
        at: Any = doc.data
        for part in key:
            at = at.get(part) if isinstance(at, dict) else None
        if at is None or at == "":
            return None
        if isinstance(at, dict | list):
            problems.append(doc.problem(key, "must be one value"))
            return None
        return Said(str(at).strip(), file, doc.line(key), ".".join(key))

    _strangers(doc, notes)
    network = get("model", "base_model")
    if network is None:
        problems.append(doc.problem(("model", "base_model"), "is missing; it names the network, e.g. detectnet_v2"))
        network = Said("", file, 0, "")
    elif network.value not in networks.known():
        hint = did_you_mean(network.value, list(networks.known())) or f"; it trains {', '.join(networks.known())}"
        problems.append(doc.problem(("model", "base_model"), f"Refit does not train {network.value!r}{hint}"))
    precision = get("model", "data_type")
    if precision is not None:
        if precision.value.lower() not in _PRECISIONS:
            problems.append(doc.problem(("model", "data_type"), f"{precision.value!r}; use {', '.join(_PRECISIONS)}"))
        precision = Said(precision.value.lower(), file, precision.line, precision.path)
    gpus = get("num_gpus")
    if gpus is not None:
        if not re.fullmatch(r"[1-9]\d?", gpus.value):
            problems.append(doc.problem(("num_gpus",), f"{gpus.value!r} is no number of GPUs; use 1 to 64"))
        else:
            gpus = Said(int(gpus.value), file, gpus.line, gpus.path)
    url, other = get("url"), get("dataset", "url")
    if url is not None and other is not None and url.value != other.value:
        problems.append(doc.problem(("url",), f"and dataset.url (line {other.line}) differ; keep one"))
    specs = tuple((role, found) for key, role in ROLES.items() if (found := get("specs", key)) is not None)
    made = Kubeflow(
        file=file,
        network=network,
        backbone=get("model", "model_name"),
        model_type=get("model", "model_type"),
        precision=precision,
        gpus=gpus,
        url=url or other,
        name=get("dataset", "name"),
        version=get("dataset", "version"),
        spec_url=get("spec", "spec_url"),
        specs=specs,
        dvc=_dvc(doc, get),
        notes=tuple(notes),
    )
    if problems:
        raise SpecError(problems)
    return made


def _dvc(doc: Document, get: Any) -> Dvc | None:
    use = get("dvc_specs", "use_dvc")
    if use is None or use.value.lower() not in ("true", "yes", "1", "on"):
        return None

    def text(key: str) -> str:
        value = get("dvc_specs", key)
        return value.value if value else ""

    checkout = text("commit_checkout_msg")
    containers = [(what, text(f"azure_{what}_container")) for what in ("data", "specs", "model")]
    return Dvc(
        git_repo=text("git_repo"),
        git_user=text("git_user"),
        commit_msg=text("commit_msg"),
        checkout_msg="" if checkout.lower() == "latest" else checkout,
        containers=tuple((what, name) for what, name in containers if name),
        line=doc.line(("dvc_specs",)),
    )


def _strangers(doc: Document, notes: list[str]) -> None:
    """Keys that no shape has: told, not refused."""
    for at, known in _KNOWN.items():
        block: Any = doc.data
        for part in at:
            block = block.get(part) if isinstance(block, dict) else None
        for name in block if isinstance(block, dict) else ():
            key: Key = (*at, name)
            if name not in known:
                hint = did_you_mean(str(name), list(known))
                notes.append(f"{doc.problem(key, f'is not carried over: import does not know it{hint}')}")
    specs = doc.data.get("specs")
    for name in specs if isinstance(specs, dict) else ():
        if name not in ROLES:
            notes.append(f"{doc.problem(('specs', name), 'is not carried over: no stage reads such a spec')}")
