"""Small inputs in the forms of the old systems, written after facts of their formats; tests put faults into them."""

from __future__ import annotations

KEY = "a-key-that-nobody-may-see"
API_KEY = "api-0123456789-nobody"

CONVERT = """\
# how the labels lie
kitti_config {
  root_directory_path: "/workspace/data/training"
  image_dir_name: "image_2"
  label_dir_name: "label_2"
  image_extension: ".png"
  partition_mode: "random"
  num_partitions: 2
  val_split: 14
  num_shards: 10
}
image_directory_path: "/workspace/data/training"
"""

INFERENCE = """\
inferencer_config {
  target_classes: "car"
  target_classes: "cyclist"
  target_classes: "pedestrian"
  image_width: 1248
  image_height: 384
  image_channels: 3
  batch_size: 16
  gpu_index: 0
  tlt_config { model: "/workspace/model.tlt" }
}
bbox_handler_config {
  kitti_dump: true
  disable_overlay: false
  overlay_linewidth: 2
  classwise_bbox_handler_config {
    key: "car"
    value {
      confidence_model: "aggregate_cov"
      output_map: "car"
      bbox_color { R: 0 G: 255 B: 0 }
      clustering_config {
        coverage_threshold: 0.005
        dbscan_eps: 0.3
        dbscan_min_samples: 1
        minimum_bounding_box_height: 4
      }
    }
  }
  classwise_bbox_handler_config {
    key: "default"
    value {
      confidence_model: "aggregate_cov"
      bbox_color { R: 255 G: 0 B: 0 }
      clustering_config {
        coverage_threshold: 0.005
        dbscan_eps: 0.15
        dbscan_min_samples: 1
        minimum_bounding_box_height: 4
      }
    }
  }
}
"""

AUGMENT = """\
spatial_config {
  rotation_config { angle: 10.0 units: "degrees" }
  flip_config { flip_horizontal: true }
  shear_config { shear_ratio_x: 0.1 }
}
color_config {
  hue_saturation_config { hue_rotation_angle: 5.0 saturation_shift: 1.0 }
}
blur_config { size: 5.0 std: 1.5 }
output_image_width: 1248
output_image_height: 384
dataset_config { image_path: "image_2" label_path: "label_2" }
"""

_CLASSES = {
    "car": "car",
    "van": "car",
    "cyclist": "cyclist",
    "pedestrian": "pedestrian",
    "person_sitting": "pedestrian",
}


def _mapping(labels: dict[str, str]) -> str:
    return "".join(f'  target_class_mapping {{ key: "{k}" value: "{v}" }}\n' for k, v in labels.items())


_CLUSTERING = """\
  target_class_config {
    key: "NAME"
    value {
      clustering_config {
        coverage_threshold: 0.005
        dbscan_eps: 0.2
        dbscan_min_samples: 1
        minimum_bounding_box_height: 10
      }
    }
  }
"""
_OVERLAP = '  minimum_detection_ground_truth_overlap { key: "NAME" value: 0.5 }\n'
_BOXES = '  evaluation_box_config { key: "NAME" value { LIMITS } }\n'
_COST = """\
  target_classes {
    name: "NAME"
    class_weight: 1.0
    coverage_foreground_weight: 0.05
    objectives { name: "cov" initial_weight: 1.0 weight_target: 1.0 }
    objectives { name: "bbox" initial_weight: 10.0 weight_target: 10.0 }
  }
"""
_RASTER = """\
  target_class_config {
    key: "NAME"
    value { cov_center_x: 0.5 cov_center_y: 0.5 cov_radius_x: 1.0 cov_radius_y: 1.0 bbox_min_radius: 1.0 }
  }
"""


