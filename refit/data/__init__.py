"""Data in: readers, checks, split, snapshot, arrival, and the demo's synthetic data set."""
