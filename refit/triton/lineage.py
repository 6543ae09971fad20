"""The model card of a release: what it is, what it was made from, what every gate said, who let it go.

``<releases>/<version>/card.json`` is written once and never changed, and stays when the files of the version go;
release.json, whose state changes, has its sha256. With a signing key, ``model.sig`` beside it signs the card and the
files together (`refit.triton.signing`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refit.files import write_text
from refit.gates.approval import Decision
from refit.publish import place
from refit.runtime import report
from refit.triton.errors import ArtefactError

if TYPE_CHECKING:
    from refit.triton.signing import Keys

FILE = "card.json"
LEFT_OUT = frozenset({"release.json", "reference.npz", place.REPORT, place.REPORT_JSON})  # come or change after signing
INT8 = ("calibrate", "quantize", "build_engine")  # actions whose JSON results say how INT8 came about
EDGE = "edge"  # the stage that packs edge bundles
MOST_BYTES = 256 * 2**10  # of one such result in a card


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Lineage:
    """A card that does not know its version yet, and the keys to sign it with."""

    card: Mapping[str, Any]
    keys: Keys | None = None

    def of(self, model: str, version: int, sha256: str, config: str, metrics: Mapping[str, float]) -> Lineage:
        about = {"schema": 1, "model": model, "version": version, "sha256": sha256, "config": digest(config)}
        return replace(self, card={**about, "metrics": dict(metrics), **self.card})

    @property
    def text(self) -> str:
        return json.dumps(self.card, indent=1, ensure_ascii=False) + "\n"

    @property
    def told(self) -> dict[str, str]:
        """What release.json says of it."""
        told = {"card": digest(self.text)}
        return told | ({"signed_by": self.keys.fingerprint} if self.keys else {})

    def write(self, folder: Path, installed: Path) -> None:
        """Write card and signature into a version's folder of the ledger, and hold the signature against the files
        that Triton is going to load. Raises ArtefactError."""
        write_text(folder / FILE, self.text)
        if self.keys is None:
            return
        from refit.triton import signing  # cryptography is needed only here

        try:
            name = f"{self.card['model']}:{self.card['version']}"
            signing.sign(folder, name, self.keys.private, LEFT_OUT)
            signed = signing.verify(folder, self.keys.public).files
        except signing.SigningError as exc:
            raise ArtefactError(str(exc)) from None
        there = {f"model/{name}": digest for name, digest in signing.digests(installed, frozenset()).items()}
        if {**there, FILE: self.told["card"]} != signed:
            raise ArtefactError(
                f"{installed}: is not what was signed; it changed while it was copied, or the disk is bad"
            )


def why(folder: Path) -> Iterator[str]:
    """Of a version's folder in the ledger: what the gates said that let it go, and who did. The gates that were in
    doubt, and that which held it against what served, or the last before; nothing where there is no card."""
    try:
        card = json.loads((folder / FILE).read_text(encoding="utf-8"))
        decided = Decision.model_validate(card["approval"]).sentence() if card.get("approval") else ""
    except (OSError, ValueError):
        return
    quality = {name: v for name, v in card.get("verdicts", {}).items() if v.get("gate") == "quality"}
    said = "gate_champion" if "gate_champion" in quality else next(reversed(quality), None)
    for name, verdict in card.get("verdicts", {}).items():
        if name == said or verdict.get("verdict") != "pass":
            yield f"{name}: {verdict.get('verdict')}: {verdict.get('reason')}"
    if decided:
        yield decided


def gather(run: Path, decision: Decision | None) -> dict[str, Any]:
    """What a run's folder says of the model that it releases; little, where the release was started by hand."""
    approval = {"approval": decision.model_dump()} if decision is not None else {}
    plan = report.current_plan(run)
    if plan is None:
        return {"run": {"folder": run.name}, **approval}
    made_by, file = plan.get("made_by", {}), dict(plan.get("pipeline_file", {}))
    stages = [s for s in plan["stages"] if s["name"] not in plan["off"] and s["action"] != "release"]
    folders = {s["name"]: Path(plan["reused"].get(s["name"]) or s["paths"]["stage"]) for s in stages}
    results = {name: report.read_json(folder / "result.json") or {} for name, folder in folders.items()}
    return {
        "run": {"folder": plan["run"], "id": plan.get("run_id"), "conf": plan.get("conf", {})},
        "pipeline": {"file": file.pop("name", None), **file, "name": plan["pipeline"]},
        "made_by": made_by,
        "data": _data(plan),
        "start_from": plan.get("start_from", {}),
        "stages": [_stage(s, folders[s["name"]], results[s["name"]], made_by) for s in stages],
        "int8": {
            s["name"]: found
            for s in stages
            if s["action"] in INT8 and (found := _tables(folders[s["name"]], results[s["name"]]))
        },
        **({EDGE: report.read_json(folders[EDGE] / "out" / "edge.json")} if EDGE in folders else {}),
        "verdicts": {
            s["name"]: report.read_json(folders[s["name"]] / "out" / "verdict.json")
            for s in stages
            if s["action"] == "gate"
        },
        **approval,
    }


def _data(plan: Mapping[str, Any]) -> dict[str, Any]:
    about = report.read_json(Path(plan["snapshot"]) / "dataset.json") or {}
    kept = ("classes", "splits", "objects", "issues", "provenance")
    evaluation = plan.get("evaluation", about.get("evaluation"))
    return {"fingerprint": plan["fingerprint"], **{k: about.get(k) for k in kept}, "evaluation": evaluation}


def _stage(
    stage: Mapping[str, Any], folder: Path, result: Mapping[str, Any], made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """What decided a stage's result, and what came out; secrets stand in it by name only."""
    environments = made_by.get("environments", {})
    return {
        "name": stage["name"],
        "action": stage["action"],
        "key": stage["key"],
        "image": stage["image"],
        "environment": stage["environment"],
        "digest": environments.get(stage["action"]) or environments.get(stage["environment"]),
        "argv": stage["argv"],
        "specs": stage["files"],
        "run": folder.parent.name,
        "ended": result.get("ended"),
        "seconds": result.get("seconds"),
        "metrics": result.get("metrics", {}),
        "outputs": {n: {"sha256": o["sha256"], "bytes": o["bytes"]} for n, o in result.get("outputs", {}).items()},
    }


def _tables(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON files among a stage's results: the INT8 report, what a calibration rests on, an engine's record."""
    found = {}
    for name, output in result.get("outputs", {}).items():
        path = folder / "out" / output["path"]
        if path.suffix == ".json" and output["bytes"] <= MOST_BYTES and (value := report.read_json(path)) is not None:
            found[name] = value
    return found
