"""A signed release in a real Triton, and what `refit verify` says when something was changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refit import command
from refit.publish.place import REPORT, REPORT_JSON
from refit.triton import lineage
from refit.triton.__main__ import ACTIONS
from refit.triton.errors import RepositoryError, RollbackError
from refit.triton.ledger import Ledger, Record
from refit.triton.model import read_model
from refit.triton.reconcile import reconcile
from refit.triton.rollback import rollback
from refit.triton.serving import still_serving
from refit.triton.specs import ReconcileSpec, RollbackSpec, SigningSpec
from refit.triton.verify import Finding, check
from tests.triton.fixtures import Place
from tests.triton.models import write_spec

pytest.importorskip("cryptography", reason="the tools environment is older than its lock: run `make setup`")

from cryptography.hazmat.primitives.asymmetric import ec

from tests.triton.test_signing import pem, public_pem


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def released(
    place: Place, key: ec.EllipticCurvePrivateKey | None, monkeypatch: pytest.MonkeyPatch, at: str = "r7"
) -> Record:
    """Release by the stage's own command, in a run's folder with a plan; the record of what serves then."""
    run = place.ledger.parent / "runs" / at
    stage = run / "09-release"
    stage.mkdir(parents=True)
    gate = run / "01-gate_trained" / "out"
    gate.mkdir(parents=True)
    (gate / "verdict.json").write_text('{"verdict": "pass", "reason": "good", "figures": {"low": 0.7, "high": 0.9}}')
    (run / "data").mkdir()
    (run / "data" / "dataset.json").write_text('{"fingerprint": "f", "classes": ["a"], "splits": {"val": 4}}')
    entry = {"key": "k", "image": None, "environment": "tools", "argv": ["x"], "files": {"q.yaml": "floor: 0.5"}}
    stages = [{**entry, "name": "gate_trained", "action": "gate", "paths": {"stage": str(gate.parent)}}]
    plan = {"pipeline": "demo", "run": "r7", "fingerprint": "f", "snapshot": str(run / "data"), "reused": {}, "off": []}
    made_by = {"revision": "abc", "environments": {"tools": "d1"}}
    (run / "plan.json").write_text(json.dumps({**plan, "stages": stages, "made_by": made_by}))
    (stage / "request.json").write_text(json.dumps({"pipeline": "demo", "run": "r7", "key": "k7"}))
    signing = SigningSpec(public_key=public_pem(key)) if key else None
    spec = place.spec(place.model("a"), pipeline=None, run=None, signing=signing, metrics={"mAP50": 0.8})
    if key:
        monkeypatch.setenv("REFIT_SIGNING_KEY", pem(key))
    file = write_spec(spec, stage / "release.yaml")
    assert command.main("refit.triton", ACTIONS, ["release", "-e", str(file), "-r", str(stage / "out")]) == 0
    record = Ledger(place.ledger).serving(place.name)
    assert record is not None
    return record


def failed(place: Place, record: Record, key: ec.EllipticCurvePrivateKey | None) -> list[Finding]:
    public = public_pem(key) if key else None
    return [f for f in check(Ledger(place.ledger), record, public) if f.level == "FAIL"]


def test_a_card_says_what_made_the_version(
    place: Place, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = released(place, key, monkeypatch)
    card = json.loads((place.ledger / "1" / "card.json").read_text())
    assert (card["model"], card["version"], card["sha256"]) == (place.name, 1, record.sha256)
    assert card["data"]["fingerprint"] == "f"
    assert card["verdicts"]["gate_trained"]["figures"] == {"low": 0.7, "high": 0.9}
    (stage,) = card["stages"]
    assert (stage["key"], stage["digest"], stage["specs"]) == ("k", "d1", {"q.yaml": "floor: 0.5"})
    assert failed(place, record, key) == []
    told = [str(f) for f in check(Ledger(place.ledger), record, public_pem(key))]
    assert [line.split(":")[0] for line in told[:4]] == [
        "ok    files in the ledger",
        "ok    files in the repository",
        "ok    model card",
        "ok    signature",
    ]
    assert pem(key).splitlines()[1] not in "".join(
        p.read_text(errors="replace") for p in place.folder.rglob("*") if p.is_file()
    ), "no secret is written anywhere"


def test_why_a_version_serves_is_told_by_its_card(tmp_path: Path) -> None:
    """The gates that were in doubt, the one against what served, and who let it go; not all that simply passed."""
    assert list(lineage.why(tmp_path)) == [], "released by hand"
    verdicts = {
        "gate_trained": {"gate": "quality", "verdict": "pass", "reason": "0.9"},
        "gate_quantized": {"gate": "quality", "verdict": "warn", "reason": "class cat lost 0.1"},
        "gate_champion": {"gate": "quality", "verdict": "pass", "reason": "+0.012 against the champion"},
        "gate_parity": {"gate": "parity", "verdict": "pass", "reason": "agrees"},
    }
    told = ["gate_quantized: warn: class cat lost 0.1", "gate_champion: pass: +0.012 against the champion"]
    (tmp_path / "card.json").write_text(json.dumps({"verdicts": verdicts}))
    assert list(lineage.why(tmp_path)) == told
    approval = {"approved": True, "by": "lea", "when": "2026-11-22T01:10:40+00:00", "note": "looks right"}
    (tmp_path / "card.json").write_text(json.dumps({"verdicts": verdicts, "approval": approval}))
    assert list(lineage.why(tmp_path)) == [*told, "lea approved it: looks right"]


def change_repository(place: Place) -> None:
    path = place.repository / place.name / "1" / "model.onnx"
    path.write_bytes(place.model("b", seed=9).read_bytes())


def change_card(place: Place) -> None:
    path = place.ledger / "1" / "card.json"
    path.write_text(path.read_text().replace("0.8", "0.9"))


def change_ledger_and_record(place: Place) -> None:
    """Whoever may write the ledger can change card and record alike; the signature is what he cannot make."""
    change_card(place)
    from refit.files import sha256

    path = place.ledger / "1" / "release.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "card": sha256(place.ledger / "1" / "card.json")}))


def drop_signature(place: Place) -> None:
    (place.ledger / "1" / "model.sig").unlink()


def unload(place: Place) -> None:
    place.client.unload(place.name)


@pytest.mark.parametrize(
    ("change", "about", "said"),
    [
        (change_repository, "files in the repository", "somebody changed it"),
        (change_card, "model card", "somebody changed it"),
        (change_ledger_and_record, "signature", "card.json not as signed"),
        (drop_signature, "signature", "there is no signature"),
        (unload, "Triton", "serves versions none, the ledger says 1"),
    ],
)
def test_what_was_changed_is_found(
    place: Place,
    key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Place], None],
    about: str,
    said: str,
) -> None:
    released(place, key, monkeypatch)
    change(place)
    record = Ledger(place.ledger).read(1)
    assert record is not None
    found = failed(place, record, key)
    assert any(f.about.startswith(about) and said in f.text for f in found), found


def test_what_comes_to_lie_beside_a_version_breaks_no_signature(
    place: Place, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run's report, which is published after the release, and the rest of a write that was killed."""
    record = released(place, key, monkeypatch)
    for name in (REPORT, REPORT_JSON, ".release.json.tmp-0"):
        (place.ledger / "1" / name).write_text("{}")
    assert failed(place, record, key) == []
    (place.ledger / "1" / "model" / "model.onnx.data").write_bytes(b"weights of somebody else")
    assert any("model/model.onnx.data not as signed" in f.text for f in failed(place, record, key))


