"""The bytes that tensors take in a dry run and in steps, measured in a child of tests/helpers/forked_runs.py."""

import gc
import hashlib
import json
import math
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from data.packing.pack import build_pack
from data.tokens.chat import make_group
from models.losses import bradley_terry
from train.runtime.distributed import read_ranks, start
from train.step.config import EngineConfig, OptimizerConfig, deepspeed_config
from train.step.engine import build_engine, make_moments, rehearse

CASES = [(1, "bf16"), (1, "fp32"), (2, "bf16"), (3, "bf16")]


class BytesAlive(TorchDispatchMode):
    """Counts the storage of all tensors that operations of this thread have made and nobody has let go yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self._known = 0, 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, out)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = None
            self._add(storage.nbytes())
            weakref.finalize(storage, self._add, -storage.nbytes())

    def _add(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)


def peaks_of(stage: int, precision: str) -> dict[str, Any]:
    """Of a rehearsed step and two real ones of three packs each: the peak of its packs, and that of the update."""
    buckets = {"zero_optimization": {"reduce_bucket_size": 10_000}}
    config = EngineConfig(zero_stage=stage, precision=precision, deepspeed=buckets)
    ids = np.random.default_rng(0).integers(0, 256, (12, 25)).astype(np.int32)
    pack = build_pack([make_group([[*row[:15]], [*row[:10], *row[15:]]]) for row in ids])
    found: dict[str, Any] = {"rehearsal": {}, "steps": [], "parameters": 0}
    with BytesAlive() as alive:
        model = tiny_model("qwen3", dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
        found["parameters"] = sum(p.numel() for p in model.parameters())
        optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)
        engine = build_engine(model, deepspeed_config(config, 1.0), optimizer, torch.device("cpu"))
        before = alive.now
        make_moments(engine)
        found["moments"] = alive.now - before

        def micro_step(divisor: float) -> None:
            gc.collect()  # or what is in cycles, of earlier models too, is let go whenever Python thinks of it
            rewards = engine(**pack.inputs()).view(-1, 2)
            engine.backward(bradley_terry(rewards[:, 0], rewards[:, 1]) / divisor, scale_wrt_gas=False)

        def update() -> None:
            gc.collect()
            record["packs"], alive.peak = alive.peak, alive.now
            step()
            record["update"], alive.peak = alive.peak, alive.now

        step, engine.step = engine.step, update
        untouched = digests_of(engine)
        record: dict[str, int] = found["rehearsal"]
        alive.peak = alive.now
        rehearse(engine, lambda: micro_step(math.inf))
        found["changed"] = [key for key, digest in digests_of(engine).items() if digest != untouched[key]]
        found["compared"] = len(untouched)
        found["rehearsed"] = engine.was_step_applied()
        for _ in range(2):
            record = {}
            alive.peak = alive.now
            for _ in range(3):
                micro_step(36.0)
            engine.step()
            found["steps"].append(record)
        found["trained"] = {float(state["step"]) for state in engine.optimizer.optimizer.state.values()} == {2.0}
    return found


def digests_of(engine: Any) -> dict[str, str]:
    """Hashes of weights, float32 weights, moments and counters; copies would count."""
    # Under ZeRO-3 a parameter is its shard, in ds_tensor; it may be gathered at the moment, or not.
    state = {name: vars(p).get("ds_tensor", p).detach() for name, p in engine.module.named_parameters()}
    for i, (weight, moments) in enumerate(engine.optimizer.optimizer.state.items()):
        state |= {f"{i} {key}": tensor for key, tensor in {"fp32": weight.detach(), **moments}.items()}
    raw = {key: tensor.reshape(-1).view(torch.uint8).numpy() for key, tensor in state.items()}
    return {key: hashlib.sha256(values.tobytes()).hexdigest() for key, values in raw.items()}


def measure(directory: str) -> None:
    """For every one of DeepSpeed's optimizers; each rank writes what it found and ends."""
    ranks = read_ranks()
    start(ranks, torch.device("cpu"))
    found = {f"ZeRO-{stage} {kind}": peaks_of(stage, kind) for stage, kind in CASES}
    Path(directory, f"found-{ranks.rank}.json").write_text(json.dumps(found))
    os._exit(0)
