"""Score conversations with an export: packed, prefixes shared, head in float32.

    python train/score.py model=runs/tiny/export input=conversations.jsonl output=scores.jsonl
    torchrun --nproc-per-node 8 train/score.py model=... input=... output=...      (all GPUs)

Input rows (JSONL, JSONL.gz, JSON, parquet, arrow) are one of
    {"messages": [...]}                        -> adds "reward"
    {"chosen": ..., "rejected": ...}           -> adds "chosen_reward", "rejected_reward" (any format that training reads)
    {"prompt": ..., "responses": [...]}        -> adds "rewards"
The output (.jsonl, .jsonl.gz, .parquet) keeps order and columns. A row that cannot be scored gets "error" instead. An
interrupted run goes on where it stopped. From Python: `Scorer("runs/tiny/export").score([conversation, ...])`.
"""

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from omegaconf import OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from data.pairs import DataError, InvalidPair, Message, check_conversation, join_response, parse_pair, read_prompt  # noqa: E402
from data.sources import Row, SourceConfig, check_source, read_rows  # noqa: E402

CHUNK = 1024  # rows that are scored and written at a time


@dataclass
class ScoreConfig:
    model: str = "???"  # an export's directory, or any one-label sequence classifier of the Qwen3 and Llama families
    input: str = "???"  # file or glob
    output: str = "???"  # .jsonl, .jsonl.gz or .parquet
    dtype: str = "auto"  # auto (float32 on CPU, the export's on GPU) | float32 | bfloat16
    attention: str = "auto"  # auto | flash | torch_varlen | sdpa | eager
    pack_tokens: int = 16384  # tokens of one pack
    max_length: int | None = None  # longer conversations get an error; default: what the model's positions allow
    overwrite: bool = False  # replace an output that is there already


class Scorer:
    """An export, loaded for scoring."""

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        attention: str = "auto",
        pack_tokens: int = 16384,
        max_length: int | None = None,
    ):
        """Args: see `ScoreConfig`; `device` is the GPU when there is one.

        Raises:
            ModelError: the directory holds no reward model.
        """
        import torch

        from data.chat import Chat
        from models.attention import ModelError, choose_backend
        from models.build import check_checkpoint, fetch, read_config
        from models.export import load_classifier, packed_view
        from train.metrics import attention_cost
        from train.tokenizer import read_tokenizer

        directory, _ = fetch(str(model), None, "model")
        config = read_config(str(directory))
        if not check_checkpoint(directory, config):
            raise ModelError(f"model={model}: no score.weight there; this is a base model, not a reward model")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ModelError(f"dtype={dtype}: expected auto, float32 or bfloat16")
        wanted = "float32" if dtype == "auto" and self.device.type == "cpu" else dtype
        classifier = load_classifier(directory, wanted if wanted == "auto" else getattr(torch, wanted))
        self.dtype = classifier.dtype
        self.attention = choose_backend(attention, self.device, self.dtype)
        self.chat = Chat(read_tokenizer(directory))
        self.pack_tokens = pack_tokens
        self.max_length = max_length or config.max_position_embeddings
        self._model = packed_view(classifier, self.attention).to(self.device).eval()
        self._attention_cost = attention_cost(config)

    def score(self, conversations: Sequence[list[Message]]) -> list[float]:
        """The reward of each conversation.

        Raises:
            InvalidPair: one is not a conversation that ends with the assistant, or is too long.
        """
        for i, messages in enumerate(conversations):
            check_conversation(messages, f"conversations[{i}]")
        return [rewards[0] for rewards in self.score_groups([[messages] for messages in conversations])]

    def score_groups(self, groups: Sequence[Sequence[list[Message]]]) -> list[list[float]]:
        """Rewards of groups of conversations; within a group the common token prefix is computed once."""
        ids = self.encode(groups)
        for group in ids:
            self.check_length(group)
        return self.score_ids(ids)

    def encode(self, groups: Sequence[Sequence[list[Message]]]) -> list[list[list[int]]]:
        """Token ids of every conversation of every group."""
        flat = iter(self.chat.encode([self.chat.render(messages) for group in groups for messages in group]))
        return [[next(flat) for _ in group] for group in groups]

    def check_length(self, group: Sequence[list[int]]) -> None:
        """Raises: InvalidPair when a conversation is longer than `max_length`."""
        longest = max(map(len, group), default=0)
        if longest > self.max_length:
            raise InvalidPair("over length", f"a conversation has {longest} tokens, more than {self.max_length}")

    def score_ids(self, groups: Sequence[list[list[int]]]) -> list[list[float]]:
        """Rewards of groups of conversations given as token ids, in their order."""
        import numpy as np
        import torch

        from data.chat import make_group
        from data.packing import build_pack, plan_packs, split_group

        parts, owner = [], []
        for i, group in enumerate(groups):
            for part in split_group(make_group(group), self.pack_tokens) if group else []:
                parts.append(part)
                owner.append(i)
        rewards: list[list[float]] = [[] for _ in groups]
        if not parts:
            return rewards
        sizes = np.array([part.num_tokens for part in parts], dtype=np.int64)
        costs = sizes + self._attention_cost * sizes.astype(np.float64) ** 2 / 2
        scored: list[list[float]] = [[] for _ in parts]
        for pack in plan_packs(sizes, costs, self.pack_tokens, world_size=1):
            with torch.inference_mode():
                inputs = build_pack([parts[i] for i in pack]).to(self.device).inputs()
                values = iter(self._model(**inputs).tolist())
            for i in pack:
                scored[i] = [next(values) for _ in parts[i].response_ids]
        for i, values_of_part in zip(owner, scored, strict=True):
            rewards[i] += values_of_part
        return rewards


