"""What tests/perf/scale.py measures, each part in a process of its own so that one's memory is not another's.

python tests/perf/scale_parts.py PART '{"tokenizer": ..., ...}'     prints what it found as JSON
"""

import json
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

BATCH = 512  # texts that the plain loop encodes at a time: as many as a chunk of ours has
CONVERSATIONS = {"short": (14, 19), "long": (96, 220)}  # mean words of a prompt and of a response
KEY = "prepared"  # of the source; as in tests/perf/startup.py, whose runs find what is prepared here


def chat_of(tokenizer: str) -> Any:
    from data.rows.builtin import byte_tokenizer
    from data.tokens.chat import Chat
    from models.tokenizer import read_tokenizer

    return Chat(byte_tokenizer() if tokenizer == "bytes" else read_tokenizer(Path(tokenizer)))


def source_of(file: str) -> Any:
    from data.rows.sources import SourceConfig

    return SourceConfig(path=file)


def words_of(tokenizer: str) -> list[str]:
    """Words of a tokenizer that are one token each; of no tokenizer, three letters."""
    if tokenizer == "bytes":
        return [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
    vocabulary = json.loads((Path(tokenizer) / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(word[1:] for word in vocabulary if re.fullmatch("Ġ[a-z]{2,10}", word))


def generate(file: str, tokenizer: str, kind: str, pairs: int) -> dict[str, Any]:
    """A JSONL file of pairs of random words, whose numbers are Poisson's; the same every time."""
    random, words = np.random.default_rng(0), np.array(words_of(tokenizer))
    with open(f"{file}.tmp", "w") as out:
        for start in range(0, pairs, 4096):
            rows = min(4096, pairs - start)
            prompt, response = CONVERSATIONS[kind]
            lengths = np.maximum(1, random.poisson((prompt, response, response), (rows, 3)))
            drawn = words[random.integers(0, len(words), lengths.sum())].tolist()
            ends = np.cumsum(lengths.ravel())
            texts = [
                " ".join(drawn[end - n : end]) for end, n in zip(ends.tolist(), lengths.ravel().tolist(), strict=True)
            ]
            for i in range(rows):
                row = dict(zip(("prompt", "chosen", "rejected"), texts[3 * i : 3 * i + 3], strict=True))
                out.write(json.dumps(row) + "\n")
    os.replace(f"{file}.tmp", file)
    return {"bytes": Path(file).stat().st_size}


def prepare(file: str, tokenizer: str, cache: str, workers: int) -> dict[str, Any]:
    """Tokenise as a run does; it must not have been done before."""
    from data.tokens.pair_store import TokenizeSettings, open_store

    chat = chat_of(tokenizer)
    started = time.perf_counter()
    store = open_store(KEY, source_of(file), chat, TokenizeSettings(), Path(cache), builder=True, workers=workers)
    seconds = time.perf_counter() - started
    prefix = store.prefix_length.astype(np.int64)
    stored = int((prefix + store.chosen_length + store.rejected_length).sum())
    return {
        "pairs": len(store),
        "seconds": seconds,
        "tokens": stored + int(prefix.sum()),  # of the conversations one by one, which is what a tokenizer reads
        "stored_tokens": stored,
        "store_bytes": sum(path.stat().st_size for path in store.directory.glob("*.bin")),
    }


def plain(file: str, tokenizer: str, pairs: int, workers: int) -> dict[str, Any]:
    """A loop over `tokenizers.Tokenizer.encode_batch` and nothing else, on the texts that ours encodes."""
    texts = []
    chat = chat_of(tokenizer)
    for conversations in _conversations(file, pairs):
        texts += [str(text) for text in chat.render_all(conversations)]
    definition = chat.tokenizer.backend_tokenizer.to_str()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        shares = [pool.submit(_encode, definition, texts[i::workers], time.time() + 2) for i in range(workers)]
        found = [share.result() for share in shares]
    return {
        "pairs": len(texts) // 2,
        "tokens": sum(share["tokens"] for share in found),
        "seconds": max(share["stop"] for share in found) - min(share["start"] for share in found),
        "cpu_seconds": sum(share["cpu_seconds"] for share in found),
    }


def _conversations(file: str, pairs: int) -> Any:
    from data.rows.pairs import parse_pair
    from data.rows.sources import chunked, read_rows

    rows = (row for row in read_rows(KEY, source_of(file)) if row.number < pairs)
    for chunk in chunked(rows, BATCH // 2):
        yield [side for pair in map(parse_pair, (row.value for row in chunk)) for side in (pair.chosen, pair.rejected)]


def _encode(definition: str, texts: list[str], start_at: float) -> dict[str, float]:
    """One process's share; all processes begin together. Start and stop are of one clock for all."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(definition)
    time.sleep(max(0.0, start_at - time.time()))
    start, cpu, tokens = time.monotonic(), time.process_time(), 0
    for at in range(0, len(texts), BATCH):
        tokens += sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts[at : at + BATCH]))
    seconds = time.process_time() - cpu
    return {"start": start, "stop": time.monotonic(), "cpu_seconds": seconds, "tokens": tokens}


def use(file: str, tokenizer: str, cache: str, pairs_per_step: int) -> dict[str, Any]:
    """What a rank does with a prepared set before and between steps: open, order, plan, fetch at random."""
    from plan import QWEN3_0_6B

    from data.packing.loader import PairLoader
    from data.selection.config import DataConfig
    from data.selection.mixture import Mixture
    from data.selection.prepare import prepare_data
    from train.step.flops import attention_cost

    chat, config = chat_of(tokenizer), DataConfig(sources={KEY: source_of(file)}, cache_dir=cache)
    started, before = time.perf_counter(), anonymous_bytes(os.getpid())
    data = prepare_data(config, chat, seed=0, target_margin=False, builder=True)
    opened = time.perf_counter() - started
    loader = PairLoader(
        data.train, pack_tokens=16384, share_prefix=True, attention_cost=attention_cost(QWEN3_0_6B), world_size=8
    )
    mixture = Mixture(data.train, 0)
    mixture.take(0, 1)
    ready = time.perf_counter() - started
    kept = anonymous_bytes(os.getpid()) - before
    milliseconds = []
    for step in range(5):
        taken = mixture.take(step * pairs_per_step, pairs_per_step)
        begun = time.perf_counter()
        loader.plan(taken)
        milliseconds.append(1e3 * (time.perf_counter() - begun))
    (store,) = (pairs.store for pairs in data.train)
    at = np.random.default_rng(0).integers(0, len(store), 20_000).tolist()
    begun, tokens = time.perf_counter(), 0
    for index in at:
        tokens += int(store.group(index).response_ids[1][-1]) >= 0  # read from it
    microseconds = 1e6 * (time.perf_counter() - begun) / len(at)
    return {
        "open_seconds": opened,
        "ready_seconds": ready,
        "kept_bytes": kept,
        "plan_ms": sorted(milliseconds)[len(milliseconds) // 2],
        "plan_ms_most": max(milliseconds),
        "access_us": microseconds,
    }


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs; 0 when it has ended. Pages shared with a fork count in both."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


PARTS = {"generate": generate, "prepare": prepare, "plain": plain, "use": use}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](**json.loads(sys.argv[2]))))
