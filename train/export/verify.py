"""Whether an export is what was trained: loaded again the way its users load it, and rescored.

`train/check_export.py` runs `check_export` in a process of its own, which knows nothing of the training. It compares

1. every file but README.md with manifest.json;
2. the token ids of the reference conversations: the model card's snippet must give those of training;
3. float32 rewards of the reference conversations and, at the end of a run, of some held-out pairs. Each conversation by
   itself through plain transformers is the standard; one padded batch, our packed path and the rewards that the export
   holds must agree with it within `TOLERANCE`.

At the end of a run the export holds no rewards and no manifest yet: the check fills in the rewards. Later it changes
nothing, and tells whether this machine and these library versions still reproduce the model. It computes on the GPU
where that has room, in smaller packs or on the CPU otherwise, and says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.common.errors import InvalidPair
from data.packing import pack
from data.packing.plan import plan_packs
from data.rows.checks import check_messages
from data.tokens.chat import Chat, make_group
from models.attention import choose_backend
from models.build import read_config
from models.config_check import read_json
from models.errors import ModelError, is_out_of_memory
from models.export import load_classifier, packed_view, save_json
from models.tokenizer import read_tokenizer
from train.export.model_card import snippet_code
from train.runtime.distributed import has_gpu
from train.scoring.scorer import find_export_damage

TOLERANCE = 1e-4  # largest difference of rewards over max(1, |reward|), both in float32
# Tokens of a pack, tried in this order until the memory is enough; a larger group has a pack of its own.
PACK_TOKENS = {"cuda": (16384, 4096), "cpu": (2048,)}
EXAMPLE = "example.json"  # rewards of the pair that the run shows at its end; in the export until its check has passed


@dataclass(frozen=True)
class Conversations:
    """What an export is checked with, as token ids. R references, H conversations of held-out pairs."""

    references: list[list[int]]  # R
    pairs: list[list[list[int]]]  # H / 2, each (chosen, rejected); none after the end of the run
    example: list[list[int]]  # (chosen, rejected) of the pair that the run shows, or none

    def all_checked(self) -> list[list[int]]:
        """References, then the conversations of the pairs: R + H."""
        return self.references + [ids for pair in self.pairs for ids in pair]


@dataclass(frozen=True)
class Rewards:
    """Rewards of `Conversations`, on the CPU."""

    plain: torch.Tensor  # (R + H,) each conversation by itself through transformers, float32
    padded: torch.Tensor  # (R,) as one right-padded batch through transformers, float32
    packed: torch.Tensor  # (R + H,) prefixes shared, as in training and scoring, float32
    bfloat16: torch.Tensor  # (R,) as `plain`, computed in bfloat16
    example: torch.Tensor  # (2,) as `plain`, or (0,)


def check_export(directory: Path, path: str | None = None) -> list[str]:
    """What is wrong with an export, a line each; nothing when it is right.

    Args: path: where the export will be, at the end of a run: then `parity.json` and the rewards are written.

    Raises:
        OSError, MemoryError: it could not be checked.
        ValueError: it cannot be read.
    """
    if problems := find_export_damage(directory, edited=("README.md",)):
        return problems
    about = _read_about(directory)
    references = about["references"]
    if path is None:
        # The snippet is run without limits: a template that may be a stranger's is first rendered within them.
        Chat(read_tokenizer(directory)).render_all([reference["messages"] for reference in references])
    problems = _check_ids(directory, references)
    pairs, example = about.pop("held_out_pairs", []), about.pop("example", [])
    given = Conversations([reference["input_ids"] for reference in references], pairs, example)
    pad = read_config(str(directory)).pad_token_id
    if any(ids[-1] == pad for ids in given.all_checked()):
        problems.append(f"a conversation ends with the pad token {pad}: Hugging Face would read the token before it")
    rewards = _rescore(directory, given)
    errors = _errors(rewards, [reference.get("reward") for reference in references])
    problems += [
        f"{name}: rewards differ by {error:.2e}, allowed {TOLERANCE:.0e}"
        for name, error in errors.items()
        if not error <= TOLERANCE  # NaN is not, either
    ]
    drift = (rewards.bfloat16 - rewards.plain[: len(references)]).abs().max().item()
    if path is not None:
        parity = {"passed": not problems, "tolerance": f"{TOLERANCE} * max(1, |reward|), float32", **errors}
        parity |= {"bf16_drift": drift, "conversations": len(rewards.plain), "torch": torch.__version__}
        save_json(directory / "parity.json", parity)
    if path is not None and not problems:
        _fill_in(directory, about, rewards, drift)
    print(
        f"export check: {'FAILED' if problems else 'passed'}: {len(rewards.plain)} conversations; packed against plain "
        f"transformers {errors['packed_vs_plain']:.1e}, padded batch {errors['padded_batch_vs_plain']:.1e} "
        f"(allowed {TOLERANCE:.0e}); plain bf16 scoring drifts by up to {drift:.3f}",
        flush=True,
    )
    return problems


# --- what is read and written ----------------------------------------------------------------------------------------


def _read_about(directory: Path) -> dict[str, Any]:
    """The content of reward_model.json. Raises: ModelError when it is none that an export has."""
    path = directory / "reward_model.json"
    about, size = read_json(path, 2**28), read_config(str(directory)).vocab_size
    try:
        conversations = [reference["input_ids"] for reference in about["references"]]
        for i, reference in enumerate(about["references"]):
            check_messages(reference["messages"], f"references[{i}].messages")
            if not isinstance(reference.get("reward", 0.0), float | int):
                raise ModelError(f"{path}: references[{i}].reward is no number")
        conversations += [ids for pair in about.get("held_out_pairs", []) for ids in pair]
        numbers = all(ids and all(type(i) is int and 0 <= i < size for i in ids) for ids in conversations)
    except (KeyError, TypeError, AttributeError, InvalidPair) as error:
        raise ModelError(f"{path}: not what an export has ({type(error).__name__}: {error})") from None
    if not conversations or not numbers:
        raise ModelError(f"{path}: expected references with ids from 0 to {size - 1:,}, the model's vocabulary")
    return dict(about)


def _check_ids(directory: Path, references: list[dict[str, Any]]) -> list[str]:
    """Run the model card's snippet on the reference conversations: its constant text, never what a card holds."""
    namespace: dict[str, Any] = {"path": str(directory)}
    exec(compile(snippet_code(), "README.md", "exec"), namespace)
    return [
        f"the model card's snippet gives other ids than training for {reference['messages'][-1]['content'][:40]!r}"
        for reference in references
        if namespace["conversation_ids"](reference["messages"]) != reference["input_ids"]
    ]


