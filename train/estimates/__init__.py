"""Memory, hours and disk of a run, before it starts.

Computed from a recipe and the shape of its model. memory.py: GPU memory, from a config.json (`python train/memory.py`).
costs.py: work, communication, steps, disk. plan.py: how many pairs of how many tokens, from the command line or the
tokenised sources, and all of it as text (`python train/plan.py`).
"""
