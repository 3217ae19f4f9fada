"""The set of recipe=tiny cannot be learnt from responses alone: a model that sees no prompt stays at 50 %."""

import torch

from data.rows.builtin import SETS


def fit(features, rows):
    """Logistic regression on the difference of two feature vectors, to convergence."""
    words = sorted({word for row in rows for side in ("chosen", "rejected") for word in features(row, side)})
    place = {word: i for i, word in enumerate(words)}

    def vector(row, side):
        counts = torch.zeros(len(words))
        for word in features(row, side):
            if word in place:
                counts[place[word]] += 1
        return counts

    weights = torch.zeros(len(words), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200)
    difference = torch.stack([vector(row, "chosen") - vector(row, "rejected") for row in rows])

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.softplus(-difference @ weights).mean() + 1e-5 * weights.pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)

    def accuracy(on):
        margins = torch.stack([vector(row, "chosen") - vector(row, "rejected") for row in on]) @ weights.detach()
        return ((margins > 1e-4).float() + 0.5 * (margins.abs() <= 1e-4).float()).mean().item()

    return accuracy


def response_alone(row, side):
    return row[side].split()


def prompt_and_response(row, side):
    return [f"{p}|{r}" for p in row["prompt"].lower().split() for r in row[side].split()]


def test_response_alone_stays_at_half():
    accuracy = fit(response_alone, SETS["twins-train"]())
    assert accuracy(SETS["twins-train"]()) == 0.5
    assert accuracy(SETS["twins-heldout"]()) == 0.5


def test_prompt_and_response_together_suffice():
    """Guards the test above: the same learner, given both, gets there."""
    accuracy = fit(prompt_and_response, SETS["twins-train"]())
    assert accuracy(SETS["twins-train"]()) > 0.95
