"""Stateless random numbers: each is a function of its key, so nothing depends on order, batch, rank or a resume."""

from __future__ import annotations

import hashlib

import numpy as np


def uniforms(count: int, *key: int | str) -> np.ndarray:
    """`count` numbers in [0, 1), float64, that depend on the key only: (run seed, purpose, step, dataset index, sample)."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return generator.random(count)


def uniform(*key: int | str) -> float:
    """One such number."""
    return float(uniforms(1, *key)[0])
