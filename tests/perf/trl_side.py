"""TRL's side: RewardTrainer on the same model, token ids, order and optimizer steps.

`run_trl` starts this file as a process of its own, with a JSON file that says what to do; the process writes stamps,
losses, tokens and its peak memory beside it.
"""

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from settings import TRL_DEFAULT_BATCH, CompareConfig, TrlSettings

from train.runtime.distributed import has_gpu


def run_trl(
    config: CompareConfig,
    model: Path,
    data: Path,
    settings: TrlSettings,
    directory: Path,
    *,
    side: str,
    num_steps: int,
    limit: float | None = None,
) -> Any:
    """Train `num_steps` steps once; returns Figures. Raises: RunFailed, also after `limit` seconds."""
    from processes import Figures, launcher, run_process

    directory.mkdir(parents=True, exist_ok=True)
    ranks = settings.ranks or config.ranks
    task = directory / "task.json"
    task.write_text(
        json.dumps(
            {
                "model": str(model),
                "data": str(data),
                "directory": str(directory),
                "num_steps": num_steps,
                "pairs_per_step": config.pairs_per_step,
                "learning_rate": config.learning_rate,
                "precision": config.precision,
                "ranks": ranks,
                "settings": asdict(settings),
            }
        )
    )
    command = [*launcher("torchrun", ranks), str(Path(__file__).resolve()), str(task)]
    finished = run_process(command, directory / "output.log", ranks, limit)
    seen = json.loads((directory / "seen.json").read_text())
    return Figures(
        side=side,
        ranks=ranks,
        step_ends=[stamp - finished.launched for stamp in seen["step_ends"]],
        first_step_start=seen["step_starts"][0] - finished.launched,
        losses=seen["losses"],
        processed_tokens=seen["tokens"],
        peak_gib=seen["peak_gib"],
        start_gib=finished.resident_at(seen["step_starts"][0]),
        about={"settings": str(settings), "arguments": seen["arguments"]},
    )


# --- the process ----------------------------------------------------------------------------------------------------


def reward_config(task: dict[str, Any], settings: TrlSettings) -> Any:
    """RewardConfig as it comes, but for what the comparison fixes and what `settings` choose."""
    from trl import RewardConfig

    batch = settings.batch or TRL_DEFAULT_BATCH
    chosen: dict[str, Any] = {
        "gradient_checkpointing": settings.gradient_checkpointing,
        "use_liger_kernel": settings.liger,
        # TRL's default is bf16 autocast; in a float32 comparison the curves could not agree then.
        "bf16": settings.bf16 if settings.bf16 is not None else (None if task["precision"] == "bf16" else False),
        "model_init_kwargs": None if settings.attention is None else {"attn_implementation": settings.attention},
    }
    config = RewardConfig(
        output_dir=str(Path(task["directory"]) / "output"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=task["pairs_per_step"] // (batch * task["ranks"]),
        max_steps=task["num_steps"],
        max_length=None,
        train_sampling_strategy="sequential",
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        adam_epsilon=1e-5,
        max_grad_norm=1.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not has_gpu(),
        **{key: value for key, value in chosen.items() if value is not None},
    )
    assert (config.adam_beta1, config.adam_beta2, config.weight_decay) == (0.9, 0.999, 0.0), "another AdamW than ours"
    return config


def watched_trainer(task: dict[str, Any], settings: TrlSettings) -> tuple[Any, dict[str, list[Any]]]:
    """The trainer, and lists that fill while it trains: stamps, losses and tokens of every step."""
    import torch
    from datasets import load_from_disk
    from transformers import AutoTokenizer, TrainerCallback
    from trl import RewardTrainer

    seen: dict[str, list[Any]] = {"step_starts": [], "step_ends": [], "losses": [], "tokens": []}

    class Watched(RewardTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            seen["tokens"][-1] += inputs["input_ids"].numel()
            loss = super().training_step(model, inputs, *rest, **named)  # already divided by the accumulation
            seen["losses"][-1] += loss.detach()
            return loss

    class Stamps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seen["step_starts"].append(time.monotonic())
            seen["tokens"].append(0)
            seen["losses"].append(0.0)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if has_gpu():
                torch.cuda.synchronize()
            seen["step_ends"].append(time.monotonic())

    trainer = Watched(
        model=task["model"],
        args=reward_config(task, settings),
        train_dataset=load_from_disk(task["data"]),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        callbacks=[Stamps()],
    )
    return trainer, seen


def main(task_file: str) -> None:
    import torch

    task = json.loads(Path(task_file).read_text())
    trainer, seen = watched_trainer(task, TrlSettings(**task["settings"]))
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if has_gpu():
        peak = torch.cuda.max_memory_allocated() / 2**30
    sums = torch.stack([torch.stack([torch.as_tensor(x, dtype=torch.float64).cpu() for x in seen[key]]) for key in
                        ("losses", "tokens")])  # fmt: skip
    if task["ranks"] > 1:
        sums = trainer.accelerator.reduce(sums.to(trainer.accelerator.device), "sum").cpu()
    args, backbone = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    seen["losses"], seen["tokens"] = (sums[0] / task["ranks"]).tolist(), sums[1].tolist()
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "bf16", "optim")
    arguments: dict[str, Any] = {
        name: str(getattr(args, name)) for name in (*names, "use_liger_kernel", "learning_rate")
    }
    arguments |= {"attention": backbone.config._attn_implementation, "dtype": str(backbone.dtype)}
    arguments |= {"threads": torch.get_num_threads()}
    if trainer.accelerator.is_main_process:
        out = Path(task["directory"]) / "seen.json"
        out.write_text(json.dumps({**seen, "peak_gib": peak, "arguments": arguments}))


if __name__ == "__main__":
    main(sys.argv[1])
