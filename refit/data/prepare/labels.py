"""What TAO's readers leave out of KITTI labels or a COCO file without an error, counted before a GPU is paid for:

- `thin`: nvidia_tao_tf1/.../kitti_converter_lib.py cuts coordinates to whole numbers and skips boxes of no width or
  height (a debug message); nvidia_tao_tf2/cv/efficientdet/scripts/dataset_convert.py and
  nvidia_tao_deploy/dataloader/coco.py skip boxes below one pixel.
- `occluded`: nvidia_tao_tf1/cv/common/dataio/detection_data_sequence.py (ssd, yolo_v4) takes an occlusion other than 0
  for "difficult" and does not train on it unless `include_difficult_in_training` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from refit.data.formats.base import Record, fields_lost
from refit.data.model import Box


def not_held(records: Iterable[Record], form: str) -> Counter[str]:
    """How many objects lose something in this form, by what it is."""
    records = list(records)
    lost = fields_lost(records, "difficult", "occluded", *(["truncated"] if form == "coco" else []))
    lost["thin"] = sum(_thin(o, form) for r in records for o in r.objects)
    return +lost


def _thin(o: Box, form: str) -> bool:
    if form == "kitti":
        return int(o.x1) >= int(o.x2) or int(o.y1) >= int(o.y2)
    return o.x2 - o.x1 < 1 or o.y2 - o.y1 < 1
