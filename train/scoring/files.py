"""A file of conversations scored: in order, resumable."""

import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common import atomic
from data.common.errors import DataError
from data.rows.sources import SourceConfig, check_source, chunked, read_rows

if TYPE_CHECKING:
    from train.scoring.scorer import Scorer


CHUNK = 1024  # rows that are scored and written at a time


@dataclass
class ScoreConfig:
    model: str = "???"  # an export's directory, or any one-label sequence classifier of the Qwen3 and Llama families
    input: str = "???"  # file or glob
    output: str = "???"  # .jsonl, .jsonl.gz or .parquet
    dtype: str = "auto"  # auto (float32 on CPU, the export's on GPU) | float32 | bfloat16
    attention: str = "auto"  # auto | flash | torch_varlen | sdpa | eager
    pack_tokens: int = 16384  # tokens of one pack at most; a CPU takes smaller ones while they hold whole groups
    max_length: int | None = None  # longer conversations get an error; default: what the model's positions allow
    overwrite: bool = False  # replace an output that is there already


def score_file(config: ScoreConfig) -> Path:
    """Score a file as the command does; all ranks call it.

    Raises:
        DataError, ModelError: something to mend in the settings, the input or the model.
            No row could be scored: then the output holds the reason of each.
        OSError: the output could not be written; what is scored is kept, and the same call goes on after it.
    """
    from data.common.progress import progress
    from train.runtime.distributed import choose_device, gather, gather_in_turn, read_ranks, start_gloo, stop
    from train.scoring.rows import score_rows
    from train.scoring.scorer import Scorer

    ranks = read_ranks()
    output = Path(os.path.expanduser(config.output))
    partial, about = output.with_name(output.name + ".partial"), output.with_name(output.name + ".partial.json")
    check_output(output, config.overwrite)
    source = SourceConfig(path=config.input)
    check_source("input", source)
    start_gloo(ranks)
    scorer = Scorer(
        config.model,
        dtype=config.dtype,
        device=str(choose_device(ranks)),
        attention=config.attention,
        pack_tokens=config.pack_tokens,
        max_length=config.max_length,
    )
    finished = gather(_finished_rows(partial, about, _identity(config, scorer)) if ranks.is_main else 0)[0]
    ranks.say(
        f"scoring in {str(scorer.dtype).removeprefix('torch.')} on {scorer.device}, attention: {scorer.attention}"
    )
    if finished:
        ranks.say(f"going on after {finished:,} finished rows")
    tally = Tally()
    if ranks.is_main:
        tally.add_lines(partial)
    with progress(desc="scoring", unit=" rows", initial=finished, disable=not ranks.is_main) as bar:
        for chunk in chunked((row for row in read_rows("input", source) if row.number >= finished), CHUNK):
            rows = gather_in_turn(score_rows(scorer, chunk[ranks.rank :: ranks.world_size]))
            if ranks.is_main:
                _append(partial, rows)
            tally.add(rows)
            bar.update(len(chunk))
    if ranks.is_main:
        with _keeping(partial):
            _finish(partial, output)
            about.unlink(missing_ok=True)
    ranks.say("\n".join([f"wrote {output}", *tally.lines()]))
    stop()
    if ranks.is_main and not tally.scored:
        raise DataError(f"input={config.input}: {tally.why_nothing()}; the reasons are in {output}")
    return output


