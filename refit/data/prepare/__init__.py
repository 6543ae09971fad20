"""A snapshot written as the input of NVIDIA TAO: KITTI folders or COCO files, and the images that calibrate INT8."""
