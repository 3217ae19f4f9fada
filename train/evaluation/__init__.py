"""Held-out pairs and benchmarks during a run.

held_out.py        EvaluationConfig; the rewards of held-out pairs, their metrics by source, and the files with them
pair_metrics.py    the metrics and tables of rewards and lengths, as plain functions of arrays (docs/evaluation.md)
benchmarks.py      benchmarks, scored like held-out pairs

When one is due is decided in train/run/between_steps.py.
"""
