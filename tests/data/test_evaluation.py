"""What was evaluated once never trains, whatever arrives afterwards and however it is called."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("simplejpeg", reason="runs in the tools environment only")

from hypothesis import event, given, settings
from hypothesis import strategies as st

from refit.command import StageError
from refit.data import evaluation, groups, split
from refit.data.evaluation import Memory
from refit.data.model import Box, Sample
from refit.data.settings import Split


def sample(name: str, picture: int, classes: Sequence[str] = ("car",), group: str = "", x1: float = 1) -> Sample:
    boxes = tuple(Box(c, x1, 2, 30, 40) for c in classes)
    return Sample(name, name, f"images/{name}", f"{picture:064x}", 100, 64, 48, boxes, groups=(group,) if group else ())


def samples(count: int, **more: Any) -> list[Sample]:
    return [sample(f"{i:03}.jpg", i, **more) for i in range(count)]


@dataclass
class Workspace:
    """Takes data sets one after the other, as ingest does."""

    folder: Path
    by: Split = Split()  # noqa: RUF009

    def take(self, arrived: Sequence[Sample], trained: set[str] | None = None) -> evaluation.Division:
        memory = self.memory
        made = evaluation.divide(arrived, self.by, memory, trained)
        kept = [s for s in arrived if s.file in made.parts]
        assert evaluation.record(self.folder, memory, kept, made.parts, "test")
        return made

    @property
    def memory(self) -> Memory:
        return evaluation.read(self.folder)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "evaluation")


def evaluated(parts: Mapping[str, str]) -> set[str]:
    return {file for file, part in parts.items() if part == "val"}


def codes(made: evaluation.Division) -> list[str]:
    return [f.code for f in made.faults]


def test_new_images_train(workspace: Workspace) -> None:
    first = workspace.take(samples(50))
    second = workspace.take(samples(60))
    assert len(evaluated(first.parts)) == 10
    assert evaluated(second.parts) == evaluated(first.parts)
    assert len(workspace.memory.history) == 1


def test_another_name_and_other_labels_change_no_side(workspace: Workspace) -> None:
    first = evaluated(workspace.take(samples(50)).parts)
    again = [replace(s, file=f"new-{s.file}", objects=(Box("car", 0, 0, 9, 9),)) for s in samples(50)]
    assert evaluated(workspace.take(again).parts) == {f"new-{file}" for file in first}


def test_a_picture_that_was_encoded_anew_stays_by_its_name(workspace: Workspace) -> None:
    first = evaluated(workspace.take(samples(50)).parts)
    again = [replace(s, sha256=f"{i + 1000:064x}") for i, s in enumerate(samples(50))]
    assert evaluated(workspace.take(again).parts) == first


def test_what_went_and_comes_back_is_evaluated_again(workspace: Workspace) -> None:
    everything = samples(50)
    first = evaluated(workspace.take(everything).parts)
    one = min(first)
    without = workspace.take([s for s in everything if s.file != one])
    assert evaluated(without.parts) == first - {one}
    assert evaluated(workspace.take(everything).parts) == first
    versions = [h["version"] for h in workspace.memory.history]
    assert versions[0] == versions[2] != versions[1]


def test_a_version_is_made_of_pictures_and_objects_not_of_names(workspace: Workspace) -> None:
    parts = workspace.take(samples(20)).parts
    version = workspace.memory.version
    renamed = [replace(s, file=f"x{s.file}") for s in samples(20)]
    assert evaluation.version(evaluation.measured(renamed, {f"x{f}": p for f, p in parts.items()})) == version
    corrected = samples(20, x1=3)
    assert evaluation.version(evaluation.measured(corrected, parts)) != version
    assert evaluation.changes(workspace.memory.images(), evaluation.measured(corrected, parts)) == "4 with other labels"


def test_a_class_that_no_evaluated_image_has_brings_images_in(workspace: Workspace) -> None:
    old = samples(50)
    first = evaluated(workspace.take(old).parts)
    new = [sample(f"dog{i}.jpg", 100 + i, ["dog", "car"]) for i in range(10)]
    second = evaluated(workspace.take([*old, *new]).parts)
    assert first < second
    assert len(second - first) == 2
    assert all(file.startswith("dog") for file in second - first)
    assert evaluated(workspace.take([*old, *new]).parts) == second


def test_a_whole_new_data_set_gets_an_evaluation_set_of_its_own(workspace: Workspace) -> None:
    workspace.take(samples(50))
    made = workspace.take([sample(f"new{i}.jpg", 100 + i) for i in range(20)])
    assert len(evaluated(made.parts)) == 4


def test_it_grows_by_new_images_when_asked(workspace: Workspace) -> None:
    old = samples(50)
    first = workspace.take(old).parts
    trained = {s.sha256 for s in old if first[s.file] == "train"}
    everything = [*old, *(sample(f"new{i}.jpg", 100 + i) for i in range(50))]
    workspace.by = Split(evaluation_grow=True)
    second = workspace.take(everything, trained).parts
    assert len(evaluated(second)) == 20
    assert evaluated(first) < evaluated(second)
    assert all(file.startswith("new") for file in evaluated(second) - evaluated(first))
    assert len(evaluated(workspace.take([*everything, sample("z.jpg", 999)], None).parts)) == 20


def test_a_small_one_is_told(workspace: Workspace) -> None:
    workspace.take(samples(10))
    made = workspace.take(samples(100))
    (fault,) = made.faults
    assert (fault.code, fault.severity) == ("evaluation_small", "warning")
    assert "2 of 100 images" in fault.message


def test_relatives_of_what_is_evaluated_are_left_out(workspace: Workspace) -> None:
    old = [sample(f"{i:03}.jpg", i, group=f"camera{i // 5}") for i in range(25)]
    first = evaluated(workspace.take(old).parts)
    (camera,) = {s.groups[0] for s in old if s.file in first}
    new = [sample(f"new{i}.jpg", 100 + i, ["car", "car"], group=camera) for i in range(3)]
    for arrived in ([*old, *new], [*(s for s in old if s.file not in first), *new, sample("x.jpg", 500)]):
        made = workspace.take(arrived)
        assert not {s.file for s in new} & made.parts.keys()
        (fault,) = [f for f in made.faults if f.code == "evaluation_relative"]
        assert (fault.value, fault.objects, fault.images) == (camera, 6, 3)
    workspace.by = Split(evaluation_grow=True)
    assert {s.file for s in new} <= evaluated(workspace.take([*old, *new]).parts)


def test_the_groups_of_all_names_of_a_picture_are_held(workspace: Workspace) -> None:
    pictures = [sample("a.jpg", 1, group="g1"), sample("b.jpg", 1), *samples(10, group="g2")[2:]]
    assert evaluated(workspace.take(pictures).parts) == {"a.jpg", "b.jpg"}
    made = workspace.take([*pictures, sample("c.jpg", 9, group="g1")])
    assert "c.jpg" not in made.parts


def test_a_group_that_is_nearly_everything_is_told(workspace: Workspace) -> None:
    made = workspace.take([sample(f"{i:03}.jpg", i, group="one" if i < 18 else f"{i}") for i in range(20)])
    assert codes(made) == ["group_too_large"]
    assert "group 'one' holds 18 of 20 images" in made.faults[0].message
    assert len(evaluated(made.parts)) == 2


def test_a_damaged_memory_is_not_forgotten_in_silence(workspace: Workspace) -> None:
    workspace.take(samples(10))
    (workspace.folder / "ledger.json").write_text("{")
    with pytest.raises(StageError, match=r"ledger.json: cannot be read .* rename the folder"):
        workspace.take(samples(10))
    (workspace.folder / "ledger.json").write_text(
        json.dumps({"schema": 1, "version": "0" * 64, "held": {}, "names": {}, "history": []})
    )
    with pytest.raises(StageError, match=r"0000.json: cannot be read"):
        workspace.memory.images()


def test_who_comes_second_looks_again(workspace: Workspace) -> None:
    memory = workspace.memory
    workspace.take(samples(10))
    assert not evaluation.record(workspace.folder, memory, samples(10), dict.fromkeys("x", "val"), "late")


# ---- whatever comes

pictures = st.integers(0, 25)
arrivals = st.lists(
    st.builds(
        sample,
        st.integers(0, 40).map("{:03}.jpg".format),
        pictures,
        st.lists(st.sampled_from("abc"), max_size=2),
        st.sampled_from(["", "", "g1", "g2", "g3"]),
        st.sampled_from([1.0, 2.0]),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda s: s.file,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(arrivals, st.booleans()), min_size=1, max_size=5), st.floats(0.05, 0.6), st.integers(0, 9))
def test_once_evaluated_never_trained(steps: list[tuple[list[Sample], bool]], share: float, seed: int) -> None:
    """Pictures, names, labels and groups mixed at will, growing or not."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workspace(Path(folder) / "evaluation")
        ever, ever_groups, trained = set[str](), set[str](), None
        for arrived, grow in steps:
            place.by = Split(val=share, seed=seed, evaluation_grow=grow)
            made = place.take(arrived, trained)
            lost = sum(f.objects for f in made.faults)
            assert sum(len(s.objects) for s in arrived if s.file in made.parts) + lost == sum(
                len(s.objects) for s in arrived
            )
            sides: dict[str, set[str]] = {}
            for s in arrived:
                if s.file in made.parts:
                    for what in (s.sha256, *s.groups):
                        sides.setdefault(what, set()).add(made.parts[s.file])
            assert all(len(parts) == 1 for parts in sides.values()), "a picture or group on both sides"
            training = {what for what, parts in sides.items() if parts == {"train"}}
            assert not training & (ever | ever_groups)
            ever |= {s.sha256 for s in arrived if made.parts.get(s.file) == "val"}
            ever_groups |= {g for s in arrived if made.parts.get(s.file) == "val" for g in s.groups}
            trained = {s.sha256 for s in arrived if made.parts.get(s.file) == "train"}
            again = place.take(arrived[::-1], trained)
            assert again.parts == made.parts, "the same data again, in another order"
            event(f"left out: {'evaluation_relative' in codes(made)}")


@settings(max_examples=200, deadline=None)
@given(arrivals, st.floats(0.05, 0.6), st.integers(0, 9))
def test_blocks_hold_what_belongs_together(arrived: list[Sample], share: float, seed: int) -> None:
    blocks = groups.blocks(arrived, seed)
    assert Counter(f for b in blocks for f in b.files) == Counter(s.file for s in arrived)
    assert groups.blocks(arrived[::-1], seed) == blocks
    parts = split.at_random(blocks, share)
    of = {f: b.id for b in blocks for f in b.files}
    for what in {w for s in arrived for w in (s.sha256, *s.groups)}:
        assert len({of[s.file] for s in arrived if what in (s.sha256, *s.groups)}) == 1
    if len(blocks) > 1:
        assert set(parts.values()) == {"train", "val"}