def test_a_repository_that_is_not_here_is_no_fault(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster the model repository is a volume that this machine does not mount."""
    record = released(place, None, monkeypatch).model_copy(update={"repository": "/nowhere/models"})
    told = [str(f) for f in check(Ledger(place.ledger), record, None)]
    assert any(line.startswith("note  files in the repository: they cannot be seen from here") for line in told)
    assert failed(place, record, None) == []


def test_without_a_key_there_is_a_card_and_no_signature(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    record = released(place, None, monkeypatch)
    assert (record.signed_by, (place.ledger / "1" / "model.sig").exists()) == (None, False)
    assert failed(place, record, None) == []


def test_a_missing_key_stops_the_release_before_anything_is_touched(
    place: Place, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REFIT_SIGNING_KEY", raising=False)
    more: dict[str, Any] = {"signing": SigningSpec(public_key=public_pem(key))}
    file = write_spec(place.spec(place.model("a"), **more), place.folder / "release.yaml")
    out = place.folder / "s" / "out"
    assert command.main("refit.triton", ACTIONS, ["release", "-e", str(file), "-r", str(out)]) == 2
    assert "there is no signing key" in capsys.readouterr().err
    assert not Path(place.ledger).exists()
    assert place.versions == []


def remove_every_trace(place: Place) -> None:
    """Whoever may write the ledger can take away that a version was ever signed."""
    drop_signature(place)
    path = place.ledger / "1" / "release.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "signed_by": None}))


@pytest.mark.parametrize("take_away", [None, drop_signature, remove_every_trace])
def test_a_version_that_serves_unsigned_is_said_and_signed_by_its_next_release(
    place: Place,
    key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
    take_away: Callable[[Place], None] | None,
) -> None:
    """Released before `signing` was set (None), or its signature was taken away since."""
    released(place, key if take_away else None, monkeypatch)
    ledger, report = Ledger(place.ledger), place.ledger.parent / "runs" / "r7" / "09-release" / "out" / "release.json"
    if take_away:
        assert still_serving(report, url=place.server.url, signed_in=ledger)
        take_away(place)
    where = {"url": place.server.url, "repository": place.repository, "ledger": place.ledger}
    spec = ReconcileSpec.model_validate({"model": place.name, "public_key": public_pem(key), **where})
    (said,) = reconcile(spec).differences
    assert "it serves unsigned, and release.signing asks for a signature: start its pipeline again" in said
    record = ledger.read(1)
    assert record is not None
    (finding,) = failed(place, record, key)
    assert (finding.about, "it serves unsigned" in finding.text) == ("signature", True)
    with pytest.raises(RepositoryError, match=r"nothing was mended, .* there is no signature"):
        reconcile(spec.model_copy(update={"mend": True}))
    assert still_serving(report, url=place.server.url), "a pipeline that signs nothing has nothing to do"
    assert not still_serving(report, url=place.server.url, signed_in=ledger), "so that its release runs again"
    assert released(place, key, monkeypatch, at="r8").version == 2
    assert reconcile(spec).outcome == "agrees"
    assert released(place, key, monkeypatch, at="r9").version == 2, "signed once is enough"


def add_a_file(place: Place) -> None:
    (place.repository / place.name / "1" / "model.onnx.data").write_bytes(b"weights of somebody else")


def change_model_and_record(place: Place) -> None:
    """Other files in the repository, and a record that says that they were released."""
    change_repository(place)
    path = place.ledger / "1" / "release.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "sha256": read_model(place.repository / place.name / "1").sha256}))


def swap_channels_in_the_record(place: Place) -> None:
    """A configuration under which clients read the answers in another way; the files are as they were."""
    path = place.ledger / "1" / "release.json"
    text = path.read_text()
    assert "rgb" in text
    path.write_text(text.replace("rgb", "bgr"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_model_and_record, "release.json: its sha256 is not that of the signed card"),
        (swap_channels_in_the_record, "release.json: its config is not that of the signed card"),
        (change_ledger_and_record, "card.json not as signed"),
    ],
)
def test_mending_does_not_believe_a_ledger_that_was_changed(
    place: Place,
    key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Place], None],
    told: str,
) -> None:
    released(place, key, monkeypatch)
    where = {"url": place.server.url, "repository": place.repository, "ledger": place.ledger}
    spec = ReconcileSpec.model_validate({"model": place.name, "public_key": public_pem(key), **where})
    assert reconcile(spec).outcome == "agrees"
    change(place)
    before = {p: p.read_bytes() for p in place.repository.rglob("*") if p.is_file()}
    assert any(told in line for line in reconcile(spec).differences)
    with pytest.raises(RepositoryError, match=f"nothing was mended, .* cannot be trusted: .*{told}.* refit rollback"):
        reconcile(spec.model_copy(update={"mend": True}))
    assert {p: p.read_bytes() for p in place.repository.rglob("*") if p.is_file()} == before


def test_a_roll_back_wants_the_signature_of_the_version(
    place: Place,
    key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What does not hold is refused before anything is touched."""
    released(place, key, monkeypatch)
    place.release(place.model("b", seed=5))
    where = {"url": place.server.url, "repository": place.repository, "ledger": place.ledger}
    back = RollbackSpec.model_validate({"model": place.name, "public_key": public_pem(key), **where})
    (place.folder / "kept").mkdir()
    kept = [place.ledger / "1", place.repository / place.name / "1"]
    for i, folder in enumerate(kept):
        shutil.copytree(folder, place.folder / "kept" / str(i))
    for change, told in (
        (change_card, "card.json not as signed"),
        (drop_signature, "there is no signature. Go back to another version; or, where it is known to be good"),
        (change_repository, "is not the file that was released as version 1"),
        (change_model_and_record, "release.json: its sha256 is not that of the signed card"),
        (add_a_file, "the files in the model repository are not those that were signed"),
    ):
        change(place)
        with pytest.raises(RollbackError, match=told):
            rollback(back)
        for i, folder in enumerate(kept):
            shutil.rmtree(folder)
            shutil.copytree(place.folder / "kept" / str(i), folder)
    other = public_pem(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(RollbackError, match="signed with another key"):
        rollback(back.model_copy(update={"public_key": other}))
    assert place.client.ready_versions(place.name) == (2,)
    assert rollback(back).version == 1
    with pytest.raises(RollbackError, match=r"version 2 .* there is no signature"):
        rollback(back.model_copy(update={"to": 2}))
