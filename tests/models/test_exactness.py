"""Packed, prefix-shared rewards and gradients equal those of separate sequences through plain transformers."""

import importlib
import sys

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, PAD, classifier_of, tiny_model
from torch.nn import attention
from torch.nn.attention import varlen
from torch.nn.functional import pad
from transformers import AttentionInterface

from data.packing.pack import build_pack, unshare
from data.tokens.chat import Group
from models.attention import BACKENDS, choose_backend, implementation
from models.build import ATTENTION, ModelConfig, build_model, resolve_base
from models.errors import ModelError
from models.liger import apply_liger, use_liger
from models.losses import bradley_terry


def random_groups(seed: int, shapes: list[tuple[int, ...]]) -> list[Group]:
    """Groups of (prefix length, response lengths...)."""
    random = np.random.default_rng(seed)
    ids = [[random.integers(0, 256, length).astype(np.int32) for length in shape] for shape in shapes]
    return [Group(prefix, tuple(responses)) for prefix, *responses in ids]


GROUPS = [(11, 5, 9), (0, 4, 7), (23, 1, 1), (6, 30, 2), (1, 3, 3)]


def separate_rewards(plain: torch.nn.Module, groups: list[Group]) -> torch.Tensor:
    """The reference: one conversation at a time, through Hugging Face's own classifier."""
    conversations = [(group.prefix_ids, response) for group in groups for response in group.response_ids]
    ids = [torch.from_numpy(np.concatenate(parts).astype(np.int64))[None] for parts in conversations]
    return torch.cat([plain(input_ids=i).logits[:, 0] for i in ids])


def packed_rewards(model: torch.nn.Module, groups: list[Group]) -> torch.Tensor:
    return model(**build_pack(groups).inputs())


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def pair_loss(rewards: torch.Tensor) -> torch.Tensor:
    return bradley_terry(rewards[0::2], rewards[1::2])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_separate(family, attention, share_prefix, checkpointing):
    model = tiny_model(family, attention=attention, dtype=torch.float64)
    plain = classifier_of(model, torch.float64)
    if checkpointing:
        model.model.activation_checkpointing_enable()
    model.train()
    groups = random_groups(1, [*GROUPS, (17, 5, 9, 1, 12, 3, 4)])  # several responses may share one prefix
    rewards = packed_rewards(model, groups if share_prefix else [unshare(group) for group in groups])
    expected = separate_rewards(plain, groups)
    # The head and the norms compute in float32 inside a float64 model, hence not 1e-15.
    torch.testing.assert_close(rewards.double(), expected, rtol=2e-6, atol=2e-6)
    pair_loss(rewards).backward()
    pair_loss(expected).backward()
    ours, reference = gradients(model), gradients(plain)
    assert ours.keys() == reference.keys()
    for name, gradient in reference.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=2e-6 * gradient.abs().max().item() + 1e-9)


def test_rejected_does_not_see_chosen(family):
    model = tiny_model(family)
    (group,) = random_groups(3, [(9, 6, 8)])
    other = Group(group.prefix_ids, (group.response_ids[0][::-1].copy() + 1, group.response_ids[1]))
    with torch.no_grad():
        first, second = (packed_rewards(model, [g]) for g in (group, other))
    assert first[0] != second[0]
    assert first[1] == second[1]  # to the bit


def test_rewards_do_not_depend_on_neighbours_or_order(family):
    model = tiny_model(family, dtype=torch.float64)
    groups = random_groups(4, GROUPS)
    with torch.no_grad():
        together = packed_rewards(model, groups).view(-1, 2)
        turned = packed_rewards(model, groups[::-1]).view(-1, 2).flip(0)
        alone = torch.stack([packed_rewards(model, [group]) for group in groups])
    for other in (turned, alone):
        torch.testing.assert_close(together, other, rtol=1e-6, atol=1e-6)


def test_contaminated_packing_would_be_noticed(family):
    """Guards the test above: when every conversation reads all that lies before it in the pack, rewards do change."""
    model = tiny_model(family)
    groups = random_groups(5, GROUPS)
    pack = build_pack([unshare(group) for group in groups])
    ends = pack.cu_seqlens_q[1:]
    everything = torch.cat([torch.arange(end) for end in ends.tolist()])
    leaky = {"kv_index": everything, "cu_seqlens_k": pad(ends.cumsum(0), (1, 0)), "max_seqlen_k": int(ends[-1])}
    with torch.no_grad():
        assert not torch.allclose(model(**pack.inputs()), model(**pack.inputs() | leaky), atol=1e-3)