def detectnet(
    *,
    retrain: bool = False,
    labels: dict[str, str] | None = None,
    size: tuple[int, int] = (1248, 384),
    box: tuple[int, int] = (5, 5),
    epochs: int = 30,
    qat: bool = False,
    start: str = "/workspace/pretrained/tlt_pretrained_detectnet_v2_vresnet18/resnet18.hdf5",
) -> str:
    labels = labels or _CLASSES
    targets = list(dict.fromkeys(labels.values()))

    def each(text: str) -> str:
        return "".join(text.replace("NAME", t) for t in targets)

    box_config = f"minimum_height: {box[1]} maximum_height: 9999 minimum_width: {box[0]} maximum_width: 9999"
    return f"""\
# our cars, since 2021
random_seed: 42
dataset_config {{
  data_sources {{
    tfrecords_path: "/workspace/tfrecords/*"
    image_directory_path: "/workspace/data/training"
  }}
  image_extension: "png"
{_mapping(labels)}  validation_fold: 0
}}
augmentation_config {{
  preprocessing {{
    output_image_width: {size[0]}
    output_image_height: {size[1]}
    output_image_channel: 3
    min_bbox_width: 1.0
    min_bbox_height: 1.0
    enable_auto_resize: true
  }}
  spatial_augmentation {{ hflip_probability: 0.5 zoom_min: 1.0 zoom_max: 1.0 }}
  color_augmentation {{ hue_rotation_max: 5.0 saturation_shift_max: 1.0 contrast_center: 0.5 }}
}}
postprocessing_config {{
{each(_CLUSTERING)}}}
model_config {{
  arch: "resnet"
  num_layers: 18
  use_batch_norm: true
  pretrained_model_file: "{start}"
{"  load_graph: true" if retrain else ""}
  objective_set {{ bbox {{ scale: 35.0 offset: 0.5 }} cov {{ }} }}
}}
evaluation_config {{
  validation_period_during_training: 10
  first_validation_epoch: 10
{each(_OVERLAP)}{each(_BOXES.replace("LIMITS", box_config))}  average_precision_mode: INTEGRATE
}}
cost_function_config {{
{each(_COST)}  enable_autoweighting: true
  max_objective_weight: 0.9999
  min_objective_weight: 0.0001
}}
training_config {{
  batch_size_per_gpu: 4
  num_epochs: {epochs}
  enable_qat: {str(qat).lower()}
  learning_rate {{
    soft_start_annealing_schedule {{
      min_learning_rate: 5e-06   # found by hand
      max_learning_rate: 5e-04
      soft_start: 0.1
      annealing: 0.7
    }}
  }}
  regularizer {{ type: L1 weight: 3e-09 }}
  optimizer {{ adam {{ epsilon: 1e-08 beta1: 0.9 beta2: 0.999 }} }}
  cost_scaling {{ initial_exponent: 20.0 increment: 0.005 decrement: 1.0 }}
  checkpoint_interval: 10
}}
bbox_rasterizer_config {{
{each(_RASTER)}  deadzone_radius: 0.67
}}
"""


_PRUNED = 'retrain_pruned_model: "/workspace/tlt-experiments/model_pruned.tlt"'
_PRETRAINED = (
    'pretrained_weights: "/workspace/tlt-experiments/tlt_pretrained_object_detection_vresnet18/resnet_18.hdf5"'
)


