"""Score conversations with an export: packed, prefixes shared, head in float32.

    python train/score.py model=runs/tiny/export input=conversations.jsonl output=scores.jsonl
    torchrun --nproc-per-node 8 train/score.py model=... input=... output=...      (all GPUs)

    model        an export's directory, or any one-label sequence classifier of the Qwen3 and Llama families
    input        file or glob
    output       .jsonl, .jsonl.gz or .parquet
    dtype        auto | float32 | bfloat16 (default auto: float32 on CPU, the export's on GPU)
    attention    auto | flash | torch_varlen | sdpa | eager (default auto)
    pack_tokens  tokens of one pack at most (default 16384); a CPU takes smaller ones while they hold whole groups
    max_length   longer conversations get an error, in tokens (default: what the model's positions allow)
    overwrite    true: replace an output that is there already

Input rows (JSONL, JSONL.gz, JSON, parquet, arrow) are one of
    {"messages": [...]}                        -> adds "reward"
    {"chosen": ..., "rejected": ...}           -> adds "chosen_reward", "rejected_reward" (any format of training)
    {"prompt": ..., "responses": [...]}        -> adds "rewards", and "best": where the highest is (the first of equals)
The output (.jsonl, .jsonl.gz, .parquet) keeps order and columns. A row that cannot be scored gets "error" instead; of
several responses one that cannot (a blank one, say) has no reward, and "errors" says why. A file of pairs ends with
their accuracy. When no row could be scored the first reason is an error. An interrupted run goes on where it stopped.
From Python: docs/api.md.
"""

from train.recipe import cli
from train.scoring.files import ScoreConfig, score_file


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    known = list(ScoreConfig.__dataclass_fields__)
    score_file(cli.read_options(ScoreConfig, dict(cli.read_pairs(arguments, known))))


if __name__ == "__main__":
    cli.start(main)