def test_empty_pack_adds_exactly_nothing(family):
    model = tiny_model(family)
    pair_loss(packed_rewards(model, random_groups(6, GROUPS[:2]))).backward()
    before = gradients(model)
    rewards = packed_rewards(model, [])
    assert rewards.shape == (0,)
    loss = pair_loss(rewards)
    assert loss.item() == 0
    loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, before[name]), name


def test_head_is_float32_and_only_at_ends(family):
    model = tiny_model(family, dtype=torch.bfloat16)
    calls = []
    model.score.register_forward_hook(lambda _, args, out: calls.append((args[0].shape, out.dtype)))
    with torch.no_grad():
        rewards = packed_rewards(model, random_groups(7, GROUPS))
    assert calls == [(torch.Size([2 * len(GROUPS), 32]), torch.float32)]
    assert rewards.dtype == torch.float32
    assert (rewards != rewards.bfloat16().float()).any()


def test_sdpa_equals_the_reference_segment_by_segment():
    """Forward and gradient of segments with and without a prefix, of one query, and longer than a kernel's block."""
    num_queries = torch.tensor([1, 1, 128, 129, 130, 300, 1024, 1025, 2])
    num_keys = torch.tensor([1, 300, 128, 129, 400, 1300, 1024, 1025, 1026])
    torch.manual_seed(0)
    shapes = ((int(num_queries.sum()), 4, 8), (int(num_keys.sum()), 2, 8), (int(num_keys.sum()), 2, 8))
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in tensors)
    ends = {"cu_seqlens_q": pad(num_queries.cumsum(0), (1, 0)), "cu_seqlens_k": pad(num_keys.cumsum(0), (1, 0))}
    results = []
    for backend in ("sdpa", "eager"):
        attend = AttentionInterface()[implementation(backend)]
        out, _ = attend(None, q, k, v, None, scaling=0.3, **ends, max_seqlen_q=1025, max_seqlen_k=1300, kv_index=None)
        results.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)  # the reference takes its softmax in float32


def device_backends() -> list:
    """(device, backend): sdpa on the CPU, so that the test itself is tried everywhere, and all that a GPU has."""
    usable: list = [("cpu", "sdpa")]
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and GPU_TESTS=1")
        return [*usable, pytest.param(("cuda", "flash"), marks=skip)]
    for backend in BACKENDS:
        try:
            usable.append(("cuda", choose_backend(backend, torch.device("cuda"), torch.bfloat16)))
        except ModelError as error:
            usable.append(pytest.param(("cuda", backend), marks=pytest.mark.skip(reason=str(error))))
    return usable


def shaped_model(family: str, attention: str, heads: tuple[int, int, int]):
    """Args: query heads, key heads, head dimension."""
    shape = dict(zip(("num_attention_heads", "num_key_value_heads", "head_dim"), heads, strict=True))
    base = resolve_base(ModelConfig(config={**CONFIGS[family], **shape}))
    return build_model(base, dtype=torch.float32, seed=0, attention=attention, pad_token_id=PAD)[0]


