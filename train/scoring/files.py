"""Scores a file of conversations: in order, and an interrupted run goes on where it stopped."""

import contextlib
import glob
import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common import atomic
from data.common.errors import DataError
from data.rows.files import hash_content, source_files
from data.rows.sources import SourceConfig, check_source, chunked, read_rows
from models.build import fetch
from models.weights import weight_files

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


def check_counts(**values: int | None) -> None:
    """Raises: DataError naming the setting whose value is below 1."""
    for key, value in values.items():
        if value is not None and value < 1:
            raise DataError(f"{key}={value}: expected 1 or more")


def score_file(config: ScoreConfig) -> Path:
    """Score a file as the command does; all ranks call it. Returns the output.

    Raises:
        DataError, ModelError: something that the user can fix in the settings, the input or the model.
            No row could be scored: then the output holds the reason of each.
        OSError: the output could not be written; what is scored is kept, and the same call goes on after it.
    """
    output, source = Path(os.path.expanduser(config.output)), SourceConfig(path=config.input)
    check_counts(pack_tokens=config.pack_tokens, max_length=config.max_length)
    check_output(output, config.overwrite)
    check_source("input", source)

    # torch: not before the settings are known to be right.
    from data.common.progress import progress
    from train.runtime.distributed import gather, gather_in_turn, read_ranks, start_gloo, stop
    from train.scoring.rows import score_rows
    from train.scoring.scorer import load_scorer

    ranks = read_ranks()
    start_gloo(ranks)
    scorer = load_scorer(config, ranks)
    partial, tally = PartialOutput(output), Tally()
    finished = gather(partial.resume(_identity(config, scorer)) if ranks.is_main else 0)[0]
    dtype = str(scorer.dtype).removeprefix("torch.")
    ranks.say(f"scoring in {dtype} on {scorer.device}, attention: {scorer.attention}")
    if finished:
        ranks.say(f"going on after {finished:,} finished rows")
    if ranks.is_main:
        tally.add(partial.read())
    with progress(desc="scoring", unit=" rows", initial=finished, disable=not ranks.is_main) as bar:
        for chunk in chunked((row for row in read_rows("input", source) if row.number >= finished), CHUNK):
            rows = gather_in_turn(score_rows(scorer, chunk[ranks.rank :: ranks.world_size]))
            if ranks.is_main:
                partial.append(rows)
            tally.add(rows)
            bar.update(len(chunk))
    if ranks.is_main:
        partial.finish()
    ranks.say("\n".join([f"wrote {output}", *tally.lines()]))
    stop()
    if ranks.is_main and not tally.scored:
        raise DataError(f"input={config.input}: {tally.why_nothing(output)}")
    return output


def check_output(output: Path, overwrite: bool) -> None:
    """Raises: DataError: the output cannot be written as asked. PermissionError: nor anything else beside it."""
    if not output.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise DataError(f"output={output}: expected a name that ends in .jsonl, .jsonl.gz or .parquet")
    if output.is_dir():
        raise DataError(f"output={output}: is a directory; name a file")
    if output.exists() and not overwrite:
        raise DataError(f"output={output}: exists already; give overwrite=true to replace it")
    if not output.parent.is_dir():
        raise DataError(f"output={output}: the directory {output.parent} is not there")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"output={output}: the directory {output.parent} cannot be written to")


def _identity(config: ScoreConfig, scorer: "Scorer") -> dict[str, Any]:
    """What must be the same for an interrupted run to go on: weights, input and settings."""
    directory, _ = fetch(config.model, None, "model")
    weights = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(directory)]
    files = [hash_content(path) for path in source_files("input", config.input)]
    settings = [str(scorer.dtype), scorer.chat.fingerprint(), scorer.max_length]
    key = json.dumps([str(directory.resolve()), weights, files, settings])
    return {"identity": hashlib.sha256(key.encode()).hexdigest(), "input": config.input, "model": config.model}


