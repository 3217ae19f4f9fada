"""The layout of a pack drawn in the module, and held against one token after the other in plain Python."""

from typing import Any

import numpy as np
import torch
from fuzz_settings import fuzz
from hypothesis import given
from hypothesis import strategies as st

from data.packing.pack import build_pack, split_group
from data.tokens.chat import Group


def group(prefix: int, *responses: int) -> Group:
    counter = iter(range(1000))
    take = lambda n: np.array([next(counter) for _ in range(n)], dtype=np.int32)  # noqa: E731
    return Group(take(prefix), tuple(take(n) for n in responses))


def test_the_drawing():
    pack = build_pack([group(4, 3, 2)])
    assert pack.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5]
    assert pack.cu_seqlens_q.tolist() == [0, 7, 9]
    assert pack.cu_seqlens_k.tolist() == [0, 7, 13]
    assert pack.kv_index.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 7, 8]
    assert pack.reward_index.tolist() == [6, 8]
    assert (pack.max_seqlen_q, pack.max_seqlen_k) == (7, 7)
    assert (pack.num_tokens, pack.num_separate_tokens) == (9, 13)
    assert pack.num_attended == 7 * 8 // 2 + (5 + 6)


def slow_pack(groups: list[Group]) -> dict[str, Any]:
    """What `build_pack` shall give, one token after the other."""
    ids, positions, kv_index, reward_index, cu_q, cu_k = [], [], [], [], [0], [0]
    separate, gathered = 0, False
    for group in groups:
        start = len(ids)
        prefix = group.prefix_ids.tolist()
        ids += prefix
        positions += range(len(prefix))
        for i, response in enumerate(group.response_ids):
            kv_index += range(start, start + len(prefix))
            kv_index += range(len(ids), len(ids) + len(response))
            ids += response.tolist()
            positions += range(len(prefix), len(prefix) + len(response))
            reward_index.append(len(ids) - 1)
            cu_q.append(len(ids))
            cu_k.append(len(kv_index))
            separate += len(prefix) + len(response)
            gathered |= i > 0 and len(prefix) > 0
    num_tokens = len(ids)
    if not groups:
        ids, positions, cu_q, cu_k = [0], [0], [0, 1], [0, 1]
    segments = list(zip(np.diff(cu_q).tolist(), np.diff(cu_k).tolist(), strict=True))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "cu_seqlens_q": torch.tensor(cu_q, dtype=torch.int32),
        "cu_seqlens_k": torch.tensor(cu_k, dtype=torch.int32),
        "max_seqlen_q": max(q for q, _ in segments),
        "max_seqlen_k": max(k for _, k in segments),
        "kv_index": torch.tensor(kv_index) if gathered else None,
        "reward_index": torch.tensor(reward_index, dtype=torch.int64),
        "num_tokens": num_tokens,
        "num_separate_tokens": separate,
        "num_attended": sum(k - q + 1 + i for q, k in segments for i in range(q)),
    }


shapes = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), max_size=6)


@given(shapes)
@fuzz(200)
def test_every_tensor_is_that_of_the_slow_reference(shapes):
    groups = [group(prefix, *responses) for prefix, responses in shapes]
    fast, slow = vars(build_pack(groups)), slow_pack(groups)
    assert fast.keys() == slow.keys()
    for key, value in slow.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(fast[key], value, rtol=0, atol=0)  # dtype and shape included
        else:
            assert fast[key] == value
            assert type(fast[key]) is type(value)


@given(st.integers(0, 30), st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(20, 80))
@fuzz(100)
def test_split_group_keeps_every_response_and_the_prefix(prefix, responses, capacity):
    whole = group(prefix, *responses)
    parts = split_group(whole, capacity)
    assert [r.tolist() for part in parts for r in part.response_ids] == [r.tolist() for r in whole.response_ids]
    for part in parts:
        assert part.prefix_ids.tolist() == whole.prefix_ids.tolist()
        assert part.num_tokens <= capacity or len(part.response_ids) == 1
