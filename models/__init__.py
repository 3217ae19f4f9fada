"""Tensors in, rewards out. Nothing in here knows about data files; see docs/architecture.md for the order of the layers."""
