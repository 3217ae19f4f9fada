"""The curve of a run equals that of plain, unpacked code: padded batches, mean of -log sigmoid, torch's AdamW.

This is the code of a textbook (and of TRL's trainer), sharing nothing with ours but the order of pairs and the weights
that both begin with.
"""

import torch
from running import SMALL
from tiny_models import classifier_of
from torch.nn.functional import logsigmoid

from data.rows.builtin import SETS, byte_tokenizer
from data.selection.mixture import Mixture
from models.build import build_model
from train.recipe.schema import load_recipe
from train.run.resolve import prepare_inputs
from train.step.config import learning_rate_at


def padded_rewards(model, conversations, pad):
    longest = max(map(len, conversations))
    ids = torch.tensor([c + [pad] * (longest - len(c)) for c in conversations])
    mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in conversations])
    return model(input_ids=ids, attention_mask=mask).logits[:, 0]


def test_losses_and_gradients_equal_unpacked_training(one_rank, tmp_path):
    recipe = load_recipe(["recipe=smoke-qwen3", *SMALL, f"data.cache_dir={tmp_path}"])
    chat, base, data = prepare_inputs(recipe)
    mixture = Mixture(data.train, recipe.seed)
    model, _ = build_model(
        base, dtype=torch.float32, seed=recipe.seed, attention="sdpa", pad_token_id=chat.tokenizer.pad_token_id
    )
    plain = classifier_of(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0, eps=recipe.optimizer.eps)
    rows = SETS["twins-train"]()
    tokenizer = byte_tokenizer()
    losses, norms = [], []
    for step in range(1, 6):
        pairs = mixture.take((step - 1) * 10, 10)
        batch = [rows[data.train[0].store.row[data.train[0].indices[i]]] for _, i in pairs.tolist()]
        sides = []
        for side in ("chosen", "rejected"):
            texts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}],
                    tokenize=False,
                )
                for row in batch
            ]
            sides.append(
                padded_rewards(plain, [tokenizer(text)["input_ids"] for text in texts], plain.config.pad_token_id)
            )
        loss = -logsigmoid(sides[0] - sides[1]).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), recipe.optimizer.max_grad_norm).item())
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, 5, recipe.optimizer)
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(one_rank.steps("train/loss")), torch.tensor(losses), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.tensor(one_rank.steps("train/grad_norm")), torch.tensor(norms), rtol=1e-3, atol=1e-4
    )
    exported = one_rank.weights()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(exported[name], tensor, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