def frcnn(
    *,
    retrain: bool = False,
    key: str = KEY,
    labels: tuple[str, ...] = ("car", "cyclist", "person"),
    size: tuple[int, int] = (1248, 384),
    extension: str = "png",
    qat: bool = False,
) -> str:
    return f"""\
random_seed: 42
enc_key: '{key}'
verbose: true
model_config {{
  input_image_config {{
    image_type: RGB
    image_channel_order: 'bgr'
    size_height_width {{
      height: {size[1]}
      width: {size[0]}
    }}
    image_channel_mean {{ key: 'b' value: 103.939 }}
    image_channel_mean {{ key: 'g' value: 116.779 }}
    image_channel_mean {{ key: 'r' value: 123.68 }}
    image_scaling_factor: 1.0
    max_objects_num_per_image: 100
  }}
  arch: "resnet:18"
  anchor_box_config {{ scale: 64.0 scale: 128.0 scale: 256.0 ratio: 1.0 ratio: 0.5 ratio: 2.0 }}
  freeze_bn: true
  freeze_blocks: 0
  freeze_blocks: 1
  roi_mini_batch: 256
  rpn_stride: 16
  use_bias: false
  roi_pooling_config {{ pool_size: 7 pool_size_2x: false }}
  all_projections: true
  use_pooling: false
}}
dataset_config {{
  data_sources {{
    tfrecords_path: "/workspace/tlt-experiments/tfrecords/*"
    image_directory_path: "/workspace/tlt-experiments/data/training"
  }}
  image_extension: '{extension}'
{_mapping({label: label for label in labels})}  validation_fold: 0
}}
augmentation_config {{
  preprocessing {{
    output_image_width: {size[0]}
    output_image_height: {size[1]}
    output_image_channel: 3
    min_bbox_width: 1.0
    min_bbox_height: 1.0
    enable_auto_resize: true
  }}
  spatial_augmentation {{ hflip_probability: 0.5 zoom_min: 1.0 zoom_max: 1.0 }}
  color_augmentation {{ contrast_center: 0.5 }}
}}
training_config {{
  enable_augmentation: true
  enable_qat: {str(qat).lower()}
  batch_size_per_gpu: 8
  num_epochs: 12
  {_PRUNED if retrain else _PRETRAINED}
  checkpoint_interval: 1
  rpn_min_overlap: 0.3
  rpn_max_overlap: 0.7
  classifier_min_overlap: 0.0
  classifier_max_overlap: 0.5
  gt_as_roi: false
  std_scaling: 1.0
  classifier_regr_std {{ key: 'x' value: 10.0 }}
  classifier_regr_std {{ key: 'y' value: 10.0 }}
  classifier_regr_std {{ key: 'w' value: 5.0 }}
  classifier_regr_std {{ key: 'h' value: 5.0 }}
  rpn_mini_batch: 256
  rpn_pre_nms_top_N: 12000
  rpn_nms_max_boxes: 2000
  rpn_nms_overlap_threshold: 0.7
  regularizer {{ type: L2 weight: 1e-4 }}
  optimizer {{ sgd {{ lr: 0.02 momentum: 0.9 decay: 0.0 nesterov: false }} }}
  learning_rate {{
    soft_start {{
      base_lr: 0.02 start_lr: 0.002 soft_start: 0.1 annealing_points: 0.8 annealing_points: 0.9 annealing_divider: 10.0
    }}
  }}
  lambda_rpn_regr: 1.0
  lambda_rpn_class: 1.0
  lambda_cls_regr: 1.0
  lambda_cls_class: 1.0
}}
inference_config {{
  images_dir: '/workspace/tlt-experiments/data/testing'
  model: '/workspace/tlt-experiments/model.tlt'
  batch_size: 1
  detection_image_output_dir: '/workspace/tlt-experiments/out/images'
  labels_dump_dir: '/workspace/tlt-experiments/out/labels'
  rpn_pre_nms_top_N: 6000
  rpn_nms_max_boxes: 300
  rpn_nms_overlap_threshold: 0.7
  object_confidence_thres: 0.0001
  bbox_visualize_threshold: 0.6
  classifier_nms_max_boxes: 100
  classifier_nms_overlap_threshold: 0.3
}}
evaluation_config {{
  model: '/workspace/tlt-experiments/model.tlt'
  batch_size: 1
  validation_period_during_training: 1
  rpn_pre_nms_top_N: 6000
  rpn_nms_max_boxes: 300
  rpn_nms_overlap_threshold: 0.7
  classifier_nms_max_boxes: 100
  classifier_nms_overlap_threshold: 0.3
  object_confidence_thres: 0.0001
  use_voc07_11point_metric: false
  gt_matching_iou_threshold: 0.5
}}
"""


MODEL = """\
model:
  model_name: resnet18
  model_download_dir: .
  model_type: nvidia/tlt_pretrained_object_detection
  base_model: detectnet_v2
  data_type: int8
"""
SPECS = """\
specs:
  data_convert_spec: convert.txt
  train_spec: train.txt
  retrain_spec: retrain.txt
"""


def kubeflow(url: str = "https://data.example.com/cars.zip") -> str:
    """The first shape."""
    return f"url: {url}\napi_key: {API_KEY}\nnum_gpus: '2'\n{MODEL}{SPECS}"


DVC = """\
dvc_specs:
  use_dvc: 'True'
  git_repo: https://git.example.com/team/cars.git
  git_user: trainer
  azure_model_container: models
  azure_data_container: data
  azure_specs_container: specs
  commit_msg: a new model
  commit_checkout_msg: latest
"""


def kubeflow_zip(data: str, specs: str) -> str:
    """The third shape."""
    return f"""\
dataset:
  name: Street Cars
  version: '3'
  url: {data}
spec:
  spec_url: {specs}
api_key: {API_KEY}
num_gpus: '1'
{MODEL}"""


MOUNTS = """\
{
  "Mounts": [
    {"source": "HOST", "destination": "/workspace/tlt-experiments"},
    {"source": "HOST/specs", "destination": "/workspace/tlt-experiments/specs"}
  ],
  "Envs": [
    {"variable": "CUDA_VISIBLE_DEVICES", "value": "0"},
    {"variable": "KEY", "value": "SECRET"}
  ],
  "DockerOptions": {"user": "1000:1000", "shm_size": "16G"}
}
"""
