"""Held-out pairs and benchmarks during a run."""
