"""Pretrained weights from NVIDIA NGC: listed, downloaded once for all pipelines, or taken from a folder."""
