"""Where the time of our training step goes: the run of `compare.py`'s workload under torch.profiler.

    python tests/perf/profile_step.py lengths=lognormal:120/70 pairs=128 pairs_per_step=32

The steps are those of train.loop.train itself: the loader that it iterates over is wrapped, so that the profiler starts
after the warm-up steps and waiting for data is seen. Takes compare.py's settings; one rank; those of TRL are ignored.
"""

import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from settings import CompareConfig, read_config, run_command

from train.recipe.safe_yaml import RecipeError

DATA, OPTIMIZER = "step: data", "step: optimizer"  # names of the ranges that we mark
OTHER = "other and idle"
# The first that fits an op or kernel decides. Communication comes first: it happens inside the others.
CATEGORIES = {
    "communication": r"nccl|gloo|c10d|all_?reduce|all_?gather|reduce_?scatter|broadcast|barrier",
    "data": re.escape(DATA),
    "optimizer": rf"{re.escape(OPTIMIZER)}|adam|multi_tensor_apply",
    "attention": r"attention|flash|fmha|varlen|softmax",
    "matmul": r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|mkldnn_\w+)$|gemm|gemv|cutlass|cublas|nvjet|xmma",
}
ELEMENTWISE = "elementwise, norms, copies"


@dataclass(frozen=True)
class Profile:
    wall_seconds: float
    num_steps: int
    seconds: dict[str, float]  # by category; sums to the wall-clock
    ops: list[tuple[str, float, int]]  # name, seconds, calls; the longest first


class WatchedLoader:
    """A run's loader, which starts the profiler when the warm-up is over and marks the waiting for data."""

    def __init__(self, loader: Any, warmup_steps: int, profiler: Any):
        self._loader, self._warmup, self._profiler = loader, warmup_steps, profiler
        self.started = self.stopped = 0.0
        self.num_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def steps(self, *args: Any) -> Iterator[Any]:
        from torch.profiler import record_function

        steps = self._loader.steps(*args)
        while True:
            if self.num_steps == self._warmup:
                self._profiler.start()
                self.started = time.perf_counter()
            with record_function(DATA):
                step = next(steps, None)
            if step is None:
                break
            self.num_steps += 1
            yield step
        # Every step ends with a sum that waits for the device, so nothing is under way here.
        self.stopped = time.perf_counter()
        self._profiler.stop()


def profile(config: CompareConfig, out: Path) -> Profile:
    """Train on the workload, under the profiler. Raises: RecipeError, DataError, ModelError."""
    from torch.profiler import record_function
    from workload import make_workload

    from train.loop import train
    from train.recipe.schema import load_recipe
    from train.run.resume_rules import Changes
    from train.run.setup import set_up
    from train.runtime.distributed import read_ranks, stop
    from train.runtime.preemption import Preemption
    from train.runtime.tracking import Tracker

    workload = make_workload(config, out / "workload")
    overrides = [part for part in config.ours_settings.split(",") if part]
    recipe = load_recipe([f"recipe={workload.recipe}", f"run_dir={out / 'profiled'}", *overrides])
    run = set_up(recipe, read_ranks(), Preemption(recipe.directory(), is_main=True), Changes())
    profiler = new_profiler(run.device.type)
    loader = WatchedLoader(run.loader, config.warmup_steps, profiler)
    run.engine.step = marked(run.engine.step, record_function, OPTIMIZER)
    tracker = Tracker(run.directory, recipe.tracking, recipe={}, main=True, step=0)
    try:
        train(replace(run, loader=loader), tracker)  # type: ignore[arg-type]
    finally:
        tracker.close()
        stop()
    spans = kernel_spans(profiler) if run.device.type == "cuda" else cpu_spans(profiler)
    return summarise(spans, loader.stopped - loader.started, loader.num_steps - config.warmup_steps)


def new_profiler(device: str) -> Any:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    return torch_profile(activities=activities, acc_events=True)


def marked(function: Callable[..., Any], mark: Any, name: str) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with mark(name):
            return function(*args, **kwargs)

    return inside


# --- from events to categories --------------------------------------------------------------------------------------

Span = tuple[str, str, float]  # name, category, seconds


def cpu_spans(profiler: Any) -> Iterator[Span]:
    """Self time of every op on the threads that train; the loader's own thread runs beside them."""
    events = [event for event in profiler.events() if event.device_type.name == "CPU"]
    threads = training_threads(events)
    for event in (event for event in events if event.thread in threads):
        yield event.name, category_of(event.name, ancestors(event)), event.self_cpu_time_total / 1e6


def training_threads(events: list[Any]) -> set[int]:
    """The main thread, and the one on which autograd runs the backward pass."""
    return {e.thread for e in events if e.name == OPTIMIZER or e.name.startswith("autograd::engine")}


def kernel_spans(profiler: Any) -> Iterator[Span]:
    """Every kernel on the GPU, under the op that launched it; and the waiting for data on the host."""
    for event in profiler.events():
        above = [event.name, *ancestors(event)]
        for kernel in event.kernels:
            yield kernel.name, category_of(kernel.name, above), kernel.duration / 1e6
        if event.name == DATA:
            yield event.name, "data", event.self_cpu_time_total / 1e6


def ancestors(event: Any) -> list[str]:
    names = []
    while (event := event.cpu_parent) is not None:
        names.append(event.name)
    return names


def category_of(name: str, above: list[str]) -> str:
    """The category of an op or kernel, by its own name, else by what it runs inside of."""
    for category in CATEGORIES:
        if any(re.search(CATEGORIES[category], n, re.IGNORECASE) for n in (name, *above)):
            return category
    return ELEMENTWISE


def summarise(spans: Iterator[Span], wall_seconds: float, num_steps: int) -> Profile:
    seconds = dict.fromkeys([*CATEGORIES, ELEMENTWISE], 0.0)
    ops: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for name, category, spent in spans:
        seconds[category] += spent
        ops[name][0] += spent
        ops[name][1] += 1
    seconds[OTHER] = wall_seconds - sum(seconds.values())
    longest = sorted(((name, total, int(calls)) for name, (total, calls) in ops.items()), key=lambda op: -op[1])
    return Profile(wall_seconds, num_steps, seconds, longest[:15])


def render(profile: Profile) -> str:
    from report import table

    per_step = 1000 / profile.num_steps
    shares = [
        [name, f"{spent / profile.wall_seconds:.1%}", f"{spent * per_step:.1f}"]
        for name, spent in profile.seconds.items()
    ]
    ops = [
        [name[:80], f"{spent / profile.wall_seconds:.1%}", f"{spent * per_step:.1f}", str(calls)]
        for name, spent, calls in profile.ops
    ]
    whole = f"{profile.num_steps} step(s) of {profile.wall_seconds / profile.num_steps:.3f} s, profiled"
    return "\n\n".join(
        [whole, table(["where", "share", "ms a step"], shares), table(["op", "share", "ms a step", "calls"], ops)]
    )


def work(config: CompareConfig) -> int:
    if config.ranks != 1:
        raise RecipeError(f"ranks={config.ranks}: one rank is profiled")
    print(f"\n{render(profile(config, Path(config.out).expanduser().resolve()))}")
    return 0


def main(arguments: list[str]) -> int:
    given = [argument for argument in arguments if not argument.startswith("sides=")]
    return run_command(__doc__, read_config, work, [*given, "sides=ours"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
