"""Small good specs of every network, one a stage or more, for tests of what is said about bad ones."""

_DETECTNET = """\
random_seed: 42
dataset_config {
  data_sources {
    tfrecords_path: "/data/tfrecords/*"
    image_directory_path: "/data/images"
  }
  image_extension: "jpg"
  target_class_mapping { key: "car" value: "car" }
  target_class_mapping { key: "van" value: "car" }
  validation_fold: 0
}
augmentation_config {
  preprocessing { output_image_width: 960 output_image_height: 544 output_image_channel: 3 }
  color_augmentation { hue_rotation_max: 25.0 }
}
model_config {
  arch: "resnet"
  num_layers: 18
  freeze_blocks: 0
  freeze_blocks: 1
  objective_set { bbox { scale: 35.0 offset: 0.5 } cov { } }
}
evaluation_config {
  validation_period_during_training: 10 first_validation_epoch: 10
  minimum_detection_ground_truth_overlap { key: "car" value: 0.7 }
  evaluation_box_config { key: "car" value { minimum_height: 20 maximum_height: 9999 maximum_width: 9999 } }
  average_precision_mode: INTEGRATE
}
training_config {
  batch_size_per_gpu: 4
  num_epochs: 80
  enable_qat: false
  learning_rate {
    soft_start_annealing_schedule { min_learning_rate: 5e-06 max_learning_rate: 5e-04 soft_start: 0.1 annealing: 0.7 }
  }
  regularizer { type: L1 weight: 3e-09 }
  optimizer { adam { epsilon: 1e-08 beta1: 0.9 beta2: 0.999 } }
  cost_scaling { initial_exponent: 20.0 increment: 0.005 decrement: 1.0 }
}
cost_function_config {
  target_classes {
    name: "car"
    class_weight: 1.0
    coverage_foreground_weight: 0.05
    objectives { name: "cov" initial_weight: 1.0 weight_target: 1.0 }
  }
}
postprocessing_config {
  target_class_config { key: "car" value { clustering_config { coverage_threshold: 0.005 dbscan_eps: 0.15 } } }
}
bbox_rasterizer_config {
  target_class_config { key: "car" value { cov_center_x: 0.5 cov_center_y: 0.5 cov_radius_x: 1.0 cov_radius_y: 1.0 } }
  deadzone_radius: 0.67
}
"""
_INFERENCER = """\
inferencer_config {
  target_classes: ["car", "van"]
  image_width: 960
  image_height: 544 image_channels: 3
  batch_size: 8
  tensorrt_config { trt_engine: "/out/model.engine" backend_data_type: INT8 }
}
bbox_handler_config {
  classwise_bbox_handler_config {
    key: "default"
    value { clustering_config { coverage_threshold: 0.005 } bbox_color { R: 255 } }
  }
}
"""
_KITTI = """\
kitti_config {
  root_directory_path: "/data"
  image_dir_name: "images"
  label_dir_name: "labels"
  image_extension: ".jpg"
  partition_mode: "random"
  val_split: 20
  num_shards: 10
}
image_directory_path: "/data"
"""
_FASTER_RCNN = """\
random_seed: 42
model_config {
  input_image_config {
    image_type: RGB
    size_height_width { height: 384 width: 1248 }
    image_channel_mean { key: "b" value: 103.939 }
    image_channel_order: "bgr" image_scaling_factor: 1.0 max_objects_num_per_image: 100
  }
  arch: "resnet:18"
  anchor_box_config { scale: [64.0, 128.0] ratio: 1 }
  roi_mini_batch: 256 rpn_stride: 16
}
augmentation_config { preprocessing { output_image_channel: 3 } }
training_config {
  batch_size_per_gpu: 1 num_epochs: 12 enable_qat: True
  std_scaling: 1.0 rpn_mini_batch: 256 rpn_nms_max_boxes: 2000 rpn_nms_overlap_threshold: 0.7
  rpn_min_overlap: 0.3 rpn_max_overlap: 0.7 classifier_min_overlap: 0.0 classifier_max_overlap: 0.5
  lambda_rpn_regr: 1.0 lambda_rpn_class: 1.0 lambda_cls_regr: 1.0 lambda_cls_class: 1.0
}
evaluation_config {
  rpn_nms_max_boxes: 300 rpn_nms_overlap_threshold: 0.7 classifier_nms_max_boxes: 100
  classifier_nms_overlap_threshold: 0.3 object_confidence_thres: 0.0001
}
inference_config {
  rpn_nms_max_boxes: 300 rpn_nms_overlap_threshold: 0.7 classifier_nms_max_boxes: 100
  classifier_nms_overlap_threshold: 0.3 object_confidence_thres: 0.0001 bbox_visualize_threshold: 0.6
}
"""
_SSD = """\
ssd_config { arch: "resnet" nlayers: 18 aspect_ratios_global: "[1.0, 2.0]" variances: "[0.1, 0.1, 0.2, 0.2]" }
training_config {
  batch_size_per_gpu: 16 num_epochs: 80 pretrain_model_path: "/weights/resnet.hdf5"
  learning_rate {
    soft_start_annealing_schedule { min_learning_rate: 5e-5 max_learning_rate: 2e-2 soft_start: 0.15 annealing: 0.8 }
  }
  regularizer { type: L1 weight: 3e-5 }
}
eval_config {
  validation_period_during_training: 10 average_precision_mode: SAMPLE batch_size: 16 matching_iou_threshold: 0.5
}
nms_config { confidence_threshold: 0.01 clustering_iou_threshold: 0.6 top_k: 200 }
augmentation_config { output_width: 300 output_height: 300 output_channel: 3 }
dataset_config {
  data_sources { tfrecords_path: "/data/tfrecords/*" }
  target_class_mapping { key: "car" value: "car" }
}
"""
_YOLO = """\
yolov4_config {
  arch: "cspdarknet" nlayers: 53 box_matching_iou: 0.25 matching_neutral_box_iou: 0.5 freeze_bn: false
  big_anchor_shape: "[(114.94, 60.67)]" mid_anchor_shape: "[(42.99, 31.91)]" small_anchor_shape: "[(15.60, 13.88)]"
}
training_config { batch_size_per_gpu: 8 num_epochs: 80 checkpoint_interval: 10 pruned_model_path: "/out/pruned.hdf5" }
eval_config { batch_size: 8 matching_iou_threshold: 0.5 }
nms_config { clustering_iou_threshold: 0.5 }
augmentation_config {
  hue: 0.1 saturation: 1.5 exposure: 1.5 mosaic_min_ratio: 0.2 output_width: 1248 output_height: 384 output_channel: 3
}
dataset_config {
  data_sources { tfrecords_path: "/data/*" }
  image_extension: "jpg"
  target_class_mapping { key: "car" value: "car" }
}
"""
_EFFICIENTDET = """\
results_dir: /out
dataset:
  train_tfrecords: [/data/train-*]
  val_tfrecords: [/data/val-*]
  val_json_file: /data/val.json
  num_classes: 3
model: {name: efficientdet-d0, input_width: 512, input_height: 512}
train:
  num_epochs: 20
  batch_size: 8
  checkpoint_interval: 5
  validation_interval: ${train.checkpoint_interval}
  lr_schedule: {name: cosine, learning_rate: 2e-1}
"""
_DETR = """\
results_dir: /out
dataset:
  train_data_sources:
    - image_dir: /data/train
      json_file: /data/train.json
  val_data_sources:
    image_dir: /data/val
    json_file: /data/val.json
  num_classes: 2
  batch_size: 4
  augmentation:
    multi_scales: [480, 512]
model:
  backbone: resnet_50
train:
  num_epochs: 12
  precision: fp32
  optim: {lr: 1e-4, lr_steps: [10]}
"""
_DETR_LISTS = _DETR.replace("    image_dir: /data/val\n    json", "    - image_dir: /data/val\n      json").replace(
    "    multi_scales: [480, 512]\n", "    scales: [480, 512]\n"
)
_EXPORT = """\
export: {checkpoint: /in/model.pth, onnx_file: /out/model.onnx, input_width: 640, input_height: 640}
dataset: {num_classes: 2, batch_size: -1}
"""
_ENGINE = """\
gen_trt_engine:
  onnx_file: /in/model.onnx
  trt_engine: /out/model.engine
  tensorrt:
    data_type: int8
    max_batch_size: 8
    calibration: {cal_image_dir: [/data/train], cal_cache_file: /out/cal.bin, cal_batches: 10}
"""

