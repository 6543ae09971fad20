"""TAO's containers, as far as Refit can see them: the same command lines, outputs and status lines, and no training.

    python -m tests.tao.standin detectnet_v2 train -e train.txt -r results --gpus 1

Written from facts read in NVIDIA's sources (tao_tensorflow1_backend 5.0, tao_tensorflow2_backend 6.0.0,
tao_pytorch_backend 6.25.10, tao_deploy and tao_dataset_suite 6.25.11/7.0.1), of which nothing is copied. They check
what TAO would fall over (paths, empty TFRecords, ids, sizes), "train" to a mAP that follows from epochs, pruning and
the data, and export a real ONNX model with the network's own tensors, which onnxruntime and Triton run.

| module | what |
|---|---|
| `__main__` | programs, tasks, and how each family's entry point ends |
| `tf1` | detectnet_v2, faster_rcnn, ssd, yolo_v4 |
| `hydra` | efficientdet_tf2; rtdetr, dino, deformable_detr; augmentation, annotations |
| `deploy` | engines for all of them |
| `graph` | the ONNX models |
| `files` | models, TFRecords, data sets, plans |
| `status` | status.json |

Environment:
- REFIT_STANDIN_LIE=1..12: lie in one of TAO's ways (tests/refit/test_runner_tao.py has the list); with
  REFIT_STANDIN_LIE_TASK=train only in that task.
- REFIT_STANDIN_EPOCH_SECONDS: how long an epoch takes (0).
- REFIT_STANDIN_TENSORRT: the version that a plan says it was built by (10.8.0.43).
- REFIT_STANDIN_INT8_LOSES: of the mAP (0).
- REFIT_STANDIN_GPU: what nvidia-smi says ("Tesla T4, 7.5").
- REFIT_STANDIN_IMAGE=tf1|tf2|pyt|deploy|data_services: refuse what that image does not have; not set: any.
"""
