"""Resumable state: written, sealed with hashes, found and loaded.

manager.py             when a checkpoint is written and kept. `Checkpoints.commit` seals it, once all ranks have flushed
                       and hashed their files: it gets its manifest, then its name, then `latest` points at it
state.py               TrainState: where a run stands, besides the engine's own state
deepspeed_shards.py    the engine's state: written by every rank, loaded by any number of ranks

Which one a run goes on from is decided in train/run/resume_point.py.
"""
