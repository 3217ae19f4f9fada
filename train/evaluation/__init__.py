"""Held-out pairs and benchmarks during a run.

held_out.py        EvaluationConfig; the rewards of held-out pairs, and their metrics by source
pair_metrics.py    the metrics and tables of rewards and lengths, as plain functions of arrays (docs/evaluation.md)
benchmarks.py      benchmarks, scored like held-out pairs
files.py           what an evaluation writes into the run directory

When one is due is decided in train/run/evaluations.py.
"""
