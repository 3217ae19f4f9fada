"""Each term of the loss against numbers worked out by hand."""

import math

import pytest
import torch

from models.losses import bradley_terry

CHOSEN, REJECTED = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 3.0])


def test_plain():
    # log(1 + e^-1), log 2, log(1 + e)
    expected = math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.e)
    assert bradley_terry(CHOSEN, REJECTED).item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_minus_the_probability_of_the_other_order():
    chosen = CHOSEN.clone().requires_grad_()
    bradley_terry(chosen, REJECTED).backward()
    expected = [-1 / (1 + math.e), -0.5, -1 / (1 + math.exp(-1))]
    torch.testing.assert_close(chosen.grad, torch.tensor(expected))


def test_target_margin_shifts_the_gap():
    margin = torch.tensor([1.0, 2.0, 0.0])
    expected = math.log(2) + math.log1p(math.exp(2)) + math.log1p(math.e)
    assert bradley_terry(CHOSEN, REJECTED, target_margin=margin).item() == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_mixes_both_orders():
    one = torch.tensor([1.0]), torch.tensor([0.0])
    expected = 0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.e)
    assert bradley_terry(*one, label_smoothing=0.1).item() == pytest.approx(expected, rel=1e-6)


def test_centring_adds_the_squared_sum():
    plain = bradley_terry(CHOSEN, REJECTED).item()
    assert bradley_terry(CHOSEN, REJECTED, center_coefficient=0.01).item() == pytest.approx(plain + 0.01 * 26, rel=1e-6)


def test_weights_weigh_whole_pairs():
    weight = torch.tensor([2.0, 0.0, 0.5])
    expected = 2 * (math.log1p(math.exp(-1)) + 0.1 * 1) + 0.5 * (math.log1p(math.e) + 0.1 * 25)
    actual = bradley_terry(CHOSEN, REJECTED, loss_weight=weight, center_coefficient=0.1)
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_sum_over_any_split_is_the_same():
    chosen, rejected = torch.randn(17, dtype=torch.float64), torch.randn(17, dtype=torch.float64)
    parts = sum(bradley_terry(chosen[s], rejected[s]) for s in (slice(0, 1), slice(1, 9), slice(9, 17)))
    torch.testing.assert_close(parts, bradley_terry(chosen, rejected))


def test_no_pairs_are_zero_with_zero_gradient():
    empty = torch.zeros(0, requires_grad=True)
    loss = bradley_terry(empty, empty)
    loss.backward()
    assert loss.item() == 0
    assert empty.grad is not None


def test_far_apart_rewards_stay_finite():
    assert bradley_terry(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000
    assert bradley_terry(torch.tensor([500.0]), torch.tensor([-500.0])).item() == 0