def _errors(rewards: Rewards, stored: list[float | None]) -> dict[str, float]:
    """The largest error of each way to score, by its name in parity.json."""
    plain = rewards.plain[: len(stored)]
    errors = {"packed_vs_plain": _worst(rewards.packed, rewards.plain)}
    errors["padded_batch_vs_plain"] = _worst(rewards.padded, plain)
    if all(reward is not None for reward in stored):
        errors["stored_vs_plain"] = _worst(torch.tensor(stored), plain)
    return errors


def _worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest |a - b| / max(1, |b|)."""
    return float(((a - b).abs() / b.abs().clamp(min=1)).max())


def _fill_in(directory: Path, about: dict[str, Any], rewards: Rewards, drift: float) -> None:
    """Write what only the check knows: the references' rewards, the example's, and the drift on the model card."""
    for reference, reward in zip(about["references"], rewards.plain.tolist(), strict=False):
        reference["reward"] = reward
    save_json(directory / "reward_model.json", about)
    card = directory / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("{drift}", f"{drift:.3f}"), encoding="utf-8")
    if len(rewards.example):
        save_json(directory / EXAMPLE, rewards.example.tolist())


# --- rewards, on the device that has the memory ----------------------------------------------------------------------


def _rescore(directory: Path, given: Conversations) -> Rewards:
    """Raises: MemoryError when no device has enough."""
    plain, packed = _float32_rewards(directory, given)
    half = load_classifier(directory, torch.bfloat16)
    bfloat16 = torch.cat([_plain(half, [ids], torch.device("cpu")) for ids in given.references])
    checked, example, padded = plain.split([len(packed), len(given.example), len(given.references)])
    return Rewards(checked, padded, packed, bfloat16, example)


def _float32_rewards(directory: Path, given: Conversations) -> tuple[torch.Tensor, torch.Tensor]:
    """Through transformers (R + H + example + R,): each by itself, then the references as a batch; packed (R + H,)."""
    device, classifier = _load_float32(directory)
    alone = given.all_checked() + given.example

    def plain(device: torch.device, _: int) -> torch.Tensor:
        one_by_one = [_plain(classifier, [ids], device) for ids in alone]
        return torch.cat([*one_by_one, _plain(classifier, given.references, device)])

    def packed(device: torch.device, tokens: int) -> torch.Tensor:
        return _packed(model, [*[[ids] for ids in given.references], *given.pairs], device, tokens)

    kinds = list(dict.fromkeys((device.type, "cpu")))
    plain_rewards, used = _with_room(classifier, [(kind, 0) for kind in kinds], plain)
    kinds = kinds[kinds.index(used) :]
    # The same weights: from here on the classifier computes packed attention.
    model = packed_view(classifier, choose_backend("auto", device, torch.float32))
    attempts = [(kind, tokens) for kind in kinds for tokens in PACK_TOKENS[kind]]
    return plain_rewards, _with_room(model, attempts, packed)[0]


def _load_float32(directory: Path) -> tuple[torch.device, Any]:
    """(device to compute on, classifier in the host's memory): the GPU where the weights fit, the CPU otherwise."""
    classifier = load_classifier(directory, torch.float32).eval()
    size = sum(p.numel() * p.element_size() for p in classifier.parameters())
    if not has_gpu():
        return torch.device("cpu"), classifier
    try:
        free = torch.cuda.mem_get_info()[0]
        why = f"{size / 2**30:.1f} GiB of weights in float32, {free / 2**30:.1f} GiB free on the GPU"
    except RuntimeError as error:  # full, or reserved for the process of the training
        free, why = 0, str(error).strip().splitlines()[0]
    if free > 1.5 * size:
        return torch.device("cuda"), classifier
    print(f"export check: {why}: on the CPU", flush=True)
    return torch.device("cpu"), classifier


def _with_room(
    model: Any, attempts: list[tuple[str, int]], compute: Callable[[torch.device, int], torch.Tensor]
) -> tuple[torch.Tensor, str]:
    """The result of `compute` at the first (type of device, tokens of a pack) that has enough memory, and that type.

    Args: model: it is brought to the device before.
    Raises: MemoryError: none has.
    """
    for number, (kind, tokens) in enumerate(attempts):
        try:
            model.to(torch.device(kind))
            return compute(torch.device(kind), tokens), kind
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # After the handler, whose traceback keeps the tensors of the attempt.
        what = f"out of memory with {_attempt(kind, tokens)}: {why}"
        if number + 1 == len(attempts):
            break
        print(f"export check: {what}; again with {_attempt(*attempts[number + 1])}", flush=True)
        model.to("cpu")
        if kind == "cuda":
            torch.cuda.empty_cache()
    raise MemoryError(what)


def _attempt(kind: str, tokens: int) -> str:
    packs = f"packs of {tokens:,} tokens" if tokens else "one conversation at a time"
    return f"{packs} on the {'CPU' if kind == 'cpu' else 'GPU'}"


def _plain(classifier: Any, conversations: list[list[int]], device: torch.device) -> torch.Tensor:
    """Rewards (num,) float32 on the CPU, through plain transformers as one right-padded batch."""
    longest = max(map(len, conversations))
    pad = classifier.config.pad_token_id
    ids = torch.tensor([c + [pad] * (longest - len(c)) for c in conversations], device=device)
    mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in conversations], device=device)
    with torch.no_grad():
        rewards: torch.Tensor = classifier(input_ids=ids, attention_mask=mask).logits[:, 0].float().cpu()
    return rewards


def _packed(model: Any, groups: list[list[list[int]]], device: torch.device, pack_tokens: int) -> torch.Tensor:
    """Rewards (num,) of all conversations of groups through our packed, prefix-shared path, in their order."""
    made = [make_group(group) for group in groups]
    sizes = np.array([group.num_tokens for group in made])
    rewards: list[Any] = [None] * len(made)
    for indices in plan_packs(sizes, sizes.astype(np.float64), pack_tokens, world_size=1):
        with torch.no_grad():
            values = model(**pack.build_pack([made[i] for i in indices]).to(device).inputs()).cpu()
        for i, part in zip(indices, values.split([len(groups[i]) for i in indices]), strict=True):
            rewards[i] = part
    return torch.cat(rewards)