@pytest.mark.parametrize("kernels", ["plain", "liger"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("heads", [(4, 2, 16), (4, 1, 64), (4, 1, 128)])
@pytest.mark.parametrize("device_backend", device_backends(), ids=str)
def test_backends_equal_the_reference(family, device_backend, heads, checkpointing, kernels):
    """On a GPU in bfloat16; the last two groups make segments of a single query, with a prefix and without."""
    name, backend = device_backend
    device, dtype = torch.device(name), torch.bfloat16 if name == "cuda" else torch.float32
    if kernels == "liger" and not use_liger("auto", device):
        pytest.skip("Liger's kernels need a CUDA device and liger-kernel")
    groups = random_groups(9, [(300, 200, 150), (0, 170, 64), (64, 1, 1), (0, 1, 2)])
    reference = shaped_model(family, "eager", heads).to(device)
    rewards = reference(**build_pack(groups).to(device).inputs())
    pair_loss(rewards).backward()
    model = shaped_model(family, backend, heads).to(device, dtype)
    if kernels == "liger":
        apply_liger(model)
    if checkpointing:
        model.model.activation_checkpointing_enable()
    model.train()
    ours = model(**build_pack(groups).to(device).inputs())
    pair_loss(ours).backward()
    wide, least = (0.05, 0.98) if name == "cuda" else (1e-4, 0.9999)
    torch.testing.assert_close(ours, rewards, rtol=wide, atol=2 * wide)
    found = gradients(model)
    for parameter, gradient in gradients(reference).items():
        similarity = torch.cosine_similarity(found[parameter].float().flatten(), gradient.flatten(), dim=0)
        assert similarity > least, (parameter, similarity)


def test_missing_backend_is_an_error_and_auto_is_not():
    cpu = torch.device("cpu")
    assert ("auto", *BACKENDS) == ATTENTION, "what recipes may say"
    assert choose_backend("auto", cpu, torch.float32) == "sdpa"
    for backend in ("flash", "torch_varlen", "fa3", "fa4"):
        with pytest.raises(ModelError, match=f"model.attention={backend}"):
            choose_backend(backend, cpu, torch.bfloat16)
    with pytest.raises(ModelError, match="expected auto or one of"):
        choose_backend("fastest", cpu, torch.float32)


def test_kernels_that_torch_plugs_in(monkeypatch):
    """Chosen only by name, where their module and the GPU are there; one set of kernels at a time in a process."""
    gpu, half = torch.device("cuda"), torch.bfloat16

    def imported(name: str) -> None:
        if name == "flash_attn.flash_attn_interface":
            raise ModuleNotFoundError(name=name)  # of flash-attn-4's folder

    monkeypatch.setattr(importlib, "import_module", imported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_backend("auto", gpu, half) == "torch_varlen"
    assert choose_backend("fa4", gpu, half) == "fa4"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    with pytest.raises(ModelError, match=r"model.attention=fa3: has no kernels .* 10\.0"):
        choose_backend("fa3", gpu, half)

    used: list[str | None] = [None]
    monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: used[-1])
    monkeypatch.setattr(attention, "activate_flash_attention_impl", used.append)
    monkeypatch.setattr(attention, "restore_flash_attention_impl", lambda: used.append(None))
    monkeypatch.setattr(varlen, "varlen_attn", lambda q, *rest, **how: q)
    x = torch.zeros(1, 2, 3, 4)
    how = {"scaling": 1.0, "cu_seqlens_q": None, "cu_seqlens_k": None, "max_seqlen_q": 3, "max_seqlen_k": 3}
    for backend in ("torch_varlen", "fa3", "fa3", "fa4", "torch_varlen"):
        AttentionInterface()[implementation(backend)](None, x, x, x, None, **how, kv_index=None)
    assert used == [None, "FA3", "FA4", None]


BUILT_FOR_ANOTHER_TORCH = "flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2ENS_14SourceLocationE"


@pytest.mark.parametrize("kind", ["ImportError", "OSError", "RuntimeError", "AttributeError"])
def test_a_broken_flash_attn_costs_one_line(tmp_path, monkeypatch, kind):
    """It is imported only where it could run; then auto falls back and says why, and by name it is an error."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {kind}({BUILT_FOR_ANOTHER_TORCH!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    said = []
    assert choose_backend("auto", torch.device("cpu"), torch.float32, said.append) == "sdpa"
    assert choose_backend("auto", torch.device("cuda"), torch.float32, said.append) == "sdpa"
    assert said == []
    assert choose_backend("auto", torch.device("cuda"), torch.bfloat16, said.append) == "torch_varlen"
    (line,) = said
    assert BUILT_FOR_ANOTHER_TORCH in line
    assert line.endswith("; attention is torch_varlen")
    for backend in ("flash", "fa4"):
        with pytest.raises(ModelError, match=rf"model.attention={backend}: .* \({kind}: .*undefined symbol"):
            choose_backend(backend, torch.device("cuda"), torch.bfloat16)


def test_padding_embedding_is_the_tokenizers(family):
    assert tiny_model(family).model.embed_tokens.padding_idx == PAD
