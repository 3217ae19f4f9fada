"""What can go wrong in a run, put into it on purpose (by name, in a child of tests/helpers/forked_runs.py)."""

import os
from typing import Any

import torch


def _every_rank_but(rank: int) -> bool:
    return int(os.environ.get("RANK", 0)) != rank


def _wrap_rewards(change: Any) -> None:
    """Let `change(rewards, call)` see the rewards of each pack; `call` counts from 1 (1 is the dry run)."""
    from models.reward_model import RewardModel
    from train import loop

    forward, rehearse, calls = RewardModel.forward, loop.rehearse, [0]

    def rehearsed(*args: Any) -> None:
        rehearse(*args)
        calls[0] = 1  # whichever the stage

    loop.rehearse = rehearsed

    def patched(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards = forward(self, *args, **kwargs)
        calls[0] += self.training
        return change(rewards, calls[0]) if self.training else rewards

    RewardModel.forward = patched  # type: ignore[method-assign]


def one_infinite_reward() -> None:
    """In the third pack of training of rank 0, only once. Its loss stays finite: the chosen one is +inf."""
    add = torch.zeros(1)
    add[0] = float("inf")

    def change(rewards: torch.Tensor, call: int) -> torch.Tensor:
        return torch.cat([rewards[:1] + add, rewards[1:]]) if call == 4 and not _every_rank_but(0) else rewards

    _wrap_rewards(change)


def nan_from_the_fourth_pack_on() -> None:
    _wrap_rewards(lambda rewards, call: rewards * float("nan") if call > 4 and not _every_rank_but(0) else rewards)


def no_reward_is_a_number() -> None:
    _wrap_rewards(lambda rewards, call: rewards * float("nan"))


def infinite_gradient_once() -> None:
    """The reward is finite and its gradient is not, in the third pack of rank 0."""

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * float("inf")

    def change(rewards: torch.Tensor, call: int) -> torch.Tensor:
        return Explode.apply(rewards) if call == 4 and not _every_rank_but(0) else rewards

    _wrap_rewards(change)


def out_of_memory_in_large_packs() -> None:
    def change(rewards: torch.Tensor, call: int) -> torch.Tensor:
        if call == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return rewards

    _wrap_rewards(change)


def slow_second_step() -> None:
    """Long enough for the watchdog of a test, which waits for half of engine.hang_minutes."""
    import time

    def change(rewards: torch.Tensor, call: int) -> torch.Tensor:
        if call == 4:
            time.sleep(4)
        return rewards

    _wrap_rewards(change)


def disk_full_in_the_second_checkpoint() -> None:
    """Shards of rank 1 (of 0, where there is one rank) cannot be written, from the second checkpoint on."""
    import errno

    from train.checkpoints import deepspeed_shards

    save, calls = deepspeed_shards.ShardWriter.save, [0]
    broken = int(os.environ.get("WORLD_SIZE", 1)) - 1

    def patched(self: Any, state_dict: Any, path: str) -> None:
        calls[0] += 1
        if calls[0] > 2 and not _every_rank_but(broken):
            with self.catch():
                raise OSError(errno.ENOSPC, "No space left on device", path)
        else:
            save(self, state_dict, path)

    deepspeed_shards.ShardWriter.save = patched  # type: ignore[method-assign]


def killed_in_the_fifth_step() -> None:
    """All ranks, after the fourth step's checkpoint is whole: before the optimizer's update."""
    import signal

    from train import loop
    from train.checkpoints.manager import Checkpoints

    set_rate, save = loop.set_learning_rate, Checkpoints.save

    def save_and_wait(self: Any, *args: Any, **options: Any) -> None:
        save(self, *args, **options)
        self.commit(wait=True)  # else a busy machine might not have sealed it by the fifth step

    Checkpoints.save = save_and_wait  # type: ignore[method-assign]

    def patched(engine: Any, learning_rate: float) -> None:
        set_rate(engine, learning_rate)
        calls[0] += 1
        if calls[0] == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    calls = [0]
    loop.set_learning_rate = patched


def signal_in_pack(number: int, call: int, rank: int = 0) -> None:
    """The rank sends itself a signal in the middle of a pack, as a scheduler or a person would."""
    import signal

    signal.signal(number, signal.SIG_DFL)  # whatever the tests themselves run under

    def change(rewards: torch.Tensor, now: int) -> torch.Tensor:
        if now == call and not _every_rank_but(rank):
            os.kill(os.getpid(), number)
        return rewards

    _wrap_rewards(change)


def screen_goes_away(kind: str, descriptors: list[int], call: int, number: int = 0) -> None:
    """The reader of these descriptors ends in the middle of a pack (0: before anything is written), and a signal comes.

    Args:
        kind: pipe, terminal, or full: a log on a full disk, from the beginning.
        number: of the signal; 0: none.
    """
    import pty
    import signal

    reader, writer = {"pipe": os.pipe, "terminal": pty.openpty, "full": _full}[kind]()
    for descriptor in descriptors:
        os.dup2(writer, descriptor)
    os.close(writer)
    if number:
        signal.signal(number, signal.SIG_DFL)  # whatever the tests themselves run under
    if call == 0:
        os.close(reader)

    def change(rewards: torch.Tensor, now: int) -> torch.Tensor:
        if now == call:
            os.close(reader)
            os.kill(os.getpid(), number)
        return rewards

    _wrap_rewards(change)


def _full() -> tuple[int, int]:
    return os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


def stop_file_in_pack(run_dir: str, call: int) -> None:
    """Somebody makes the file STOP; the run looks for it once a second."""
    import time
    from pathlib import Path

    def change(rewards: torch.Tensor, now: int) -> torch.Tensor:
        if now == call:
            (Path(run_dir) / "STOP").touch()
            time.sleep(1.1)
        return rewards

    _wrap_rewards(change)


def limit_passes_in_pack(call: int) -> None:
    """The clock of run.max_hours jumps ahead."""
    from train.runtime import preemption

    look = preemption.Preemption._look

    def patched(self: Any) -> int:
        self._next_look = 0.0
        if late:
            self._started -= 1e6
        return look(self)

    def change(rewards: torch.Tensor, now: int) -> torch.Tensor:
        late.extend([True] * (now == call))
        return rewards

    late: list[bool] = []
    preemption.Preemption._look = patched  # type: ignore[method-assign]
    _wrap_rewards(change)


def state_after_resume(directory: str) -> None:
    """Each rank writes what it holds once it has resumed: every parameter's float32 weights and both moments, whole."""
    from train.checkpoints import deepspeed_shards

    load = deepspeed_shards.load_checkpoint

    def patched(engine: Any, path: Any, ranks: Any) -> Any:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state = load(engine, path, ranks)
        if engine.zero_optimization_stage() < 3:
            engine.optimizer._lazy_init_hp_params_optimizer_state()  # DeepSpeed would in the next step
        found = {}
        for name, parameter in engine.module.named_parameters():
            found[f"{name} weight"] = safe_get_full_fp32_param(parameter).cpu()
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{name} {key}"] = safe_get_full_optimizer_state(parameter, key).cpu()
        steps = [float(s["step"]) for s in engine.optimizer.optimizer.state.values()]
        unset = ("params", "lr")  # the learning rate is set before every step
        groups = [{k: v for k, v in group.items() if k not in unset} for group in engine.optimizer.param_groups]
        torch.save({"tensors": found, "steps": steps, "groups": groups}, f"{directory}/state-{ranks.rank}.pt")
        return state

    deepspeed_shards.load_checkpoint = patched


def signal_in_save(number: int) -> None:
    """Between the shards of a checkpoint."""
    import signal

    from train.checkpoints import deepspeed_shards

    signal.signal(number, signal.SIG_DFL)
    save = deepspeed_shards.ShardWriter.save

    def patched(self: Any, state_dict: Any, path: str) -> None:
        save(self, state_dict, path)
        os.kill(os.getpid(), number)

    deepspeed_shards.ShardWriter.save = patched  # type: ignore[method-assign]


def state_after_unfixed_resume(directory: str) -> None:
    """As DeepSpeed leaves it."""
    from train.checkpoints import deepspeed_shards

    def patched(engine: Any, hyperparameters: Any) -> None:
        inner = engine.optimizer.optimizer
        counters = {id(state["step"]) for state in inner.state.values()}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in inner.param_groups]
        torch.save({"groups": groups, "counters": len(counters)}, f"{directory}/state-0.pt")

    deepspeed_shards._fix_universal_load = patched


