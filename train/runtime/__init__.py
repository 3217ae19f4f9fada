"""Ranks, signals and other stops, hangs, logs.

distributed.py, slurm.py    which rank this is, process groups, what all ranks agree on
preemption.py               requests to stop
watchdog.py                 stacks of a rank that hangs
tracking.py                 metrics.jsonl and wandb
"""
