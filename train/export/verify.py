"""Whether an export is what was trained: reloaded and rescored."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


TOLERANCE = 1e-4  # of max(1, |reward|), both paths in float32
# Tokens of the packs that are tried on a device, one after the other; a larger group has a pack of its own.
PACK_TOKENS = {"cuda": (16384, 4096), "cpu": (2048,)}
EXAMPLE = "example.json"  # in an export that is being checked: the rewards of the pair that the run shows at its end
UNCHECKED = 3  # Python itself ends with 1 after an error, so nothing may go past `main`


def check_export(directory: Path, path: str | None = None) -> list[str]:
    """What is wrong with an export; nothing, when it is right.

    Args:
        path: where the export will be, when it is not there yet: then `parity.json` and the rewards are written.

    Raises:
        OSError, MemoryError: it could not be checked.
        ValueError: it cannot be read.
    """
    import torch

    from data.tokens.chat import Chat
    from models.export import load_classifier, save_json
    from models.tokenizer import read_tokenizer
    from train.scoring.scorer import find_export_damage

    if problems := find_export_damage(directory, edited=("README.md",)):
        return problems
    about = _read_about(directory)
    card = (directory / "README.md").read_text(encoding="utf-8") if path is not None else ""
    references = about["references"]
    # The snippet is run without limits: a template that may be a stranger's is first rendered within them.
    if path is None:
        Chat(read_tokenizer(directory)).render_all([reference["messages"] for reference in references])
    problems = _check_ids(directory, references)

    device, classifier = _load_float32(directory)
    pairs, example = about.pop("held_out_pairs", []), about.pop("example", [])
    conversations = [reference["input_ids"] for reference in references]
    flat = conversations + [ids for pair in pairs for ids in pair]
    pad = classifier.config.pad_token_id
    if any(ids[-1] == pad for ids in flat):
        problems.append(f"a conversation ends with the pad token {pad}: Hugging Face would read the token before it")
    plain, padded, packed = _rewards(classifier, device, conversations, pairs, example)
    plain, shown = plain[: len(flat)], plain[len(flat) :].tolist()
    del classifier
    half = load_classifier(directory, torch.bfloat16)
    drift = (
        (torch.cat([_plain(half, [ids], torch.device("cpu")) for ids in conversations]) - plain[: len(conversations)])
        .abs()
        .max()
    )

    errors = {
        "packed_vs_plain": _worst(packed, plain),
        "padded_batch_vs_plain": _worst(padded, plain[: len(conversations)]),
    }
    known = [reference.get("reward") for reference in references]
    if all(reward is not None for reward in known):
        errors["stored_vs_plain"] = _worst(torch.tensor(known), plain[: len(conversations)])
    problems += [
        f"{name}: rewards differ by {error:.2e}, allowed {TOLERANCE:.0e}"
        for name, error in errors.items()
        if not error <= TOLERANCE
    ]
    parity = {
        "passed": not problems,
        "tolerance": f"{TOLERANCE} * max(1, |reward|), float32",
        **errors,
        "bf16_drift": drift.item(),
        "conversations": len(flat),
        "torch": torch.__version__,
    }
    if path is not None:
        save_json(directory / "parity.json", parity)
    if not problems and path is not None:
        for reference, reward in zip(references, plain.tolist(), strict=False):
            reference["reward"] = reward
        save_json(directory / "reward_model.json", about)
        (directory / "README.md").write_text(card.replace("{drift}", f"{drift:.3f}"), encoding="utf-8")
        if shown:
            save_json(directory / EXAMPLE, shown)
    print(
        f"export check: {'FAILED' if problems else 'passed'}: {len(flat)} conversations; packed against plain "
        f"transformers {errors['packed_vs_plain']:.1e}, padded batch {errors['padded_batch_vs_plain']:.1e} "
        f"(allowed {TOLERANCE:.0e}); plain bf16 scoring drifts by up to {drift:.3f}",
        flush=True,
    )
    return problems


def _read_about(directory: Path) -> dict[str, Any]:
    """The content of reward_model.json. Raises: ModelError when it is none that an export has."""
    from data.common.errors import InvalidPair
    from data.rows.pairs import check_messages
    from models.build import read_config
    from models.config_check import read_json
    from models.errors import ModelError

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
    from train.export.model_card import snippet_code

    namespace: dict[str, Any] = {"path": str(directory)}
    exec(compile(snippet_code(), "README.md", "exec"), namespace)
    return [
        f"the model card's snippet gives other ids than training for {reference['messages'][-1]['content'][:40]!r}"
        for reference in references
        if namespace["conversation_ids"](reference["messages"]) != reference["input_ids"]
    ]


def _load_float32(directory: Path) -> tuple["torch.device", Any]:
    """(device to compute on, classifier in the host's memory): the GPU where the weights fit, the CPU otherwise."""
    import torch

    from models.export import load_classifier
    from train.runtime.distributed import has_gpu

    classifier = load_classifier(directory, torch.float32).eval()
    size = sum(p.numel() * p.element_size() for p in classifier.parameters())
    if not has_gpu():
        return torch.device("cpu"), classifier
    try:
        free = torch.cuda.mem_get_info()[0]
        why = f"{size / 2**30:.1f} GiB of weights in float32, {free / 2**30:.1f} GiB free on the GPU"
    except RuntimeError as error:  # full, or for one process alone, which is that of the training
        free, why = 0, str(error).strip().splitlines()[0]
    if free > 1.5 * size:
        return torch.device("cuda"), classifier
    print(f"export check: {why}: on the CPU", flush=True)
    return torch.device("cpu"), classifier


def _rewards(
    classifier: Any,
    device: "torch.device",
    conversations: list[list[int]],
    pairs: list[list[list[int]]],
    example: list[list[int]],
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Rewards of all conversations one by one, of `conversations` as one padded batch, and of these and `pairs` packed.

    The classifier is one of plain transformers before, and a packed one after.
    """
    import torch

    from models.attention import choose_backend
    from models.export import packed_view

    alone = [*conversations, *[ids for pair in pairs for ids in pair], *example]

    def plainly(device: "torch.device", _: int) -> "torch.Tensor":
        return torch.cat(
            [*[_plain(classifier, [ids], device) for ids in alone], _plain(classifier, conversations, device)]
        )

    def packed(device: "torch.device", tokens: int) -> "torch.Tensor":
        return _packed(model, [*[[ids] for ids in conversations], *pairs], device, tokens)

    devices = list(dict.fromkeys((device.type, "cpu")))
    both, used = _with_room(classifier, [(kind, 0) for kind in devices], plainly)
    devices = devices[devices.index(used) :]
    model = packed_view(classifier, choose_backend("auto", device, torch.float32))
    attempts = [(kind, tokens) for kind in devices for tokens in PACK_TOKENS[kind]]
    return both[: len(alone)], both[len(alone) :], _with_room(model, attempts, packed)[0]


def _with_room(
    model: Any, attempts: list[tuple[str, int]], compute: Callable[["torch.device", int], "torch.Tensor"]
) -> tuple["torch.Tensor", str]:
    """What `compute` gives of the first (type of device, tokens) for which the memory is enough, and the type.

    Args:
        model: it is brought to the device before.

    Raises:
        MemoryError: it is enough for none.
    """
    import torch

    for number, (kind, tokens) in enumerate(attempts):
        try:
            model.to(torch.device(kind))
            return compute(torch.device(kind), tokens), kind
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Past the handler: the traceback has kept the tensors of the attempt.
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


def is_out_of_memory(error: Exception) -> bool:
    """A GPU's or the host's, by the kinds and words that torch has for it."""
    words = r"out of memory|allocate memory|bad_alloc|ALLOC_FAILED"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def _plain(classifier: Any, conversations: list[list[int]], device: "torch.device") -> "torch.Tensor":
    """Rewards (num,) float32 on the CPU as plain transformers gives them, as one right-padded batch."""
    import torch

    longest = max(map(len, conversations))
    pad = classifier.config.pad_token_id
    ids = torch.tensor([c + [pad] * (longest - len(c)) for c in conversations], device=device)
    mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in conversations], device=device)
    with torch.no_grad():
        rewards: torch.Tensor = classifier(input_ids=ids, attention_mask=mask).logits[:, 0].float().cpu()
    return rewards


def _packed(model: Any, groups: list[list[list[int]]], device: "torch.device", pack_tokens: int) -> "torch.Tensor":
    """Rewards (num,) of all conversations of groups through our packed, prefix-shared path, in their order."""
    import numpy as np
    import torch

    from data.packing.pack import build_pack
    from data.packing.plan import plan_packs
    from data.tokens.chat import make_group

    made = [make_group(group) for group in groups]
    sizes = np.array([group.num_tokens for group in made])
    rewards: list[Any] = [None] * len(made)
    for pack in plan_packs(sizes, sizes.astype(np.float64), pack_tokens, world_size=1):
        with torch.no_grad():
            values = model(**build_pack([made[i] for i in pack]).to(device).inputs()).cpu()
        parts = values.split([len(groups[i]) for i in pack])
        for i, part in zip(pack, parts, strict=True):
            rewards[i] = part
    return torch.cat(rewards)


def _worst(a: "torch.Tensor", b: "torch.Tensor") -> float:
    """Largest |a - b| / max(1, |b|)."""
    return float(((a - b).abs() / b.abs().clamp(min=1)).max())