def score_rows(scorer: Scorer, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The output rows of input rows: their columns with rewards, or with an `error`."""
    done: list[dict[str, Any]] = []
    groups: list[list[list[int]]] = []
    kinds: list[str] = []
    for row in rows:
        kind, ids, problem = "error", [], None
        try:
            if row.error is not None:
                raise row.error
            kind, conversations = read_row(row.value)
            ids = scorer.encode([conversations])[0]
            scorer.check_length(ids)
        except InvalidPair as error:
            kind, ids, problem = "error", [], str(error)
        done.append({**(row.value if isinstance(row.value, dict) else {}), **({"error": problem} if problem else {})})
        kinds.append(kind)
        groups.append(ids)
    for out, kind, rewards in zip(done, kinds, scorer.score_ids(groups), strict=True):
        if kind == "messages":
            out["reward"] = rewards[0]
        elif kind == "pair":
            out["chosen_reward"], out["rejected_reward"] = rewards
        elif kind == "responses":
            out["rewards"] = rewards
    return done


def read_row(row: Any) -> tuple[str, list[list[Message]]]:
    """(kind of the row, its conversations). Raises: InvalidPair when it is none that can be scored."""
    if not isinstance(row, dict):
        raise InvalidPair("not an object", "the row is not an object with named fields")
    if row.get("messages") is not None:
        return "messages", [check_conversation(row["messages"], "messages")]
    if row.get("responses") is not None:
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise InvalidPair("no response", "responses is not a list with at least one response")
        prompt = read_prompt(row.get("prompt"))
        conversations = [join_response(prompt, response, f"responses[{i}]") for i, response in enumerate(row["responses"])]
        return "responses", [check_conversation(c, f"responses[{i}]") for i, c in enumerate(conversations)]
    if row.get("chosen") is not None or row.get("rejected") is not None:
        pair = parse_pair(row, same_first_turn=False)
        return "pair", [pair.chosen, pair.rejected]
    raise InvalidPair("missing field", f"neither messages nor chosen/rejected nor prompt/responses among {sorted(row)}")


# --- the command ----------------------------------------------------------------------------------------------------


def score_file(config: ScoreConfig) -> Path:
    """Score a file as the command does; all ranks call it.

    Raises:
        DataError, ModelError: something to mend in the settings, the input or the model.
    """
    import torch
    from tqdm import tqdm

    from train.distributed import choose_device, read_ranks

    ranks = read_ranks()
    output = Path(config.output).expanduser()
    partial, about = output.with_name(output.name + ".partial"), output.with_name(output.name + ".partial.json")
    check_output(output, config.overwrite)
    source = SourceConfig(path=config.input)
    check_source("input", source)
    if ranks.world_size > 1:
        torch.distributed.init_process_group("gloo")  # only rewards travel
    scorer = Scorer(
        config.model,
        dtype=config.dtype,
        device=str(choose_device(ranks)),
        attention=config.attention,
        pack_tokens=config.pack_tokens,
        max_length=config.max_length,
    )
    finished = _finished_rows(partial, about, _identity(config, scorer)) if ranks.is_main else 0
    finished = _from_main(finished, ranks.world_size)
    ranks.say(f"scoring in {str(scorer.dtype).removeprefix('torch.')} on {scorer.device}, attention: {scorer.attention}")
    if finished:
        ranks.say(f"going on after {finished:,} finished rows")
    file = open(partial, "a") if ranks.is_main else None  # noqa: SIM115
    bar = tqdm(desc="scoring", unit=" rows", initial=finished, disable=not ranks.is_main, mininterval=0.5)
    errors = 0
    for chunk in _chunks(read_rows("input", source), skip=finished):
        mine = score_rows(scorer, chunk[ranks.rank :: ranks.world_size])
        for out in _gather(mine, ranks.rank, ranks.world_size):
            assert file is not None
            file.write(json.dumps(out, ensure_ascii=False) + "\n")
            errors += "error" in out
        if file is not None:
            file.flush()
        bar.update(len(chunk))
    bar.close()
    if file is not None:
        file.close()
        _finish(partial, output)
        about.unlink(missing_ok=True)
    ranks.say(f"wrote {output}" + (f"; {errors:,} rows have an error instead of a score" if errors else ""))
    if ranks.world_size > 1:
        torch.distributed.destroy_process_group()
    return output


def check_output(output: Path, overwrite: bool) -> None:
    """Raises: DataError when the output cannot be written as asked."""
    if not output.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise DataError(f"output={output}: expected a name that ends in .jsonl, .jsonl.gz or .parquet")
    if output.exists() and not overwrite:
        raise DataError(f"output={output}: exists already; give overwrite=true to replace it")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise DataError(f"output={output}: the directory {output.parent} is not there or cannot be written to")


def _identity(config: ScoreConfig, scorer: Scorer) -> dict[str, Any]:
    """What must be the same for an interrupted run to go on."""
    from data.sources import hash_content, source_files
    from models.build import fetch, weight_files

    directory, _ = fetch(config.model, None, "model")
    weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(directory)]
    files = [hash_content(path) for path in source_files("input", config.input)]
    key = json.dumps([str(directory.resolve()), weights, files, str(scorer.dtype), scorer.chat.fingerprint()])
    return {"identity": hashlib.sha256(key.encode()).hexdigest(), "input": config.input, "model": config.model}


def _finished_rows(partial: Path, about: Path, identity: dict[str, Any]) -> int:
    """Rows of an interrupted run that are whole; half a last line is cut off."""
    if partial.is_file():
        if not about.is_file() or json.loads(about.read_text())["identity"] != identity["identity"]:
            raise DataError(f"{partial}: an unfinished run of another input, model or dtype; remove it to start afresh")
        with open(partial, "rb+") as file:
            whole, size = 0, 0
            for line in file:
                if line.endswith(b"\n"):
                    whole, size = whole + 1, size + len(line)
            file.truncate(size)
        return whole
    about.write_text(json.dumps(identity))
    return 0


def _chunks(rows: Iterator[Row], skip: int) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        if row.number < skip:
            continue
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _gather(mine: list[dict[str, Any]], rank: int, world_size: int) -> list[dict[str, Any]]:
    """All ranks' rows in the input's order, on the main rank; nothing on the others."""
    if world_size == 1:
        return mine
    import torch

    parts: list[Any] = [None] * world_size
    torch.distributed.gather_object(mine, parts if rank == 0 else None)
    if rank != 0:
        return []
    return [parts[i % world_size][i // world_size] for i in range(sum(map(len, parts)))]


def _from_main(value: int, world_size: int) -> int:
    if world_size == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def _finish(partial: Path, output: Path) -> None:
    """The finished rows in the form that was asked for, in place at once."""
    if output.name.endswith(".jsonl"):
        partial.replace(output)
        return
    temporary = output.with_name(output.name + ".tmp")
    if output.name.endswith(".gz"):
        with open(partial, "rb") as rows, gzip.open(temporary, "wb") as file:
            file.writelines(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        with open(partial) as lines:
            parquet.write_table(pa.Table.from_pylist(_same_columns([json.loads(line) for line in lines])), temporary)
    temporary.replace(output)
    partial.unlink()


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """pyarrow takes the columns of the first row only; a later row may have an `error` where the first has a reward."""
    columns = {key: None for row in rows for key in row}
    return [{**columns, **row} for row in rows]


def main(arguments: list[str]) -> int:
    from train.recipe import closest

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
        config: Any = OmegaConf.merge(OmegaConf.structured(ScoreConfig), OmegaConf.from_dotlist(given))
        missing = sorted(map(str, OmegaConf.missing_keys(config)))
        if missing:
            raise DataError(f"missing {', '.join(f'{key}=' for key in missing)}; try --help")
        config = OmegaConf.to_object(config)
        assert isinstance(config, ScoreConfig)

        from models.attention import ModelError
    except (DataError, OmegaConfBaseException) as error:
        return _complain(error)
    try:
        score_file(config)
    except (DataError, ModelError) as error:
        return _complain(error)
    return 0


def _complain(error: Exception) -> int:
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
