"""Stateless random numbers: functions of their key, uniform, and the same on every machine and day."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.stats

from sail.seeds import uniform, uniforms


def test_same_key_same_numbers() -> None:
    assert uniforms(5, 7, "route", 3, 11).tolist() == uniforms(5, 7, "route", 3, 11).tolist()


def test_global_random_state_neither_matters_nor_changes() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = uniform(7, "route", 3, 11)
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert uniform(7, "route", 3, 11) == before
    np.random.seed(0)  # noqa: NPY002
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_more_numbers_begin_with_the_same() -> None:
    """How many are asked for is no part of the key."""
    assert uniforms(3, "key").tolist() == uniforms(10, "key")[:3].tolist()
    assert uniform("key") == uniforms(1, "key")[0]


@pytest.mark.parametrize(
    "other",
    [(8, "route", 3, 11), (7, "label", 3, 11), (7, "route", 4, 11), (7, "route", 3, 12), (7, "route", 31, 1)],
)
def test_every_part_of_the_key_counts(other: tuple) -> None:
    assert uniform(*other) != uniform(7, "route", 3, 11)


def test_range_and_type() -> None:
    numbers = uniforms(10_000, "range")
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0


def test_uniform_along_a_key_and_across_keys() -> None:
    """Kolmogorov-Smirnov against the uniform distribution; deterministic, so no flaky quantile."""
    along = uniforms(5000, "along")
    across = np.array([uniform(0, "across", step, index) for step in range(50) for index in range(60)])
    assert scipy.stats.kstest(along, "uniform").pvalue > 0.01
    assert scipy.stats.kstest(across, "uniform").pvalue > 0.01


def test_neighbouring_keys_are_uncorrelated() -> None:
    """Steps t and t + 1 of the same rows: correlation within four standard errors of 0."""
    count = 2000
    now, later = (np.array([uniform(0, "route", step, index) for index in range(count)]) for step in (1, 2))
    assert abs(np.corrcoef(now, later)[0, 1]) < 4 / np.sqrt(count)


def test_is_philox_keyed_by_blake2b() -> None:
    """A resumed run draws what the interrupted one would have: the construction is pinned, spelled out once more here."""
    digest = hashlib.blake2b(b"7|route|3|11", digest_size=16).digest()
    expected = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(2)
    assert uniforms(2, 7, "route", 3, 11).tolist() == expected.tolist()