GOOD = {
    ("detectnet_v2", "train"): _DETECTNET,
    ("detectnet_v2", "evaluate_quantized"): _DETECTNET,
    ("detectnet_v2", "inference"): _INFERENCER,
    ("detectnet_v2", "dataset_convert"): _KITTI,
    ("faster_rcnn", "retrain"): _FASTER_RCNN,
    ("faster_rcnn", "dataset_convert_val"): _KITTI,
    ("ssd", "train"): _SSD,
    ("yolo_v4", "retrain"): _YOLO,
    ("efficientdet_tf2", "train"): _EFFICIENTDET,
    ("efficientdet_tf2", "prune"): "prune: {checkpoint: /in/model.tlt, threshold: 0.3, granularity: 8}\n",
    ("rtdetr", "train"): _DETR,
    ("rtdetr", "evaluate_trained"): _DETR + "evaluate: {checkpoint: /in/model.pth}\n",
    ("rtdetr", "evaluate_quantized"): _DETR + "evaluate: {trt_engine: /in/model.engine}\n",
    ("rtdetr", "inference"): "inference: {checkpoint: a.pth}\ndataset: {infer_data_sources: {image_dir: [/data]}}\n",
    ("rtdetr", "export"): _EXPORT,
    ("rtdetr", "build_engine"): _ENGINE,
    ("rtdetr", "quantize"): """\
quantize:
  backend: modelopt.onnx
  mode: static_ptq
  model_path: /in/model.onnx
  layers:
    - module_name: "*"
      weights: {dtype: int8}
      activations: {dtype: int8}
  backend_kwargs: {calibration: {batches: 10}}
""",
    ("rtdetr", "distill"): """\
distill:
  teacher: {backbone: resnet_50}
  pretrained_teacher_model_path: /in/teacher.pth
  bindings:
    - {teacher_module_name: pred_logits, student_module_name: pred_logits, criterion: KL}
""",
    ("dino", "train"): _DETR_LISTS,
    ("dino", "build_engine"): _ENGINE,
    ("deformable_detr", "train"): _DETR_LISTS.replace("1e-4", "2e-4"),
    ("deformable_detr", "export"): _EXPORT,
    ("augmentation", "augment"): """\
data: {dataset_type: kitti, image_dir: /data/images, ann_path: /data/labels, output_dataset: /out}
spatial_aug: {rotation: {angle: [5, 10.5], units: degrees}}
""",
    (
        "annotations",
        "convert",
    ): "data: {input_format: KITTI, output_format: COCO}\nkitti: {image_dir: /a, label_dir: /b}\n",
}
