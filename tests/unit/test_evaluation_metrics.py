"""The numbers of an evaluation, by hand."""

from __future__ import annotations

import math

import pytest

from sail.evaluation.metrics import kl_number, pair_numbers, response_numbers, without_end
from sail.generation import Sampled

EOS = 1


def test_margin_and_accuracy_by_hand() -> None:
    """h = .1 * ((-1 + 3) - (-5 + 4)) = .3; -.1; and 0 where policy and reference are the same, which is half right."""
    policy = [(-1.0, -5.0), (-4.0, -2.0), (-1.0, -2.0)]
    reference = [(-3.0, -4.0), (-3.0, -2.0), (-1.0, -2.0)]
    found = pair_numbers(policy, reference, 0.1, ["p", "q", "r"])
    assert found["margin"]["mean"] == pytest.approx((0.3 - 0.1 + 0) / 3)
    assert found["accuracy"]["mean"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["margin"]["n"] == found["margin"]["clusters"] == 3


def test_swapping_chosen_and_rejected_turns_both_round() -> None:
    policy, reference = [(-1.0, -5.0), (-4.0, -2.5)], [(-3.0, -4.0), (-3.0, -2.0)]
    there = pair_numbers(policy, reference, 0.5, ["p", "q"])
    back = pair_numbers([one[::-1] for one in policy], [one[::-1] for one in reference], 0.5, ["p", "q"])
    assert back["margin"]["mean"] == pytest.approx(-there["margin"]["mean"])
    assert back["accuracy"]["mean"] == pytest.approx(1 - there["accuracy"]["mean"])


def test_kl_and_its_standard_error_by_hand() -> None:
    """Values 1, 2, 6: mean 3, variance 7, error sqrt(7 / 3)."""
    found = kl_number([1.0, 2.0, 6.0], ["p", "q", "r"])
    assert found["mean"] == pytest.approx(3.0)
    assert found["se"] == pytest.approx(math.sqrt(7 / 3))


def test_answers_by_hand() -> None:
    sampled = [
        Sampled((5, 6, EOS), "a b", -1.0, False, -1.0),
        Sampled((5, 6, 7), "a b c", -1.0, True, -1.0),
        Sampled((EOS,), " ", -1.0, False, -1.0),
        Sampled((5, 6, EOS), "a b", -1.0, False, -1.0),
    ]
    found, left_out = response_numbers(sampled, ["p", "q", "r", "s"], [EOS])
    assert found["length"]["mean"] == pytest.approx((3 + 3 + 1 + 3) / 4)
    assert found["cut"]["mean"] == 0.25
    assert found["empty"]["mean"] == 0.25
    assert found["duplicates"]["mean"] == 0.5  # the first and the last, to different prompts
    assert found["self_repetition"]["mean"] is None  # none of them has four tokens
    assert set(left_out) == {"distinct_1", "distinct_2", "distinct_3"}


def test_only_the_last_token_is_an_end() -> None:
    assert without_end((5, EOS), [EOS]) == (5,)
    assert without_end((5, 6), [EOS]) == (5, 6)
    assert without_end((), [EOS]) == ()
