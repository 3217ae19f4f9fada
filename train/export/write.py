"""The end of a run: write the export aside, check it in a process of its own, and put it in place.

export.<random>.tmp/   being written and checked; removed at the next attempt if the run dies here
export/                checked, sealed with the hashes of its files (manifest.json) and only then renamed
export.failed/         the last one that did not pass
export.unchecked/      the last one whose check did not finish; removed when one has passed
"""

import dataclasses
import gc
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import torch

from data.common import atomic
from data.common.errors import ExitCode, RunError
from data.rows.pairs import Message
from data.tokens.chat import Chat
from models.export import compare_weights, export_config, export_tensors, save_json, save_weights
from models.weights import is_finite
from train import COMMANDS
from train.export.model_card import BIAS_NOTE, model_card
from train.export.verify import EXAMPLE
from train.recipe.schema import to_yaml
from train.run.resume_point import where_it_began
from train.run.run import Run
from train.runtime.distributed import has_gpu, single_process_environment
from train.scoring.scorer import find_export_damage
from train.step.engine import gathered_weights, release_engine


class ExportError(RunError):
    """An export that differs from what was trained, and is kept aside for a look; or one that could not be written."""


class UncheckedError(ExportError):
    """An export whose check came to no end, which says nothing about it: it is kept aside."""

    exit_code = ExitCode.UNCHECKED


