"""Statistics of data sets, how far two are apart, and what a network makes of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.helpers import SETTINGS, kitti_line, kitti_set  # isort: skip

from refit.data import drift, fit, snapshot, statistics
from refit.data.cli import main
from refit.data.ingest import ingest
from refit.toolkits.base import NetworkInput


def _rows(
    images: int,
    seed: int,
    classes: tuple[str, ...] = ("car", "cat"),
    side: float = 20,
    size: tuple[int, int] = (640, 480),
    most: int = 4,
    long: float = 1,
) -> list[dict[str, Any]]:
    """Rows of annotations.jsonl: 1 to `most` objects an image, sides about `side` pixels, the box of the same area
    `long` squared times as wide as high, classes evenly mixed."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(images):
        objects = []
        for _ in range(rng.integers(1, most + 1)):
            x, y = rng.uniform(0, 400, 2)
            w, h = side * rng.uniform(0.7, 1.4, 2) * (long, 1 / long)
            objects.append({"class": classes[rng.integers(len(classes))], "x1": x, "y1": y, "x2": x + w, "y2": y + h})
        row = {"file": f"{i}.jpg", "source": f"images/{i}.jpg", "sha256": f"{seed}-{i}", "split": "train"}
        rows.append({**row, "width": size[0], "height": size[1], "objects": objects})
    return rows


def _statistics(rows: list[dict[str, Any]], brightness: int = 100) -> dict[str, Any]:
    rng = np.random.default_rng(len(rows))
    light = rng.normal(brightness, 10, len(rows)).clip(0, 255).astype(int)
    return statistics.of(statistics.Table.of(rows, []), light.tolist())


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    lines = [kitti_line("car", 0, 0, 32, 24), kitti_line("cat", 32, 24, 64, 48), kitti_line("cat", 32, 24, 64, 36)]
    taken = ingest(kitti_set(tmp_path / "set", lines=lines), SETTINGS, tmp_path / "ws")
    found = snapshot.read_statistics(taken.path)
    assert (found["images"], found["objects"]) == (12, 36)
    assert {k: v["images"] for k, v in found["splits"].items()} == dict(taken.splits)
    assert found["sizes"] == [{"width": 64, "height": 48, "images": 12}]
    assert found["objects_per_image"][3] == sum(found["brightness"]) == 12
    cat = found["classes"]["cat"]
    assert (cat["objects"], cat["images"], sum(cat["splits"].values())) == (24, 12, 24)
    # half the sides: 2^-1, 4 steps of a quarter below the end; half of that area: 2 steps less
    assert (cat["size"][32], cat["size"][30]) == (12, 12)
    assert found["classes"]["dog"]["objects"] == 0
    places = np.array(found["classes"]["car"]["positions"]).reshape(16, 16)
    assert (places[4, 4], places.sum()) == (12, 12)


def test_statistics_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    taken = ingest(kitti_set(tmp_path / "set"), SETTINGS, tmp_path / "ws")
    kept = snapshot.read_statistics(taken.path)
    (taken.path / "statistics.json").unlink()
    assert snapshot.verify(taken.path) == ""
    assert snapshot.read_statistics(taken.path) == kept


def test_diff_tells_a_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = kitti_set(tmp_path / "a", images=60, lines=[kitti_line("car", 5, 6, 25, 30)])
    b = kitti_set(tmp_path / "b", images=60, lines=[kitti_line("car", 5, 6, 45, 46)])
    assert main(["diff", str(a), str(b)]) == 0
    assert "drift of box sizes: major, PSI" in capsys.readouterr().out
    assert main(["diff", str(a), str(a), "--json"]) == 0
    assert {d["level"] for d in json.loads(capsys.readouterr().out)["drift"]} == {"none"}


@pytest.mark.parametrize("images", [20, 100, 1000])
def test_samples_of_one_population_have_not_drifted(images: int) -> None:
    for seed in range(5):
        found = drift.drift(_statistics(_rows(images, seed)), _statistics(_rows(images, 100 + seed)))
        assert [d.level for d in found] == ["none"] * 5


@pytest.mark.parametrize(
    ("code", "changed", "told"),
    [
        ("drift_class_mix", _statistics(_rows(300, 1, classes=("car", "car", "car", "car", "cat"))), "and is"),
        ("drift_class_mix", _statistics(_rows(300, 1, classes=("car", "dog"))), "'"),
        ("drift_box_size", _statistics(_rows(300, 1, side=40)), "the median was 3.7% of the image's side and is 7.4%"),
        ("drift_box_aspect", _statistics(_rows(300, 1, long=1.6)), "the median was 1.01 and is 2.55"),
        ("drift_objects_per_image", _statistics(_rows(300, 1, most=12)), "the median was"),
        ("drift_brightness", _statistics(_rows(300, 1), brightness=140), "the median was 39% of white and is 5"),
    ],
)
def test_drift_is_told(code: str, changed: dict[str, Any], told: str) -> None:
    found = {d.code: d for d in drift.drift(_statistics(_rows(300, 0)), changed)}
    assert {c for c, d in found.items() if d.level == "major"} == {code}
    assert told in found[code].told
    faults = list(drift.faults(found.values(), "0123456789abcdef"))
    assert [(f.code, f.severity) for f in faults] == [(code, "warning")]
    assert "since data set 0123456789ab:" in faults[0].message