@dataclass
class Tally:
    """What is said of the output at the end."""

    scored: int = 0  # rows
    errors: int = 0  # rows without any score
    parts: int = 0  # responses without one, of rows that have some
    first: str = ""  # the first error
    pairs: int = 0
    won: int = 0  # pairs with chosen strictly above rejected
    ties: int = 0
    own_best: int = 0  # rows with a `best` of their own

    def add_lines(self, partial: Path) -> None:
        """Count rows that an interrupted run has finished."""
        with open(partial, encoding="utf-8") as lines:
            for line in lines:
                self.add([json.loads(line)])

    def add(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            number = self.scored + self.errors + 1
            if "error" in row:
                self.errors += 1
                self.first = self.first or f"row {number:,}: {row['error']}"
                continue
            self.scored += 1
            for problem in filter(None, row.get("errors", ())):
                self.parts += 1
                self.first = self.first or f"row {number:,}: {problem}"
            self.own_best += "best_by_reward" in row
            if "chosen_reward" in row:
                margin = row["chosen_reward"] - row["rejected_reward"]
                self.pairs, self.won, self.ties = self.pairs + 1, self.won + (margin > 0), self.ties + (margin == 0)

    def lines(self) -> list[str]:
        found = []
        if self.errors:
            found.append(f"{self.errors:,} rows have an error instead of a score")
        if self.parts:
            found.append(f"{self.parts:,} responses have no reward, and the others of their rows have theirs")
        if self.first:
            found[-1] += f"; the first: {self.first}"
        if self.own_best:
            found.append(f"{self.own_best:,} rows have a `best` of their own, which is kept: see `best_by_reward`")
        if self.pairs:
            ties = f", {self.ties:,} ties" if self.ties else ""
            share = f"{self.won:,} of {self.pairs:,} pairs have chosen above rejected{ties}"
            found.append(f"accuracy {self.won / self.pairs:.4f}: {share}")
        return found

    def why_nothing(self) -> str:
        return f"no row could be scored; {self.first}" if self.errors else "has no rows"


def check_output(output: Path, overwrite: bool) -> None:
    """Raises: DataError when the output cannot be written as asked."""
    if not output.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise DataError(f"output={output}: expected a name that ends in .jsonl, .jsonl.gz or .parquet")
    if output.is_dir():
        raise DataError(f"output={output}: is a directory; name a file")
    if output.exists() and not overwrite:
        raise DataError(f"output={output}: exists already; give overwrite=true to replace it")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise DataError(f"output={output}: the directory {output.parent} is not there or cannot be written to")


def _identity(config: ScoreConfig, scorer: "Scorer") -> dict[str, Any]:
    """What must be the same for an interrupted run to go on."""
    from data.rows.files import hash_content, source_files
    from models.build import fetch
    from models.weights import weight_files

    directory, _ = fetch(config.model, None, "model")
    weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(directory)]
    files = [hash_content(path) for path in source_files("input", config.input)]
    settings = [str(scorer.dtype), scorer.chat.fingerprint(), scorer.max_length]
    key = json.dumps([str(directory.resolve()), weights, files, settings])
    return {"identity": hashlib.sha256(key.encode()).hexdigest(), "input": config.input, "model": config.model}


@contextlib.contextmanager
def _keeping(partial: Path) -> Iterator[None]:
    """Raises: OSError that says where the finished rows are, when the output could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the output could not be written: {error}; the rows scored so far are kept in {partial}: "
            "make room, then the same command goes on after them"
        ) from error


def _finished_rows(partial: Path, about: Path, identity: dict[str, Any]) -> int:
    """Rows of an interrupted run that are whole; what follows the first that is not, half a last line, is cut off."""
    if not partial.is_file():
        with _keeping(partial):
            atomic.write_file(about, json.dumps(identity))
            partial.touch()
        return 0
    before = None
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(about.read_bytes())
    if before != identity:
        raise DataError(f"{partial}: an unfinished run of another input, model or dtype; remove it to start afresh")
    return atomic.keep_whole_lines(partial)


def _append(partial: Path, rows: list[dict[str, Any]]) -> None:
    """Add finished rows, and wait until they are on the disk."""
    with _keeping(partial):
        atomic.append_lines(partial, (json.dumps(row, default=str) for row in rows))


def _finish(partial: Path, output: Path) -> None:
    """The finished rows in the form that was asked for, in place at once."""
    if output.name.endswith(".jsonl"):
        partial.replace(output)
        atomic.sync(output.parent)
        return
    temporary = output.with_name(output.name + ".tmp")
    try:
        with atomic.naming(output):
            if output.name.endswith(".gz"):
                with open(partial, "rb") as rows, gzip.open(temporary, "wb") as file:
                    file.writelines(rows)
            else:
                _write_parquet(partial, temporary)
        atomic.sync(temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    atomic.sync(output.parent)
    partial.unlink()


def _write_parquet(partial: Path, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with open(partial, encoding="utf-8") as lines:
        rows = _same_columns([json.loads(line) for line in lines])
    try:
        table = pa.Table.from_pylist(rows)
    except pa.ArrowException as error:
        raise DataError(
            f"the scored rows do not fit into the columns of a parquet file ({error}); they are kept in {partial}, "
            "which is JSONL: rename it to use it"
        ) from None
    parquet.write_table(table, path)


def _same_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """pyarrow takes the columns of the first row only; a later row may have an `error` where the first has a reward."""
    columns = {key: None for row in rows for key in row}
    return [{**columns, **row} for row in rows]
