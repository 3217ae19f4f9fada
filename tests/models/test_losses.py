"""Each term of the loss against numbers worked out by hand."""

import math

import pytest
import torch

from models.losses import bradley_terry

CHOSEN, REJECTED = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 3.0])
WON, LOST = math.log1p(math.exp(-1)), math.log1p(math.e)  # of a pair whose gap is 1 and -1
TIE = math.log(2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, WON + TIE + LOST),
        ({"target_margin": torch.tensor([1.0, 2.0, 0.0])}, TIE + math.log1p(math.exp(2)) + LOST),
        ({"label_smoothing": 0.1}, (0.9 * WON + 0.1 * LOST) + TIE + (0.9 * LOST + 0.1 * WON)),
        ({"center_coefficient": 0.01}, WON + TIE + LOST + 0.01 * (1**2 + 5**2)),
        (  # weights weigh whole pairs
            {"loss_weight": torch.tensor([2.0, 0.0, 0.5]), "center_coefficient": 0.1},
            2 * (WON + 0.1 * 1) + 0.5 * (LOST + 0.1 * 25),
        ),
    ],
)
def test_terms(options, expected):
    assert bradley_terry(CHOSEN, REJECTED, **options).item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_minus_the_probability_of_the_other_order():
    chosen = CHOSEN.clone().requires_grad_()
    bradley_terry(chosen, REJECTED).backward()
    expected = [-1 / (1 + math.e), -0.5, -1 / (1 + math.exp(-1))]
    torch.testing.assert_close(chosen.grad, torch.tensor(expected))


def test_sum_over_any_split_is_the_same():
    chosen, rejected = torch.randn(2, 17, dtype=torch.float64)
    parts = sum(bradley_terry(chosen[s], rejected[s]) for s in (slice(0, 1), slice(1, 9), slice(9, 17)))
    torch.testing.assert_close(parts, bradley_terry(chosen, rejected))


def test_no_pairs_are_zero_with_zero_gradient_and_far_apart_rewards_stay_finite():
    empty = torch.zeros(0, requires_grad=True)
    loss = bradley_terry(empty, empty)
    loss.backward()
    assert loss.item() == 0
    assert empty.grad is not None
    for gap, expected in ((-500.0, 1000), (500.0, 0)):
        assert bradley_terry(torch.tensor([gap]), torch.tensor([-gap])).item() == expected
