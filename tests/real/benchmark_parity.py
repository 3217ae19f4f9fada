"""Rewards of real benchmark items, packed with shared prefixes, against plain transformers one conversation at a time.

    python tests/real/benchmark_parity.py benchmarks=DIR tokenizer=DIR items=200

DIR holds RM-Bench, JudgeBench and RMB. The model is a random 2-layer Qwen3 of width 64 in float32. Exit code 1 when a
reward differs by more than 1e-4 * max(1, |r|).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "perf")]

import torch  # noqa: E402
from compare_scoring import SHAPE, TOLERANCE, write_random_model  # noqa: E402
from scoring_sides import encode  # noqa: E402

from data.benchmarks.items import draw_sample  # noqa: E402
from data.benchmarks.registry import BENCHMARKS  # noqa: E402
from data.benchmarks.scores import score_items  # noqa: E402
from models.export import load_classifier  # noqa: E402
from train.scoring.scorer import Scorer  # noqa: E402

FOLDERS = {"rm_bench": "RM-Bench", "judgebench": "JudgeBench", "rmb": "RMB"}
TINY = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 16}


def compare(benchmarks: Path, tokenizer: Path, items: int) -> dict[str, dict[str, Any]]:
    """For each benchmark: conversations, the largest difference of max(1, |r|), and how far rewards spread."""
    with tempfile.TemporaryDirectory() as temporary:
        export = Path(temporary)
        write_random_model(export, str(tokenizer), SHAPE | TINY)
        scorer, plain = Scorer(export, device="cpu"), load_classifier(export, torch.float32).eval()
        assert plain.config._attn_implementation == "sdpa"
        found = {}
        for name, folder in FOLDERS.items():
            sample = draw_sample(BENCHMARKS[name].read(str(benchmarks / folder)), items, seed=0).items
            rewards = score_items(scorer.score_groups, sample)
            ours = torch.tensor([r for item in rewards if item is not None for group in item for r in group])
            groups = [group.conversations() for item in sample for group in item.groups]
            with torch.inference_mode():
                ids = encode(scorer.chat.tokenizer, groups)
                theirs = torch.cat([plain(input_ids=torch.tensor([i])).logits[:, 0] for i in ids])
            worst = ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()
            spread = theirs.std().item()
            found[name] = {"items": len(sample), "conversations": len(ids), "worst": worst, "spread": spread}
    return found


def main(arguments: list[str]) -> int:
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if set(given) != {"benchmarks", "tokenizer", "items"}:
        print(__doc__)
        return 2
    found = compare(Path(given["benchmarks"]), Path(given["tokenizer"]), int(given["items"]))
    for name, line in found.items():
        print(f"{name}: {json.dumps(line)}")
    return int(any(not line["worst"] <= TOLERANCE for line in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