def test_a_moderate_change_is_an_info() -> None:
    one = drift.Drift("drift_box_size", "box sizes", 0.2, 0.05, "")
    assert [f.severity for f in drift.faults([one], "a")] == ["info"]
    assert list(drift.faults([drift.Drift("drift_box_size", "box sizes", 0.2, 0.21, "")], "a")) == []


def test_psi_by_hand() -> None:
    """Siddiqi's definition, on two sets of two classes: (0.8 - 0.5) * ln(0.8 / 0.5) + (0.2 - 0.5) * ln(0.2 / 0.5)."""

    def of(car: int, cat: int) -> dict[str, Any]:
        return {
            **_statistics(_rows(2, 0)),
            "classes": {"car": {"objects": car}, "cat": {"objects": cat}},
            "images": 9999,
        }

    before, now = of(5000, 5000), of(8000, 2000)
    for s in (before, now):
        for c in s["classes"].values():
            c |= {"size": [0], "aspect": [0]}
    found = next(d for d in drift.drift(before, now) if d.code == "drift_class_mix")
    assert found.psi == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4), rel=1e-3)
    assert found.chance == pytest.approx(6.635 * 2 / 9999, rel=0.02)  # the 99 % quantile of chi-square, one degree


@pytest.mark.parametrize(
    ("network", "rows", "expected"),
    [
        (NetworkInput(640, 480, 8, True), _rows(20, 0), []),
        (NetworkInput(640, 480, 32, True), _rows(20, 0), ["small_for_network"] * 2),
        (NetworkInput(160, 120, 8, True), _rows(20, 0), ["small_for_network"] * 2),
        (NetworkInput(1600, 1200, 8, False), _rows(20, 0), ["enlarged_for_network"]),
        (NetworkInput(640, 240, 8, False), _rows(20, 0, side=60), ["aspect_differs"]),
        (NetworkInput(640, 640, 8, True), _rows(20, 0, size=(480, 640)), []),
        (NetworkInput(640, 640, 8, True), _rows(20, 0, size=(640, 360)), ["aspect_differs"]),
        (NetworkInput(640, 640, 8, True), [*_rows(20, 0, size=(640, 360)), *_rows(1, 0)], []),
        (NetworkInput(640, 480, 32, True), [], []),
    ],
)
def test_the_network_s_view(network: NetworkInput, rows: list[dict[str, Any]], expected: list[str]) -> None:
    found = list(fit.faults(statistics.Table.of(rows, []), network))
    assert [f.code for f in found] == expected
    assert all(f.severity == "info" for f in found)


def test_every_toolkit_knows_its_network_s_input() -> None:
    from refit import toolkits
    from refit.pipeline import load

    root = Path(__file__).resolve().parents[2] / "specs"
    seen = {}
    for file in [*sorted((root / "pipelines").glob("*.yaml")), *sorted((root / "examples").glob("*.yaml"))]:
        pipeline = load(file)
        seen[file.stem] = toolkits.get(pipeline.toolkit).network_input(pipeline)
    assert seen["bccd"] == NetworkInput(416, 320, 8, True)
    assert len(seen) > 8
    assert all(n.width >= 64 and n.height >= 64 and n.cell in (8, 16) for n in seen.values())
    assert any(not n.letterbox for n in seen.values())


def test_statistics_are_small(tmp_path: Path) -> None:
    found = _statistics(_rows(300, 0, classes=tuple(f"class {i}" for i in range(10))))
    assert len(json.dumps(found)) < 20_000


def test_statistics_of_parts_add_up() -> None:
    rows = [*_rows(30, 0), *_rows(10, 1, classes=("dog",), size=(320, 240))]
    for i, row in enumerate(rows):
        row["split"] = "val" if i % 3 else "train"
    whole = statistics.of(statistics.Table.of(rows, ["car", "cat", "dog"]), list(range(40)))
    tally = statistics.Tally(["car", "cat", "dog"])
    for start in range(0, 40, 7):
        part = rows[start : start + 7]
        tally.add(statistics.Table.of(part, ["car", "cat", "dog"], named=False), list(range(start, start + len(part))))
    assert tally.result() == whole
