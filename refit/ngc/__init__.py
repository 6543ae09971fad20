"""Pretrained weights from NVIDIA NGC: listed, downloaded once for all runs, or taken from a folder."""
