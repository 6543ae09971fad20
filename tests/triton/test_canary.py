"""A challenger beside the champion: compared, and gone in the end, whatever came of it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from refit.pipeline import WatchLines
from refit.triton.canary import canary
from refit.triton.client import TritonClient
from refit.triton.errors import ReleaseFailed
from refit.triton.infer import Found
from refit.triton.route import challenger_of, model_for
from refit.triton.shadow import matched
from refit.triton.specs import CanarySpec
from tests.triton.fixtures import Place
from tests.triton.models import INPUT, noise, run_cli


def snapshot(folder: Path, count: int = 6) -> Path:
    """Pictures of noise, the first of them for training."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    rows = []
    for i in range(count):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        rows.append(json.dumps({"file": f"{i}.png", "split": "train" if i == 0 else "val"}))
    (folder / "annotations.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def trial_spec(place: Place, path: Path, **more: object) -> CanarySpec:
    lines = WatchLines(max_slowdown=1000)  # this machine may be busy
    asked = place.spec(path).model_dump() | {"snapshot": place.folder / "snapshot", "lines": lines, **more}
    return CanarySpec.model_validate(asked)


def assert_gone(place: Place) -> None:
    name = challenger_of(place.name)
    assert place.client.ready_versions(name) == ()
    assert not (place.repository / name).exists()
    assert place.client.infer(place.name, {INPUT: noise(1)}).version == 1


def test_challenger_is_compared_and_dropped(place: Place) -> None:
    snapshot(place.folder / "snapshot")
    first = place.model("a")
    verdict, found = canary(trial_spec(place, first), place.folder / "out")
    assert (verdict.state, found) == ("pass", None), "nothing serves yet"
    place.release(first)
    verdict, found = canary(trial_spec(place, first, images_asked=4), place.folder / "out")
    assert found is not None
    assert (verdict.state, found.agreement, found.images) == ("pass", 1.0, 4)
    assert found.champion == found.challenger > 0
    assert_gone(place)
    other = place.model("b", seed=5)
    verdict, found = canary(trial_spec(place, other, min_agreement=1.0), place.folder / "out")
    assert found is not None
    assert verdict.state == "fail"
    assert found.agreement < 1
    assert f"it agrees with the champion on {found.agreement:.1%} of the objects in 5 pictures" in verdict.reason
    assert found.to_json()["differ"][0]["image"] in {f"{i}.png" for i in range(1, 6)}
    assert_gone(place)


def test_challenger_that_does_not_load_leaves_the_champion_alone(place: Place) -> None:
    snapshot(place.folder / "snapshot")
    place.release(place.model("a"))
    with pytest.raises(ReleaseFailed, match="nothing served before, and nothing serves now"):
        canary(trial_spec(place, place.model("bad", operator="Unknown")), place.folder / "out")
    assert_gone(place)


def test_share_of_requests_that_clients_route_is_judged(place: Place) -> None:
    """Clients that send the challenger what it cannot take; Triton counts the failures."""
    snapshot(place.folder / "snapshot")
    first = place.model("a")
    place.release(first)

    said: list[str] = []

    def route(message: str) -> None:
        said.append(message)
        if message.startswith("Clients may ask"):
            with TritonClient(place.server.url) as client:
                for key in range(40):
                    client.infer(model_for(place.name, str(key), 0.5), {INPUT: noise(1)})

    asked = trial_spec(place, first, minutes=0.02, lines=WatchLines(min_requests=10, max_slowdown=1000))
    verdict, _ = canary(asked, place.folder / "out", route)
    assert verdict.state == "pass"
    (told,) = (m for m in said if m.startswith("The challenger was asked"))
    assert int(told.split()[4]) >= 10
    assert_gone(place)


def test_shadow_by_hand(place: Place) -> None:
    images = snapshot(place.folder / "snapshot") / "images"
    place.release(place.model("a"))
    done = run_cli(
        "shadow", "--url", place.server.url, "--model", place.name, "--challenger", place.name, "--images", images
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], said["agreement"], said["differ"]) == (6, 1.0, [])


def test_matching() -> None:
    """Of one class, half in common at least, each used once."""
    a, moved, away = (0.0, 0.0, 10.0, 10.0), (2.0, 0.0, 12.0, 10.0), (6.0, 0.0, 16.0, 10.0)
    assert matched([Found("x", 0.9, a)], [Found("x", 0.4, moved)]) == 1
    assert matched([Found("x", 0.9, a)], [Found("y", 0.4, a)]) == 0
    assert matched([Found("x", 0.9, a)], [Found("x", 0.9, away)]) == 0
    assert matched([Found("x", 0.9, a), Found("x", 0.8, a)], [Found("x", 0.9, a)]) == 1


def test_routing_is_steady_and_of_the_share_that_was_asked_for() -> None:
    names = [model_for("m", f"camera {i}", 0.2) for i in range(2000)]
    assert names == [model_for("m", f"camera {i}", 0.2) for i in range(2000)]
    assert 320 <= names.count("m__challenger") <= 480
    assert {model_for("m", str(i), 0) for i in range(50)} == {"m"}
    assert {model_for("m", str(i), 1) for i in range(50)} == {"m__challenger"}
