"""Diversity: against plain counting, enumeration of every draw, and simulated texts of known sameness."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sail.evaluation.diversity import distinct, duplicates, ngrams, self_repetition


def test_ngrams_by_hand() -> None:
    assert ngrams([1, 2, 3], 1) == [(1,), (2,), (3,)]
    assert ngrams([1, 2, 3], 3) == [(1, 2, 3)]
    assert ngrams([1, 2], 3) == []


@pytest.mark.parametrize("sample", [1, 2, 4, 6])
def test_distinct_is_the_mean_over_every_possible_draw(sample: int) -> None:
    """By enumeration: all ways to draw `sample` of the six unigrams."""
    responses = [["a", "a", "b"], ["b", "c"], ["a"]]
    every = [token for one in responses for token in one]
    draws = list(itertools.combinations(every, sample))
    expected = sum(len(set(draw)) / sample for draw in draws) / len(draws)
    found = distinct(responses, 1, ["p", "q", "r"], sample=sample)
    assert found is not None
    assert found.mean == pytest.approx(expected)
    assert (found.n, found.clusters) == (6, 3)


def test_distinct_of_everything_is_the_plain_ratio() -> None:
    found = distinct([["a", "b", "a", "b", "c"]], 2, ["p"], sample=4)
    assert found is not None
    assert found.mean == pytest.approx(3 / 4)  # ab, ba, ab, bc
    assert found.low is None  # one prompt tells nothing of the spread


def test_distinct_needs_enough_text() -> None:
    assert distinct([["a", "b"]], 1, ["p"], sample=3) is None


def test_saying_more_does_not_make_it_less_diverse() -> None:
    """The plain ratio of the longer text is lower; at a fixed number of tokens both are the same within their intervals."""
    rng = np.random.default_rng(0)
    texts = [rng.zipf(1.4, 30).tolist() for _ in range(400)]
    short, long = texts[:60], texts
    plain = [len({t for one in some for t in one}) / sum(map(len, some)) for some in (short, long)]
    assert plain[1] < 0.6 * plain[0]
    fixed = [distinct(some, 1, list(range(len(some))), sample=1000) for some in (short, long)]
    assert fixed[0] is not None
    assert fixed[1] is not None
    assert fixed[0].low < fixed[1].mean < fixed[0].high


def test_the_jackknife_interval_covers() -> None:
    """Truth: the mean estimate over 300 fresh sets of texts, which are drawn anew each time."""
    rng = np.random.default_rng(1)

    def one() -> object:
        texts = [rng.integers(0, 60, 12).tolist() for _ in range(80)]
        return distinct(texts, 2, list(range(80)), sample=400)

    found = [one() for _ in range(300)]
    truth = np.mean([f.mean for f in found])
    assert np.mean([f.low <= truth <= f.high for f in found]) > 0.9


def test_a_loop_repeats_itself() -> None:
    """By hand: 'a b c d' twice has five 4-grams, of which abcd comes twice: 1 of 5; a loop of one token: all but one."""
    found = self_repetition([list("abcdabcd"), list("aaaaaaa"), list("abcdefg"), list("ab")], list("pqrs"))
    assert found.mean == pytest.approx((1 / 5 + 3 / 4 + 0) / 3)
    assert found.n == 3  # the response of two tokens has no 4-gram


def test_the_same_answer_to_another_prompt_is_a_duplicate() -> None:
    """Twice the same answer to the same prompt is none."""
    found = duplicates(["x", "x", "x", "y"], ["p", "p", "q", "q"])
    assert found.mean == 0.75
    assert duplicates(["x", "x"], ["p", "p"]).mean == 0.0
