"""Memory, hours and disk of a run, before it starts.

Computed from a recipe and the shape of its model. memory.py: GPU memory, from a config.json (`python train/memory.py`).
pairs.py: how many pairs of how many tokens, from the command line or the tokenised sources. costs.py: work,
communication, steps, disk. tables.py: all of it as text (`python train/plan.py`).
"""