def check_export_in_process() -> None:
    """The check of an export as it is, but for the start of its process."""
    import subprocess
    from types import SimpleNamespace

    from train import check_export
    from train.export import write

    def run(command: list[str], env: Any) -> Any:
        return subprocess.CompletedProcess(command, check_export.main(command[2:]))

    write.subprocess = SimpleNamespace(run=run)  # type: ignore[assignment]


def check_export_out_of_memory() -> None:
    """On every device and in every pack."""
    from train.export import verify

    def packed(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 34.00 GiB.")

    verify._packed = packed
    check_export_in_process()


def bytes_alive_at_the_end(directory: str) -> None:
    """Each rank writes the bytes of all its tensors before its export, and once its engine is gone."""
    import gc
    from pathlib import Path

    from train.export import write

    export_run, write_export = write.export_run, write.write_export

    def count(gathered: dict[str, torch.Tensor]) -> None:
        storages = [t.untyped_storage() for t in gc.get_objects() if isinstance(t, torch.Tensor)]
        ours = {tensor.untyped_storage().data_ptr() for tensor in gathered.values()}
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        alive = sum(size for at, size in sizes.items() if at not in ours)
        with Path(directory, f"alive-{os.environ.get('RANK', 0)}").open("a") as file:
            file.write(f"{alive}\n")

    def writing(run: Any, state: Any, *arguments: Any) -> None:
        count(state)
        write_export(run, state, *arguments)

    def exporting(run: Any, metrics: Any) -> Any:
        count({})
        path = export_run(run, metrics)
        if path is None:
            count({})
        return path

    write.export_run, write.write_export = exporting, writing
    check_export_in_process()


SECRETS = {
    "WANDB_API_KEY": "5ec2e7" * 6 + "5ec2",
    "HF_TOKEN": "hf_5ec2e7TokenOfTheHub",
    "AWS_SECRET_ACCESS_KEY": "5ec2e7/AccessKey",
    "MY_PASSWORD": "5ec2e7Password",
}


def secrets_in_the_environment() -> None:
    """As on many a machine; and the model card of the export is checked in this process, which has them too."""
    os.environ.update(SECRETS, WANDB_MODE="offline")
    check_export_in_process()


def one_rank_sleeps(rank: int) -> None:
    """In its fifth pack, for ever as far as the others can tell."""
    import time

    def change(rewards: torch.Tensor, call: int) -> torch.Tensor:
        if call == 5 and not _every_rank_but(rank):
            time.sleep(60)
        return rewards

    _wrap_rewards(change)


def signal_in_evaluation(number: int, step: int) -> None:
    """Before a pack of the evaluation after a step."""
    import signal

    from train.run.run import Run

    signal.signal(number, signal.SIG_DFL)
    check_in = Run.check_in

    def patched(self: Any, kind: str, *args: Any) -> None:
        if kind == "evaluation" and self.state.step == step:
            os.kill(os.getpid(), number)
        check_in(self, kind, *args)

    Run.check_in = patched  # type: ignore[method-assign]


def tensor_bytes(directory: str) -> None:
    """Nothing is trained: the memory of a dry run and of steps is measured."""
    from tensor_bytes import measure

    measure(directory)
