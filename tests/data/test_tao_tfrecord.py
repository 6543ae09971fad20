"""NVIDIA's own TFRecords: read with the images beside them, written and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.helpers import HEIGHT, WIDTH, encoded  # isort: skip

from refit.data import tfrecord as container
from refit.data.faults import BadData
from refit.data.formats import tao_tfrecord
from refit.data.formats.base import Record
from refit.data.model import Box
from tests.data import writing
from tests.data.test_tfrecord_format import record_file

CAR = Box("car", 5.5, 6, 25, 30, truncated=0.25, occluded=2)


def features(name: str = "a", *objects: Box, **changed: container.Feature | None) -> dict[str, container.Feature]:
    """What dataset_convert writes of an image; None leaves a feature out."""
    made = tao_tfrecord.features(Record(f"{name}.png", WIDTH, HEIGHT, "", None, objects or (CAR,)))
    made |= {"frame/id": [f"image_2/{name}".encode()]}
    found = made | {key.replace("__", "/"): value for key, value in changed.items()}
    return {key: value for key, value in found.items() if value is not None}


def tao_set(root: Path, *records: dict[str, container.Feature] | bytes, images: str = "ab") -> Path:
    for i, name in enumerate(images):
        path = root / "image_2" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i, ".png"))
    record_file(root / "tfrecords" / "kitti-fold-000-of-002-shard-00000-of-00010", *records)
    return root


def test_images_lie_beside_the_records(tmp_path: Path) -> None:
    found = writing.check(tao_set(tmp_path, features("a"), features("b", replace(CAR, cls="dog"))))
    assert (found.format, found.faults) == ("tao_tfrecord", [])
    assert [(s.name, s.source, s.objects) for s in found.samples] == [
        ("image_2/a.png", "image_2/a.png", (CAR,)),
        ("image_2/b.png", "image_2/b.png", (replace(CAR, cls="dog"),)),
    ]


@pytest.mark.parametrize(
    ("bad", "code", "objects"),
    [
        (features("c"), "label_without_image", 1),
        (features("b", frame__id=None), "label_unreadable", 1),
        (features("b", frame__id=np.array([3])), "bad_entry", 1),
        (features("b", frame__width=np.array([640])), "size_differs", 1),
        (features("b", target__coordinates_x1=np.array([1, 2], np.float32)), "bad_entry", 2),
        (features("b", target__coordinates_x1=[b"1"]), "bad_entry", 1),
        (features("b", target__coordinates_y2=np.array([0], np.float32)), "inverted", 1),
        (features("b", target__coordinates_y2=np.array([np.inf], np.float32)), "not_finite", 1),
        (features("b", target__object_class=[b""]), "no_class", 1),
        (features("a"), "duplicate_image", 1),
        (features("a", replace(CAR, x1=7)), "duplicate_name", 1),
        (b"no example", "label_unreadable", 0),
    ],
)
def test_a_bad_record_costs_itself_alone(
    tmp_path: Path, bad: dict[str, container.Feature] | bytes, code: str, objects: int
) -> None:
    found = writing.check(tao_set(tmp_path, features("a"), bad))
    reported = [(f.code, f.objects) for f in found.faults if f.code not in ("image_without_label", "too_few_images")]
    assert reported[:1] == [(code, objects)]
    assert found.samples[0].objects == (CAR,)


def test_images_inside_and_classes_by_number(tmp_path: Path) -> None:
    """use_dali: ssd's records hold the image, shares, and class numbers."""
    dali = features(
        "a",
        frame__encoded=[encoded(3, ".png")],
        target__object_class=None,
        target__object_class_id=np.array([2], np.float32),
        **{
            f"target/coordinates_{s}": np.array([v], np.float32)
            for s, v in zip(("x1", "y1", "x2", "y2"), (0.125, 0.25, 0.5, 1), strict=True)
        },
    )
    record_file(tmp_path / "ssd-fold-000-of-001-shard-00000-of-00001", dali)
    found = writing.check(tmp_path)
    assert [(s.name, [(o.cls, o.x1, o.y1, o.x2, o.y2) for o in s.objects]) for s in found.samples] == [
        ("image_2/a.png", [("2", 8, 12, 32, 48)])
    ]


@pytest.mark.parametrize("parts", [(None,), ("train", "val")])
def test_round_trip(tmp_path: Path, parts: tuple[str | None, ...]) -> None:
    records = [r for r in writing.records(parts, flags=True) if r.name.endswith(".jpg")]
    lost = writing.write(tao_tfrecord.WRITER, tmp_path / "out", records)
    assert lost == {"difficult": sum(o.difficult for r in records for o in r.objects)}
    found = writing.check(tmp_path / "out")
    assert found.format == "tao_tfrecord"
    assert writing.seen(found) == writing.expected(records, flags=("truncated", "occluded"))


def test_what_tao_would_mix_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"003\.png beside cam0/000\.jpg.*image_extension"):
        writing.write(tao_tfrecord.WRITER, tmp_path / "mixed", writing.records())
    assert list((tmp_path / "mixed").iterdir()) == []
    boxes = (Box("Car", 1, 2, 3, 4), Box("car", 1, 2, 3, 4))
    with pytest.raises(BadData, match="Car and car become one class"):
        writing.write(tao_tfrecord.WRITER, tmp_path / "case", [Record("0.jpg", WIDTH, HEIGHT, "", None, boxes)])


def test_what_it_cannot_hold_is_counted(tmp_path: Path) -> None:
    boxes = (Box("Car", 1, 2, 3, 4), Box("Car", 1234.56789, 2, 1300, 4))
    lost = writing.write(tao_tfrecord.WRITER, tmp_path / "o", [Record("0.jpg", 2000, HEIGHT, "", None, boxes)])
    assert lost == {"class_name": 2, "rounded": 1}
