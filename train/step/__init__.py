"""The DeepSpeed engine, and the numbers of one optimizer step.

config.py          settings of optimizer and engine, and DeepSpeed's configuration made from them
engine.py          the engine: built, rehearsed, released; its weights gathered
step_metrics.py    sums over the packs and ranks of a step, its metrics, the pairs of a bad step
flops.py           FLOPs of a step
"""
