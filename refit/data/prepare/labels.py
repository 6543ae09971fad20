"""The labels of a split as TAO reads them: KITTI lines, or one COCO file; and what these forms cannot hold.

What TAO's readers leave out without an error is counted here, so that it is known before a GPU is paid for:
- `thin`: nvidia_tao_tf1/.../kitti_converter_lib.py cuts coordinates to whole numbers and skips boxes of no width or
  height (a debug message); nvidia_tao_tf2/cv/efficientdet/scripts/dataset_convert.py and
  nvidia_tao_deploy/dataloader/coco.py skip boxes below one pixel.
- `occluded`: nvidia_tao_tf1/cv/common/dataio/detection_data_sequence.py (ssd, yolo_v4) takes an occlusion other than 0
  for "difficult" and does not train on it unless `include_difficult_in_training` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NO_3D = " ".join(["0.00"] * 7)


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image as it was written, with its objects; boxes are pixels of the written image."""

    file: str
    width: int
    height: int
    objects: Sequence[Mapping[str, Any]]


def kitti(image: Labelled, names: Mapping[str, str]) -> str:
    """A label file: 15 columns an object. The converter refuses other numbers of columns, DontCare and scores."""
    return "".join(
        f"{names[o['class']]} {o.get('truncated', 0):.2f} {o.get('occluded', 0):d} 0.00 "
        f"{o['x1']:.2f} {o['y1']:.2f} {o['x2']:.2f} {o['y2']:.2f} {_NO_3D}\n"
        for o in image.objects
    )


def coco(images: Iterable[Labelled], names: Mapping[str, str], first_id: int) -> dict[str, Any]:
    """A COCO file. Ids of images and annotations begin at 1: pycocotools takes an annotation 0 for none."""
    ids = category_ids(names, first_id)
    rows: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        rows.append({"id": number, "file_name": image.file, "width": image.width, "height": image.height})
        for o in image.objects:
            width, height = o["x2"] - o["x1"], o["y2"] - o["y1"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[names[o["class"]]],
                    "bbox": [o["x1"], o["y1"], width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name, "supercategory": ""} for name, i in ids.items()]
    return {"images": rows, "annotations": annotations, "categories": categories}


def category_ids(names: Mapping[str, str], first_id: int) -> dict[str, int]:
    """Name in TAO's files -> category id, without gaps: TAO's DETR networks use the id as the index of a logit."""
    return {name: i for i, name in enumerate(names.values(), first_id)}


def not_held(objects: Iterable[Mapping[str, Any]], form: str) -> Counter[str]:
    """How many objects lose something in this form, by what it is."""
    lost: Counter[str] = Counter()
    for o in objects:
        lost["difficult"] += bool(o.get("difficult"))
        lost["occluded"] += bool(o.get("occluded"))
        if form == "kitti":
            box = [f"{o[side]:.2f}" for side in ("x1", "y1", "x2", "y2")]
            lost["rounded"] += any(float(text) != o[s] for text, s in zip(box, ("x1", "y1", "x2", "y2"), strict=True))
            x1, y1, x2, y2 = (int(float(text)) for text in box)
            lost["thin"] += x1 >= x2 or y1 >= y2
        else:
            lost["truncated"] += bool(o.get("truncated"))
            lost["thin"] += o["x2"] - o["x1"] < 1 or o["y2"] - o["y1"] < 1
    return +lost
