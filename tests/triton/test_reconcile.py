"""What somebody did to a model repository or a server behind the ledger's back: seen, said, refused and put right."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from refit.command import Rejected
from refit.status import StatusWriter
from refit.triton.errors import RepositoryError
from refit.triton.ledger import Ledger
from refit.triton.reconcile import reconcile
from refit.triton.serving import is_other
from refit.triton.specs import ReconcileReport, ReconcileSpec
from refit.triton.stage import run_reconcile
from tests.triton.fixtures import Place
from tests.triton.models import INPUT, noise


def compared(place: Place, **more: Any) -> ReconcileReport:
    where = {"url": place.server.url, "repository": place.repository, "ledger": place.ledger, "model": place.name}
    return reconcile(ReconcileSpec.model_validate({**where, "timeout_seconds": 60, "lock_seconds": 20, **more}))


def replace_model(place: Place) -> None:
    """A new file in place of the one that serves, which Triton goes on serving until it loads again."""
    other = place.model("other", seed=11)
    (place.repository / place.name / "2" / "model.onnx").write_bytes(other.read_bytes())


def replace_and_load(place: Place) -> None:
    replace_model(place)
    config = place.repository / place.name / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    place.client.load(place.name)


def remove_files(place: Place) -> None:
    for path in sorted((place.repository / place.name / "2").iterdir()):
        path.unlink()


def edit_config(place: Place) -> None:
    config = place.repository / place.name / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))


def serve_another_version(place: Place) -> None:
    config = place.repository / place.name / "config.pbtxt"
    config.write_text(config.read_text().replace("versions: 2", "versions: 1"))
    place.client.load(place.name)


def leave_both_loaded(place: Place) -> None:
    """As a watch that was killed leaves it."""
    config = place.repository / place.name / "config.pbtxt"
    config.write_text(config.read_text().replace("    versions: 2", "    versions: 1\n    versions: 2"))
    place.client.load(place.name)


def unload(place: Place) -> None:
    place.client.unload(place.name)


CHANGES: list[tuple[Callable[[Place], None], str]] = [
    (replace_model, "/2 is not what was released (sha256 "),
    (replace_and_load, "/2 is not what was released (sha256 "),
    (remove_files, "/2 is not what was released"),
    (edit_config, "config.pbtxt is not that of version 2: somebody changed it"),
    (serve_another_version, "serves versions [1]"),
    (leave_both_loaded, "keeps versions [1, 2] loaded, and the watch of version 2 is over"),
    (unload, "serves nothing"),
]


@pytest.fixture
def two(place: Place) -> Place:
    """Version 2 serves, version 1 was replaced by it."""
    place.release(place.model("a"))
    place.release(place.model("b", seed=5))
    return place


def test_what_is_as_the_ledger_says_is_left_alone(two: Place) -> None:
    config = two.repository / two.name / "config.pbtxt"
    before = (config.read_bytes(), config.stat().st_mtime_ns)
    for mend in (False, True):
        assert compared(two, mend=mend) == ReconcileReport(outcome="agrees", model=two.name, version=2, differences=[])
    assert (config.read_bytes(), config.stat().st_mtime_ns) == before


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_what_differs_is_said_and_mended(two: Place, change: Callable[[Place], None], said: str) -> None:
    expected = two.client.infer(two.name, {INPUT: noise(1)})
    change(two)
    report = compared(two)
    assert report.outcome == "differs"
    assert said in "; ".join(report.differences)
    mended = compared(two, mend=True, by="lea", reason="night shift")
    assert mended.outcome == "mended"
    assert mended.differences == report.differences
    assert compared(two).outcome == "agrees"
    answer = two.client.infer(two.name, {INPUT: noise(1)})
    assert answer.version == 2
    for name, array in expected.outputs.items():
        assert (answer.outputs[name] == array).all()
    record = Ledger(two.ledger).read(2)
    assert record is not None
    assert record.state == "serving"
    assert "reconcile, lea: night shift" in record.reason


def test_the_changed_files_are_kept_for_a_look(two: Place) -> None:
    replace_model(two)
    changed = (two.repository / two.name / "2" / "model.onnx").read_bytes()
    compared(two, mend=True)
    (kept,) = two.beside("by-hand").iterdir()
    assert kept.name.startswith("2-")
    assert (kept / "model.onnx").read_bytes() == changed


@pytest.mark.parametrize("change", [replace_model, remove_files])
def test_a_champion_that_was_changed_by_hand_stops_a_release(two: Place, change: Callable[[Place], None]) -> None:
    change(two)
    with pytest.raises(RepositoryError, match=r"/2 is not what was released.*refit reconcile .* --mend"):
        two.release(two.model("c", seed=8))
    assert two.versions == ["1", "2"]
    compared(two, mend=True)
    assert two.release(two.model("c", seed=8)).version == 3


def test_a_second_version_within_the_watch_is_meant_to_be_there(two: Place) -> None:
    leave_both_loaded(two)
    assert compared(two, watch_minutes=10).outcome == "agrees"
    assert compared(two, watch_minutes=0).outcome == "differs"


def test_a_release_that_was_killed_is_said_and_settled(two: Place) -> None:
    journal = two.beside("staging") / "journal.json"
    journal.parent.mkdir(parents=True)
    change = {"kind": "release", "model": two.name, "version": 3, "champion": [2], "had_config": True}
    journal.write_text(json.dumps({**change, "ledger": str(two.ledger), "keep_versions": 3, "run": "r9"}))
    assert "a change of the model is under way, or was left half done" in compared(two).differences
    assert compared(two, mend=True).outcome == "mended"
    assert not journal.exists()


def test_without_a_good_copy_nothing_is_put_back(two: Place) -> None:
    replace_model(two)
    (Ledger(two.ledger).model(2) / "model.onnx").write_bytes(b"torn")
    with pytest.raises(RepositoryError, match="the ledger has no good copy, so go back to another version"):
        compared(two, mend=True)
    assert two.client.ready_versions(two.name) == (2,)


def test_several_servers_are_each_compared(two: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second address is nobody's: what cannot be asked is said, with its address."""
    monkeypatch.setenv("REFIT_TRITON_SERVERS", f"{two.server.url},http://127.0.0.1:9")
    report = compared(two)
    assert report.outcome == "differs"
    assert any("127.0.0.1:9" in line for line in report.differences)


def test_bind_is_told_when_something_else_serves(two: Place) -> None:
    """A new model would be compared with the ledger's champion: it must not go unseen that another one serves."""
    record = Ledger(two.ledger).read(2)
    assert record is not None
    assert not is_other(record, two.server.url)
    assert not is_other(record, "http://127.0.0.1:9"), "a server that does not answer says nothing"
    serve_another_version(two)
    assert is_other(record, two.server.url)


def test_a_model_that_nobody_released_is_not_compared(place: Place) -> None:
    assert compared(place) == ReconcileReport(outcome="agrees", model=place.name, version=None, differences=[])


def test_as_a_stage_a_difference_is_a_rejection(two: Place) -> None:
    unload(two)
    out = two.folder / "out"
    out.mkdir()
    spec = ReconcileSpec(model=two.name, url=two.server.url, repository=two.repository, ledger=two.ledger)
    with pytest.raises(Rejected, match=r"is not what the ledger says: .* serves nothing"):
        run_reconcile(spec, out, StatusWriter(out))
    assert (out / "summary.json").exists()
