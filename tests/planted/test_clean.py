"""Clean runs, each clean in another way: every gate must let them pass, with no warning and no question.

The first is the run that faults are planted in. Most of the others go on from it, and Refit reuses what they have in
common with it: what each is about runs anew. The table of them: docs/planted.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from refit.triton.client import TritonClient
from refit.triton.installation import find
from refit.triton.server import CONTROL_KEY_VARIABLE, TritonServer
from tests.planted import colours
from tests.planted.bed import PIPELINE, Bed, Good, Told, changed
from tests.planted.fixtures import needs_all
from tests.triton.test_signing import pem, public_pem

pytestmark = needs_all
SIGNING = ec.generate_private_key(ec.SECP256R1())
RELEASED = changed(
    PIPELINE, {"release": {"prove": False, "signing": {"secret": "SIGNING", "public_key": public_pem(SIGNING)}}}
)
"""What a throwaway Triton would say, the stage prove has asked."""
OTHER_RANGES = {"stages.quantize.method": "minmax", "stages.quantize.images": 24}


def judged(told: Told) -> list[str]:
    """The gates of a run that went well, which all said pass, of data in which nothing was found."""
    assert told.code == 0, told.text
    gates = {}
    for stage in told.plan["stages"]:
        if stage["action"] == "gate" and stage["name"] not in told.plan["off"]:
            folder = Path(told.plan["reused"].get(stage["name"]) or stage["paths"]["stage"])
            if (folder / "out" / "verdict.json").exists():  # not after `until`
                gates[stage["name"]] = json.loads((folder / "out" / "verdict.json").read_text())
    assert {name: v["reason"] for name, v in gates.items() if v["verdict"] != "pass"} == {}
    issues = json.loads((Path(told.plan["snapshot"]) / "dataset.json").read_text())["issues"]
    assert issues == {}
    return list(gates)


def anew(told: Told) -> list[str]:
    """The stages that this run has run itself."""
    skip = {*told.plan["reused"], *told.plan["off"]}
    names = [s["name"] for s in told.plan["stages"] if Path(s["paths"]["stage"], "result.json").exists()]
    return [name for name in names if name not in skip]


def test_the_run_that_faults_are_planted_in(good: Good) -> None:
    gates = [s["name"] for s in good.plan["stages"] if s["action"] == "gate" and s["name"] not in good.plan["off"]]
    assert gates == ["gate_trained", "gate_retrained", "gate_quantized", "gate_parity"]
    for gate in gates:
        assert json.loads((good.out(gate) / "verdict.json").read_text())["verdict"] == "pass"


def test_files_that_were_touched(good: Good, home: Bed) -> None:
    """Every file has another time: all are looked at again, and nothing has changed."""
    for path in (home.home / "data" / "colours").rglob("*.*"):
        os.utime(path)
    told = home.run(PIPELINE, "gate_parity")
    assert len(judged(told)) == 4
    assert anew(told) == []


def test_other_pictures_for_the_proof(good: Good, home: Bed) -> None:
    told = home.run(changed(PIPELINE, {"gates.parity.images": 12}), "gate_parity")
    assert len(judged(told)) == 4
    assert anew(told) == ["prepare_proof", "prove", "gate_parity"]


def test_int8_by_percentiles_without_a_ladder(good: Good, home: Bed) -> None:
    how = {"stages.quantize.method": "percentile", "stages.quantize.ladder": []}
    told = home.run(changed(PIPELINE, how), "gate_quantized")
    assert judged(told) == ["gate_trained", "gate_retrained", "gate_quantized"]
    assert anew(told) == ["quantize", "evaluate_quantized", "gate_quantized"]


@pytest.fixture(scope="module")
def first(good: Good, home: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bed, Told]]:
    """The first release: the same run once more, with a Triton to release to."""
    folder = tmp_path_factory.mktemp("serving")
    key, models = "only-for-tests", folder / "models"
    with TritonServer(models, folder / "run", control_key=key, installation=find(), stop_seconds=0) as server:
        where = {"REFIT_TRITON_URL": server.url, "REFIT_MODEL_REPOSITORY": str(models), CONTROL_KEY_VARIABLE: key}
        bed = replace(home, triton={**where, "REFIT_SECRET_SIGNING": pem(SIGNING)})
        yield bed, bed.run(RELEASED, None)


def served(bed: Bed) -> tuple[int, ...]:
    with TritonClient(bed.triton["REFIT_TRITON_URL"], control_key=bed.triton[CONTROL_KEY_VARIABLE]) as client:
        return client.ready_versions("planted")


def test_the_same_run_again_is_released(first: tuple[Bed, Told]) -> None:
    _, told = first
    assert len(judged(told)) == 4
    assert anew(told) == ["release"]


def test_a_float_model_against_an_int8_champion(first: tuple[Bed, Told]) -> None:
    bed, _ = first
    told = bed.run(changed(RELEASED, {"stages.quantize": False}), "gate_champion")
    assert judged(told) == ["gate_trained", "gate_retrained", "gate_champion"]
    assert "train" in told.plan["reused"]


def test_another_calibration_takes_the_champions_place_and_the_champion_its_own_again(first: tuple[Bed, Told]) -> None:
    """By way of a trial beside the champion; after a roll back, whose signature holds beside the published report, the
    first model's run has nothing left to do."""
    bed, _ = first
    canary = {"images": 8, "max_slowdown": 1000}  # this machine may be busy
    told = bed.run(changed(RELEASED, {**OTHER_RANGES, "release.canary": canary}), None)
    assert len(judged(told)) == 5
    assert anew(told)[-2:] == ["canary", "release"]
    assert served(bed) == (2,)
    public = bed.home / "key.pub"
    public.write_text(public_pem(SIGNING), encoding="utf-8")
    back = bed.cli("rollback", "planted", "--reason", "a drill", "--public-key", public)
    assert back.returncode == 0, back.stdout + back.stderr
    assert served(bed) == (1,)
    told = bed.run(RELEASED, None)
    assert len(judged(told)) == 4
    assert anew(told) == [], "what it made serves"


def test_grey_pictures_of_one_class_as_voc(tmp_path: Path) -> None:
    """PNG of one channel, another seed."""
    bed = Bed(tmp_path)
    source = bed.data(seed=5, classes=("red",), grey=True, **colours.FEW)
    told = bed.run(converted(bed, source, "voc", {"classes": ["red"], "network.channels": 1}), "gate_trained")
    assert judged(told) == ["gate_trained"]


def test_pictures_in_a_letterbox_of_two_classes_as_coco(tmp_path: Path) -> None:
    """Higher than wide in an input wider than high, released in float32."""
    bed = Bed(tmp_path)
    source = bed.data(seed=9, classes=colours.CLASSES[:2], height=128, **colours.FEW)
    how: dict[str, Any] = {"classes": list(colours.CLASSES[:2]), "stages.quantize": False, "network.input_height": 112}
    told = bed.run(converted(bed, source, "coco", how), "gate_parity")
    assert judged(told) == ["gate_trained", "gate_parity"]


def converted(bed: Bed, source: Path, form: str, how: dict[str, Any]) -> dict[str, Any]:
    """A pipeline without pruning over the data set in another format, by `refit dataset convert`."""
    lists = [word for part in ("train", "val") for word in ("--list", f"{part}={part}.txt")]
    done = bed.cli("dataset", "convert", source, source.with_name(form), "--to", form, *lists)
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = {"source": form, "classes": how.pop("classes"), "split": {"lists": "own"}}
    return changed(PIPELINE, {"dataset": dataset, "stages.prune": False, "stages.retrain": False, **how})
