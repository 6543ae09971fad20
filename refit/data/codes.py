"""The names of all that can be wrong with a data set, how bad each is, and what to do about it.

Standard library only: pipeline files name these codes (`dataset.severity`), and Airflow reads them while parsing.

- `error` stops the run;
- `warning` costs an object or an image, changes one, or harms what is learnt or measured; too many lost objects or
  images stop the run (`max_bad_labels`);
- `info` is counted, so that nothing is left out in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of fault. `fixed`: a pipeline cannot change its severity."""

    severity: Severity
    advice: str
    fixed: bool = False


CODES: dict[str, Code] = {
    # the data set as a whole
    "source_missing": Code("error", "check dataset.source", fixed=True),
    "source_changed": Code("error", "wait until the copy has ended, or write a marker file last", fixed=True),
    "file_damaged": Code("error", "copy it again, or correct what the manifest names for it", fixed=True),
    "archive_damaged": Code("error", "copy or make the archive again", fixed=True),
    "archive_unsafe": Code("error", "unpack it yourself, look at it, and make the archive anew", fixed=True),
    "not_recognised": Code("error", "name dataset.format, image_dir and label_dir", fixed=True),
    "too_few_images": Code(
        "error", "at least two labelled images are needed: one to train, one to evaluate", fixed=True
    ),
    "no_objects": Code("error", "check the class names (classes, class_map) and the labels", fixed=True),
    "too_many_bad_labels": Code("error", "correct the labels, or raise dataset.max_bad_labels", fixed=True),
    "list_missing": Code(
        "error",
        "dataset.split.lists names files of the data set; without it ({val: 0.2}) Refit splits by itself",
        fixed=True,
    ),
    "own_parts_unused": Code(
        "warning",
        "dataset.split: {lists: own} keeps them; dealt out anew on purpose: dataset.severity: {own_parts_unused: info}",
    ),
    "list_unknown_name": Code("error", "correct the list, or add the image", fixed=True),
    "list_overlap": Code("error", "leave the image in one list only", fixed=True),
    "split_without_objects": Code("error", "take labelled images into it", fixed=True),
    "evaluated_before": Code(
        "error",
        "take it out of the list: what was evaluated once never trains; split.evaluation: fresh gives that up",
    ),
    "group_missing": Code("error", "correct dataset.split.group, or what it goes by", fixed=True),
    "base_missing": Code(
        "error", "put the whole data set into the source and take it once with dataset.mode: replace", fixed=True
    ),
    "removed_unreadable": Code("error", "write an image's name a line, as UTF-8 text", fixed=True),
    "evaluation_changed": Code("warning", "compare figures of the same version only"),
    "evaluation_small": Code(
        "warning",
        "dataset.split.evaluation_grow: true lets new images into it; to draw another, rename evaluation/ in the "
        "pipeline's workspace",
    ),
    "evaluation_relative": Code(
        "warning", "nothing to do; dataset.split.evaluation_grow: true evaluates such images, too"
    ),
    "group_too_large": Code("warning", "group by something finer: a group is never divided"),
    "group_across_splits": Code("warning", "keep a group in one list: relatives flatter the evaluation"),
    "group_unknown_name": Code("info", "nothing to do where the table names more than this data set; else correct it"),
    "not_in_group": Code("warning", "give it a group: each such image is dealt out by itself"),
    "labels_gone": Code("warning", "deliver its labels too: an image that comes without any has no objects"),
    "picture_replaced": Code("warning", "give new pictures new names, where the old one should have stayed"),
    "removed_image": Code("info", "removed.txt names it"),
    "removed_unknown": Code("info", "nothing to do where it was removed before; else correct removed.txt"),
    "class_without_objects": Code("warning", "take the class out of dataset.classes, or add images of it"),
    "class_not_in_split": Code("warning", "add images of the class: it cannot be learnt and measured apart"),
    "duplicate_image": Code("info", "the same picture counts several times"),
    "duplicate_across_splits": Code("warning", "take it out of one of them: it flatters the evaluation"),
    "bad_class_name": Code(
        "error", "give the class another name (dataset.class_map, convert --map OLD=NEW)", fixed=True
    ),
    "near_duplicate_image": Code("info", "a picture that looks the same counts several times"),
    "near_duplicate_across_splits": Code(
        "warning", "take one of them out, or split by video or camera: it flatters the evaluation"
    ),
    "rare_class": Code("info", "add images of the class, or expect little of it"),
    "class_imbalance": Code("info", "add images of the rare class, or take out some that hold the frequent one alone"),
    "mixed_colour": Code("info", "nothing to do where the camera in use gives both"),
    "name_case_collision": Code(
        "warning", "rename one of them: on Windows, macOS and some shares one file would replace the other"
    ),
    "name_not_ascii": Code("info", "nothing to do here; some other tools cannot open such names"),
    "small_for_network": Code("info", "train with a larger input or a finer stride, or cut the images into tiles"),
    "enlarged_for_network": Code("info", "a smaller input is faster and shows the network as much"),
    "aspect_differs": Code("info", "give the network's input the proportions of the images"),
    "drift_class_mix": Code("warning", "see the report: is the change meant? the evaluation compares with the past"),
    "drift_box_size": Code("warning", "see the report: another camera, zoom, or way of labelling?"),
    "drift_box_aspect": Code("warning", "see the report: another camera or way of labelling?"),
    "drift_objects_per_image": Code("warning", "see the report: are objects not labelled, or scenes of another kind?"),
    "drift_brightness": Code("warning", "see the report: another light or camera?"),
    # images
    "image_without_label": Code(
        "error", "add its label file (an empty one for an image without objects), or remove it"
    ),
    "image_truncated": Code("error", "copy the file again: its end is missing"),
    "image_unreadable": Code("error", "replace the file, or remove it and its label"),
    "image_unsupported": Code("error", "convert it to jpg or png"),
    "image_damaged": Code("warning", "look at it: it can be decoded, but some of its bytes are wrong"),
    "exif_orientation": Code(
        "warning", "turn the pixels and remove the tag, or make sure that the boxes are those of the image as stored"
    ),
    "cmyk_image": Code("warning", "convert it to RGB: not every reader gives it the same colours"),
    "deep_image": Code("warning", "convert it to 8 bits as you want it seen: some readers cut the upper values off"),
    "alpha_channel": Code("info", "its transparency is passed over"),
    "wrong_suffix": Code("info", "rename the file: other tools trust its ending"),
    "duplicate_name": Code("error", "rename or remove all but one: they would share one label"),
    "bad_name": Code("error", "rename the file: only readable UTF-8 names without control characters can be used"),
    "not_followed": Code("error", "put the files themselves there: links out of the data set are not followed"),
    "not_in_lists": Code("info", "no list (dataset.split.lists), or part of the data set's own, names it"),
    "ignored_files": Code("info", "nothing to do, unless one of them should have been read"),
    # labels
    "label_without_image": Code("error", "add the image, or remove the label file"),
    "label_unreadable": Code("error", "write the label file anew"),
    "not_pixels": Code("error", "write the boxes in pixels of the image: here they are shares of its width and height"),
    "record_damaged": Code("error", "copy the file again, or have the tool that wrote it write it anew"),
    "size_differs": Code("error", "label the image as it is now: its boxes were made for another size"),
    "shifted_column": Code("error", "write the columns as: class truncated occluded alpha x1 y1 x2 y2 h w l x y z ry"),
    "augmented_away": Code("info", "a turn, a cut or a smaller picture left too little of it in the copy"),
    "background_image": Code("info", "an image without objects: it teaches what is none"),
    "class_names_missing": Code(
        "warning", "add data.yaml with names, or classes.txt; else map the numbers in dataset.class_map ({'0': car})"
    ),
    "class_names_differ": Code("error", "leave one list of the class names, or make all of them equal"),
    "duplicate_id": Code("warning", "give each image, category and annotation an id of its own: most tools keep one"),
    "parts_unclear": Code("info", "they belong to no split, since the data set's own lists put them into several"),
    "list_stale": Code("info", "its own list of a split is passed over where it names no image"),
    # objects
    "unknown_class": Code("error", "add it to dataset.classes, or map it in dataset.class_map (null leaves it out)"),
    "excluded_class": Code("info", "dataset.class_map leaves it out"),
    "dont_care": Code("info", "KITTI's DontCare regions are not learnt"),
    "crowd": Code("info", "COCO's crowd regions (iscrowd) are not learnt"),
    "polygon_boxed": Code("info", "detectors learn boxes: the smallest one around each polygon is taken"),
    "mask_unused": Code("info", "the boxes are taken, the masks are not"),
    "bad_entry": Code("warning", "write it as the format says"),
    "out_of_range": Code("warning", "YOLO's values are shares of the image's width and height, from 0 to 1"),
    "column_count": Code("warning", "KITTI has 15 columns (16 with a score), separated by spaces"),
    "no_class": Code("warning", "give the object a class name"),
    "no_box": Code("warning", "give the object a box with xmin, ymin, xmax, ymax"),
    "not_a_number": Code("warning", "write a number with a decimal point"),
    "not_finite": Code("warning", "write the box's real coordinates"),
    "inverted": Code("warning", "the left upper corner comes first: x1 < x2 and y1 < y2"),
    "zero_area": Code("warning", "draw the box again, or remove it"),
    "outside": Code("warning", "draw the box again: most of it lies outside the image"),
    "clipped": Code("warning", "it was cut at the image's edge"),
    "duplicate_box": Code("warning", "remove one of them: only one can be found, the other counts as missed"),
    "box_of_two_classes": Code("info", "keep the class that is right, unless an object can have both"),
    "tiny_box": Code("info", "look at it: a slip of the mouse, or too small to be learnt"),
    "giant_box": Code("info", "look at it: does one object fill the picture?"),
}