class PartialOutput:
    """The output until it is complete.

    OUTPUT.partial        the finished rows as JSONL, whatever the form of the output
    OUTPUT.partial.json   the identity of the run that made them
    """

    def __init__(self, output: Path):
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self._about = output.with_name(output.name + ".partial.json")

    def resume(self, identity: dict[str, Any]) -> int:
        """The number of rows that an interrupted run has finished; a torn end is cut off.

        Raises: DataError: they are of a run with another identity.
        """
        if not self.path.is_file():
            with self._kept():
                atomic.write_file(self._about, json.dumps(identity))
                self.path.touch()
            return 0
        before = None
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(self._about.read_bytes())
        if before != identity:
            raise DataError(
                f"{self.path}: an unfinished run of another input, model or dtype; remove it to start afresh"
            )
        return atomic.keep_whole_lines(self.path)

    def read(self) -> Iterator[dict[str, Any]]:
        with open(self.path, encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add finished rows, and wait until they are on the disk."""
        with self._kept():
            atomic.append_lines(self.path, (json.dumps(row, default=str) for row in rows))

    def finish(self) -> None:
        """Put the output in place, in the form that its name asks for."""
        with self._kept():
            if self.output.name.endswith(".jsonl"):
                self.path.replace(self.output)
                atomic.sync(self.output.parent)
            else:
                for left in self.output.parent.glob(f"{glob.escape(self.output.name)}.????????.tmp"):
                    left.unlink()  # of a start that was killed here
                with atomic.writing(self.output) as temporary:
                    self._convert(temporary)
                self.path.unlink()
            self._about.unlink(missing_ok=True)

    def _convert(self, temporary: Path) -> None:
        """Raises: DataError when the rows fit no parquet columns."""
        if self.output.name.endswith(".gz"):
            # Without a name in the header: it would be the temporary file's, another one each time.
            with (
                open(self.path, "rb") as lines,
                open(temporary, "wb") as raw,
                gzip.GzipFile(filename="", fileobj=raw, mode="wb") as file,
            ):
                file.writelines(lines)
            return
        import pyarrow as pa
        import pyarrow.parquet as parquet

        rows = list(self.read())
        # pyarrow takes the columns of the first row only; a later one may have an `error` where it has a reward.
        columns: dict[str, Any] = {key: None for row in rows for key in row}
        try:
            table = pa.Table.from_pylist([columns | row for row in rows])
        except pa.ArrowException as error:
            raise DataError(
                f"the scored rows do not fit into the columns of a parquet file ({error}); they are kept in "
                f"{self.path}, which is JSONL: rename it to use it"
            ) from None
        parquet.write_table(table, temporary)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Raises: OSError that says where the finished rows are, if any, when the output could not be written."""
        try:
            yield
        except OSError as error:
            said, full = f"the output could not be written: {error}", error.errno in atomic.FULL
            if self.path.is_file() and self.path.stat().st_size:
                said += f"; the rows scored so far are kept in {self.path}: {'make room, then ' if full else ''}"
                said += "the same command goes on after them"
            elif full:
                said += "; make room, then give the same command again"
            raise OSError(said) from error


@dataclass
class Tally:
    """Counts over the output rows, for the lines at the end."""

    scored: int = 0  # rows with a reward
    errors: int = 0  # rows without any
    failed_responses: int = 0  # without a reward, in rows that have some
    first_error: str = ""
    pairs: int = 0
    won: int = 0  # pairs with chosen strictly above rejected
    ties: int = 0
    labelled: int = 0  # rows with a `best` of their own

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            number = self.scored + self.errors + 1
            if "error" in row:
                self.errors += 1
                self.first_error = self.first_error or f"row {number:,}: {row['error']}"
                continue
            self.scored += 1
            for problem in filter(None, row.get("errors", ())):
                self.failed_responses += 1
                self.first_error = self.first_error or f"row {number:,}: {problem}"
            self.labelled += "best_by_reward" in row
            if "chosen_reward" in row:
                margin = row["chosen_reward"] - row["rejected_reward"]
                self.pairs, self.won, self.ties = self.pairs + 1, self.won + (margin > 0), self.ties + (margin == 0)

    def lines(self) -> list[str]:
        found = []
        if self.errors:
            found.append(f"{self.errors:,} rows have an error instead of a score")
        if self.failed_responses:
            responses = f"{self.failed_responses:,} responses have no reward"
            found.append(f"{responses}, and the others of their rows have theirs")
        if self.first_error:
            found[-1] += f"; the first: {self.first_error}"
        if self.labelled:
            found.append(f"{self.labelled:,} rows have a `best` of their own, which is kept: see `best_by_reward`")
        if self.pairs:
            ties = f", {self.ties:,} ties" if self.ties else ""
            share = f"{self.won:,} of {self.pairs:,} pairs have chosen above rejected{ties}"
            found.append(f"accuracy {self.won / self.pairs:.4f}: {share}")
        return found

    def why_nothing(self, output: Path) -> str:
        if not self.errors:
            return "has no rows"
        return f"no row could be scored; {self.first_error}; the reasons are in {output}"