def export_run(run: Run, metrics: dict[str, float]) -> Path | None:
    """Export and check a trained run. All ranks call it; the main rank returns the directory.

    The engine is gone afterwards, so that the check has the device's memory. Until the new export has its name, an
    earlier one keeps it.

    Raises: ExportError: the export is not what was trained, or could not be written, or (UncheckedError) checked.
    """
    state = _take_weights(run)
    if state is None:
        return None
    final = run.directory / "export"
    # A name of its own: the check of an attempt that was killed may still read the other one's.
    aside = run.directory / f"export.{uuid.uuid4().hex[:8]}.tmp"
    try:
        atomic.recover(final)
        for leftover in run.directory.glob("export.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir()
        write_export(run, state, metrics, aside)
        different = compare_weights(aside, export_tensors(state, run.base.config.model_type))
        del state
        if different:
            raise ExportError(_keep(aside, f"{len(different)} tensors differ from the trained ones: {different[:3]}"))
        _check(run, aside, final)
        atomic.seal(aside)
        atomic.publish(aside, final)
        shutil.rmtree(run.directory / "export.unchecked", ignore_errors=True)
    except Exception as error:
        # safetensors and tokenizers have their own types for the system's errors, which say "(os error 28)".
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        raise ExportError(_unwritten(run, final, error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def _take_weights(run: Run) -> dict[str, torch.Tensor] | None:
    """The trained weights, on the main rank, and the engine is gone. Raises: ExportError when some are not finite."""
    state = gathered_weights(run.engine)
    release_engine(run.engine)
    del run.engine
    gc.collect()  # engine, optimizer and modules refer to each other
    if has_gpu():
        torch.cuda.empty_cache()
    if bad := [name for name, tensor in (state or {}).items() if not is_finite(tensor)]:
        raise ExportError(
            f"NaN or infinities in {len(bad)} of the trained tensors ({bad[0]}), so nothing is exported; "
            "train with a lower optimizer.learning_rate in another run_dir=PATH"
        )
    return state


def is_exported(directory: Path) -> bool:
    """Whether an export is there, with all its files in their sizes; by hand its texts may have been changed."""
    return directory.is_dir() and not find_export_damage(directory, edited=("README.md", "config.json"), contents=False)


def write_export(run: Run, state: dict[str, torch.Tensor], metrics: dict[str, float], directory: Path) -> None:
    """Write everything but the rewards, which the check adds, and the manifest.

    config.json, which vLLM, SGLang and transformers read, is made by `models.export.export_config`.
    """
    config, tokenizer = run.base.config, run.chat.tokenizer
    save_weights(directory, export_tensors(state, config.model_type))
    dtype = state["model.norm.weight"].dtype
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    fields = export_config(config, dtype=dtype, **ends)
    save_json(directory / "config.json", fields)
    tokenizer.save_pretrained(directory)
    references = references_of(run.chat)
    last_tokens = tokenizer.convert_ids_to_tokens(sorted({reference["input_ids"][-1] for reference in references}))
    about = {
        "format": 1,
        "pooling": "last token of the rendered conversation",
        "last_token": last_tokens,
        "bos": "strip from the template's text what the tokenizer adds in front, then let it add that",
        "head": "score.weight, no bias, computed in float32",
        "dtype": fields["dtype"],
        "references": references,
        "held_out_pairs": _held_out_ids(run),  # for the check, which removes these two
        **({} if run.sample_pair is None else {"example": run.sample_pair.ids}),
    }
    save_json(directory / "reward_model.json", about)
    card = model_card(_card_facts(run, metrics, last_tokens))
    (directory / "README.md").write_text(card, encoding="utf-8")


def _held_out_ids(run: Run) -> list[list[list[int]]]:
    """Some held-out pairs as ids of (chosen, rejected)."""
    pairs = []
    for held_out in run.data.held_out:
        for position in range(min(len(held_out), run.recipe.export.num_check_pairs)):
            group = held_out.group(position)
            pairs.append([[*group.prefix_ids.tolist(), *ids.tolist()] for ids in group.response_ids])
    return pairs[: run.recipe.export.num_check_pairs]


def _card_facts(run: Run, metrics: dict[str, float], last_tokens: list[str]) -> dict[str, Any]:
    """The fields of a model card (`train/export/model_card.py`)."""
    recipe = run.recipe
    return {
        "name": recipe.name,
        "path": run.directory / "export",
        "base": recipe.model.base or "(random weights)",
        "base_line": f"{recipe.model.base or 'random weights from a config'} @ {run.base.commit or '-'}",
        "pairs": f"{run.state.pairs_seen:,} ({run.mixture.pairs_per_epoch:,} an epoch)",
        "steps": f"{run.state.step:,}",
        "pairs_per_step": recipe.training.pairs_per_step,
        "learning_rate": recipe.optimizer.learning_rate,
        "schedule": recipe.optimizer.schedule,
        "begins_at": where_it_began(run.directory / "checkpoints"),
        "precision": recipe.engine.precision,
        "last_tokens": last_tokens,
        "metrics": metrics,
        "report": run.data.report,
        "commits": run.data.commits,
        "recipe": to_yaml(recipe),
        "bias_note": BIAS_NOTE if run.base.config.model_type == "qwen3" else "",
        "drift": "{drift}",  # the check measures it and fills it in
    }


def _check(run: Run, aside: Path, final: Path) -> None:
    """Check an export in a process of its own, which scores the run's sample pair, too. Raises: ExportError."""
    command = [sys.executable, str(COMMANDS / "check_export.py"), f"model={aside}", f"path={final}"]
    try:
        code = subprocess.run(command, env=single_process_environment()).returncode
    except OSError as error:  # no memory for another process
        raise UncheckedError(_unchecked(run, aside, f"its check could not be started: {error}")) from error
    if code == 1:
        raise ExportError(_keep(aside, "the export does not reproduce what was trained (see above)"))
    if code:
        raise UncheckedError(_unchecked(run, aside, _how_it_ended(code)))
    if run.sample_pair is not None:
        rewards = aside / EXAMPLE
        run.sample_pair = dataclasses.replace(run.sample_pair, rewards=json.loads(rewards.read_text(encoding="utf-8")))
        rewards.unlink()


def _how_it_ended(code: int) -> str:
    """Why a check has no result, by its exit code."""
    if code == -signal.SIGKILL:
        return "its check was killed (signal 9), as the system does when the machine's memory is used up"
    return "see above" if code == ExitCode.UNCHECKED else f"its check ended with code {code} (see above)"


def _unchecked(run: Run, aside: Path, why: str) -> str:
    kept = run.directory / "export.unchecked"
    shutil.rmtree(kept, ignore_errors=True)
    aside.rename(kept)
    return (
        f"the export is written but could not be checked: {why}; it is kept in {kept} and no export was put in place; "
        f"{run.go_on} writes and checks it again, and python train/check_export.py {shlex.quote(f'model={kept}')} "
        "checks that one, on any machine"
    )


def _unwritten(run: Run, final: Path, error: Exception) -> str:
    checkpoint = run.directory / "checkpoints" / f"step-{run.state.step}"
    full = re.search("No space|quota|too large", str(error))
    return (
        f"{final}: the export could not be written: {error}. The trained weights are safe in {checkpoint}; "
        f"{'make room, then ' if full else ''}{run.go_on} goes on with the export"
    )


def _keep(aside: Path, why: str) -> str:
    failed = aside.with_name("export.failed")
    shutil.rmtree(failed, ignore_errors=True)
    aside.rename(failed)
    return f"EXPORT CHECK FAILED: {why}; it is kept in {failed} and no export was put in place"


def _turns(*contents: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


# Every export carries their token ids and rewards, so that any engine can be compared with training. They cover where
# engines differ: several turns, a system turn, other scripts, code, think blocks, white space at the ends, very short
# and longer answers.
REFERENCES: list[list[Message]] = [
    _turns("What is 2+2?", "4"),
    _turns("What is 2+2?", "4", "And times 3?", "12"),
    _turns("Name a prime above 10.", "11 is one.", system="Answer in one short sentence."),
    _turns("Schreibe einen Satz über den Bodensee.", "Der Bodensee grenzt an drei Länder – groß und schön."),
    _turns("用一句话介绍长城。", "长城是中国古代修建的防御工事,全长超过两万公里。🙂"),
    _turns("Reverse a list in Python.", "```python\ndef reverse(items):\n    return items[::-1]\n```\n"),
    _turns("Is 91 prime?", "<think>\n91 = 7 * 13\n</think>\n\nNo: 91 = 7 × 13."),
    _turns(
        "Why is the sky blue?",
        "  Air scatters short waves more than long ones, " * 12 + "so blue light reaches us from everywhere.  ",
    ),
]


def references_of(chat: Chat) -> list[dict[str, Any]]:
    """Each conversation with its token ids, without those that the template rejects or renders in part.

    Many templates know no system message.
    """
    rendered = zip(REFERENCES, chat.render_all(REFERENCES), strict=True)
    texts = [(messages, text) for messages, text in rendered if isinstance(text, str)]
    ids = chat.encode([text for _, text in texts])
    return [{"messages": messages, "input_ids": i} for (messages, _), i in zip(texts, ids, strict=True)]
