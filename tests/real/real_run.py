"""A run on real preference pairs, held against the obvious alternative at every step.

    python tests/real/real_run.py pairs=DIR tokenizer=DIR run_dir=DIR [alpaca=2400 others=400 tau=16 steps=20]

Two ZeRO-3 ranks on CPU train a random 4-layer Qwen3 of width 256 with the Qwen3 tokenizer. Then: does every row turn up
as trained, held out, beyond the limit or refused; do the first losses equal those of plain, unpacked code; what is the
held-out accuracy worth next to "the longer answer wins", overall and where length says nothing.
"""

import gzip
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from running import Finished, run_training
from tiny_models import classifier_of
from torch.nn.functional import logsigmoid

SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
}
OTHERS = ("hh_helpful", "hh_harmless_base", "qa_feedback_dev")


def pair_file(pairs: Path, name: str, split: str) -> str:
    return str(next(pairs.glob(f"*/{name}.{split}.jsonl.gz")))


def write_recipe(
    directory: Path, pairs: Path, tokenizer: Path, *, alpaca: int, others: int, tau: int, **changes: Any
) -> Path:
    """The recipe of the run, as a file. Args: changes to `SHAPE`."""
    limits = {"alpaca_eval_gpt4turbo": alpaca, **dict.fromkeys(OTHERS, others), "tau_bench_airline_outcome": tau}
    sources = {
        name: {
            "path": pair_file(pairs, name, "train"),
            "limit": limit,
            # The users of these agent trajectories are simulated and open each in their own words.
            "same_first_turn": name != "tau_bench_airline_outcome",
        }
        for name, limit in limits.items()
    }
    held_out = {
        f"{name}_test": {"path": pair_file(pairs, name, "test"), "limit": max(8, min(1800, limit // 4))}
        for name, limit in limits.items()
        if name != "tau_bench_airline_outcome"
    }
    recipe = {
        "model": {"config": SHAPE | changes, "tokenizer": str(tokenizer)},
        "data": {"sources": sources, "eval": {"sources": held_out}, "cache_dir": str(directory / "cache")},
        "training": {"pairs_per_step": 16},
        "optimizer": {"learning_rate": 5e-4, "warmup_ratio": 0.05, "eps": 1e-6},
        "engine": {"precision": "fp32", "gradient_checkpointing": False},
        "checkpoint": {"resume": "never"},
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "real.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def check_rows(run: Finished, pairs: Path) -> dict[str, Any]:
    """Count the lines of the files ourselves and compare with where the run says each row went."""
    report = json.loads((run.directory / "drop_report.json").read_text())
    dropped = [json.loads(line) for line in (run.directory / "dropped.jsonl").read_text().splitlines()]
    for name, entry in report.items():
        split = "test" if name.startswith("eval.") else "train"
        with gzip.open(pair_file(pairs, name.removeprefix("eval.").removesuffix("_test"), split)) as file:
            lines = sum(1 for line in file if line.strip())
        refused = sum(entry["refused"].values())
        assert lines == entry["rows"] == entry["trained"] + entry["held_out"] + entry["beyond_limit"] + refused, name
    assert len(dropped) == sum(sum(entry["refused"].values()) for entry in report.values())
    trained = sum(entry["trained"] for entry in report.values())
    assert run.steps("train/pairs_seen")[-1] <= trained
    return {"trained": trained, "refused": len(dropped), "sources": report}


def reference_losses(recipe_path: Path, num_steps: int) -> list[float]:
    """Losses of plain, unpacked training from the same weights in the same order: one padded batch for each pair."""
    from data.selection.mixture import Mixture
    from models.build import build_model
    from train.recipe.schema import load_recipe
    from train.run.resolve import prepare_inputs
    from train.step.config import learning_rate_at

    recipe = load_recipe([f"recipe={recipe_path}"])
    chat, base, data = prepare_inputs(recipe)
    mixture = Mixture(data.train, recipe.seed)
    pad = chat.tokenizer.pad_token_id
    model, _ = build_model(base, dtype=torch.float32, seed=recipe.seed, attention="sdpa", pad_token_id=pad)
    plain = classifier_of(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, weight_decay=0.0, eps=recipe.optimizer.eps)
    per_step = recipe.training.pairs_per_step
    total_steps = -(-mixture.pairs_per_epoch // per_step)
    losses = []
    for step in range(1, num_steps + 1):
        total = 0.0
        optimizer.zero_grad()
        for number, position in mixture.take((step - 1) * per_step, per_step).tolist():
            group = mixture.sets[number].group(position)
            sides = [np.concatenate([group.prefix_ids, ids]).tolist() for ids in group.response_ids]
            longest = max(map(len, sides))
            ids = torch.tensor([side + [pad] * (longest - len(side)) for side in sides])
            mask = torch.tensor([[1] * len(side) + [0] * (longest - len(side)) for side in sides])
            chosen, rejected = plain(input_ids=ids, attention_mask=mask).logits[:, 0]
            loss = -logsigmoid(chosen - rejected) / per_step
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), recipe.optimizer.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, total_steps, recipe.optimizer)
        optimizer.step()
        losses.append(total)
    return losses


def compare_with_length(run: Finished, pairs: Path, limit: int | None = None) -> dict[str, float]:
    """Held-out alpaca pairs through the export, next to the rule that the longer answer wins.

    The balanced part has, for every pair whose chosen answer is the shorter one, a pair whose chosen answer is longer
    by about as much; there the rule is worth 0.5.
    """
    from train.scoring.scorer import Scorer

    with gzip.open(pair_file(pairs, "alpaca_eval_gpt4turbo", "test"), "rt") as file:
        rows = [json.loads(line) for line in file][:limit]
    scorer = Scorer(run.directory / "export", device="cpu")
    rewards = np.array(scorer.score_groups([[row["chosen"], row["rejected"]] for row in rows]))
    right = rewards[:, 0] > rewards[:, 1]
    length = np.array([[len(row[side][-1]["content"]) for side in ("chosen", "rejected")] for row in rows])
    gap = length[:, 0] - length[:, 1]
    shorter = np.flatnonzero(gap < 0)
    longer = set(np.flatnonzero(gap > 0).tolist())
    matched = []
    for i in shorter[np.argsort(gap[shorter])]:
        if not longer:
            break
        partner = min(longer, key=lambda j: abs(gap[j] + gap[i]))
        longer.remove(partner)
        matched += [i, partner]
    balanced = right[matched]
    return {
        "pairs": len(rows),
        "accuracy": float(right.mean()),
        "longer_wins": float((gap > 0).mean()),
        "agrees_with_length": float(((rewards[:, 0] > rewards[:, 1]) == (gap > 0)).mean()),
        "balanced_pairs": len(balanced),
        "balanced_accuracy": float(balanced.mean()),
        "balanced_longer_wins": float((gap[matched] > 0).mean()),
        "two_standard_errors": 2 * math.sqrt(0.25 / max(1, len(balanced))),
    }


def main(arguments: list[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    pairs, run_dir = Path(options["pairs"]), Path(options["run_dir"])
    limits = {key: int(options.get(key, value)) for key, value in (("alpaca", 2400), ("others", 400), ("tau", 16))}
    recipe = write_recipe(run_dir, pairs, Path(options["tokenizer"]), **limits)
    run = run_training(run_dir / "run", run_dir / "cache", [f"recipe={recipe}"], "deepspeed", 2, timeout=3600)
    print(run.output[-3000:])
    assert run.code == 0
    print(json.dumps(check_rows(run, pairs), indent=1))
    num_steps = int(options.get("steps", 20))
    ours, reference = run.steps("train/loss")[:num_steps], reference_losses(recipe, num_steps)
    for step, (a, b) in enumerate(zip(ours, reference, strict=True), 1):
        print(f"step {step:3}: packed {a:.7f}  unpacked {b:.7f}  difference {a - b:+.1e}")
    print(json.dumps(compare_with_length(run, pairs), indent=1))
    print(json.dumps({k: v for k, v in run.metrics[-1].items() if "accuracy" in k or "loss" in k}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
