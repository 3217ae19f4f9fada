"""Score conversations with an export: packed, prefixes shared, head in float32.

    python train/score.py model=runs/tiny/export input=conversations.jsonl output=scores.jsonl
    torchrun --nproc-per-node 8 train/score.py model=... input=... output=...      (all GPUs)

Input rows (JSONL, JSONL.gz, JSON, parquet, arrow) are one of
    {"messages": [...]}                        -> adds "reward"
    {"chosen": ..., "rejected": ...}           -> adds "chosen_reward", "rejected_reward" (any format of training)
    {"prompt": ..., "responses": [...]}        -> adds "rewards", and "best": where the highest is (the first of equals)
The output (.jsonl, .jsonl.gz, .parquet) keeps order and columns. A row that cannot be scored gets "error" instead; of
several responses one that cannot (a blank one, say) has no reward, and "errors" says why. A file of pairs ends with
their accuracy. Exit code 2, and the first reason, when no row could be scored. An interrupted run goes on where it
stopped. From Python: `train.scoring.scorer.Scorer("runs/tiny/export").score(conversations)`.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from omegaconf import OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from data.common import screen
from data.common.errors import DataError
from data.rows.sources import SourceConfig, check_source
from train.scoring.files import ScoreConfig, check_output, score_file

if TYPE_CHECKING:
    pass


# --- the command ----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    from train.recipe.safe_yaml import check_text
    from train.recipe.schema import RecipeError, closest, complain

    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    known = list(ScoreConfig.__dataclass_fields__)
    try:
        given = [a for a in arguments if not a.startswith(("--local_rank=", "--local-rank="))]
        for argument in given:
            key, equals, _ = argument.partition("=")
            if not equals or key not in known:
                raise DataError(f"unknown argument {argument!r}{closest(key, known)}; there are {', '.join(known)}")
        # Values as they stand: a path is no YAML.
        values = {key: None if value == "null" else value for key, value in (a.split("=", 1) for a in given)}
        for key, value in values.items():
            check_text(value or "", key)
        config: Any = OmegaConf.merge(OmegaConf.structured(ScoreConfig), values)
        missing = sorted(map(str, OmegaConf.missing_keys(config)))
        if missing:
            raise DataError(f"missing {', '.join(f'{key}=' for key in missing)}; try --help")
        config = OmegaConf.to_object(config)
        assert isinstance(config, ScoreConfig)
        for key in ("pack_tokens", "max_length"):
            if getattr(config, key) is not None and getattr(config, key) < 1:
                raise DataError(f"{key}={getattr(config, key)}: expected 1 or more")
        check_output(Path(os.path.expanduser(config.output)), config.overwrite)
        check_source("input", SourceConfig(path=config.input))
    except (DataError, RecipeError, OmegaConfBaseException) as error:
        return complain(error)

    from models.errors import ModelError

    try:
        score_file(config)
    except (DataError, ModelError, OSError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
