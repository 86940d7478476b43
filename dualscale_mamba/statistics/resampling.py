"""Bootstrap means and sign flips of paired differences, many at once, in bounded memory, from a seed.

The draws depend on the number of values alone, not on the values, so that a study's comparisons share them, and a
comparison costs one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Draws = NDArray[np.uint8] | NDArray[np.int8]

RESAMPLES = 9999
# Where values repeat so often, a resample is drawn as counts of the values, which is the same and much faster.
REPEATED = 8
# Up to so many values every pattern of signs is tried (2^13 = 8192 < RESAMPLES).
EXACT = 13
# Draws are kept as bytes, up to so many, and drawn anew each time beyond; a block of rows fits into a core's cache.
_KEPT_BYTES, _ROWS = 2**27, 128
# Two sums that differ by less than rounding are a tie, and a tie counts against a difference.
_TIE = 1e-6


def bootstrap_means(values: Values, seed: int = 0, stratum: int = 0) -> Values:
    """Means of resamples with replacement (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 6).

    Args:
        values: (items,) or (items, quantities): a resample takes whole items.
        seed: Of the draws.
        stratum: Number of the task, so that tasks are resampled independently of each other.

    Returns:
        (RESAMPLES,) or (RESAMPLES, quantities).
    """
    count = len(values)
    if values.ndim == 1:
        distinct, numbers = np.unique(values, return_counts=True)
        if len(distinct) * REPEATED <= count:
            rng = np.random.default_rng([seed, stratum, count])
            drawn = rng.multinomial(count, numbers / count, size=RESAMPLES)
            return np.asarray(drawn @ distinct / count, dtype=float)
    return _products(_counts, values, (seed, stratum)) / count


def sign_flip_p(values: Values, seed: int = 0) -> float:
    """Two-sided p of a sum of differences under random signs: arms that are alike could have been swapped in any item.

    Fisher, "The Design of Experiments" (1935), section 21; Good, "Permutation, Parametric and Bootstrap Tests of
    Hypotheses" (2005), section 3.2. All patterns are tried for few items; where all differences are of one size it is
    the exact sign test, which for accuracies is McNemar's; otherwise one is added to both counts of RESAMPLES random
    patterns, which keeps the level (Phipson and Smyth, "Permutation P-values should never be zero", 2010).

    Args:
        values: (items,), weighted where items do not count alike; zeros have no sign and no part in it.
        seed: Of the patterns.
    """
    moved = values[values != 0.0]
    sizes, numbers = np.unique(np.abs(moved), return_counts=True)
    if len(moved) == 0:
        return 1.0
    if len(sizes) == 1:
        return sign_test_p(int((moved > 0).sum()), len(moved))
    observed = abs(float(moved.sum())) - _TIE * float(np.abs(moved).sum())
    if len(moved) <= EXACT:
        patterns = 1 - 2 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float((np.abs(patterns @ moved) >= observed).mean())
    if len(sizes) * REPEATED <= len(moved):
        rng = np.random.default_rng([seed, len(moved)])
        positive = rng.binomial(numbers, 0.5, size=(RESAMPLES, len(sizes)))
        flipped = (2 * positive - numbers) @ sizes
    else:
        flipped = _products(_signs, values, (seed, 0))
    return float(1 + (np.abs(flipped) >= observed).sum()) / (RESAMPLES + 1)


def sign_test_p(positive: int, total: int) -> float:
    """Exact two-sided p of ``positive`` of ``total`` signs; McNemar's test where these are the discordant pairs.

    McNemar, Psychometrika 12 (1947); its exact form: Agresti, "Categorical Data Analysis" (2002), section 10.1.4.
    """
    from scipy.stats import binomtest

    return float(binomtest(positive, total).pvalue) if total else 1.0


def _products(draw: Callable[..., Draws], values: Values, seeds: tuple[int, ...]) -> Values:
    """Sums of the values, each multiplied by its drawn number, for each draw."""
    scale = float(np.abs(values).max()) or 1.0
    columns = (values / scale).astype(np.float32)
    products = [block.astype(np.float32) @ columns for block in _blocks(draw, len(values), seeds)]
    return np.concatenate(products).astype(np.float64) * scale


def _blocks(draw: Callable[..., Draws], count: int, seeds: tuple[int, ...]) -> Iterator[Draws]:
    if count * RESAMPLES <= _KEPT_BYTES:
        kept = _kept(draw, count, seeds)
        yield from (kept[row : row + _ROWS] for row in range(0, RESAMPLES, _ROWS))
    else:
        yield from _drawn(draw, count, seeds)


@lru_cache(maxsize=4)
def _kept(draw: Callable[..., Draws], count: int, seeds: tuple[int, ...]) -> Draws:
    return np.concatenate(list(_drawn(draw, count, seeds)))


def _drawn(draw: Callable[..., Draws], count: int, seeds: tuple[int, ...]) -> Iterator[Draws]:
    rng = np.random.default_rng([*seeds, count])
    for row in range(0, RESAMPLES, _ROWS):
        yield draw(rng, min(_ROWS, RESAMPLES - row), count)


def _counts(rng: np.random.Generator, rows: int, count: int) -> Draws:
    """How often each item is in each resample."""
    chosen = rng.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count).astype(np.uint8)


def _signs(rng: np.random.Generator, rows: int, count: int) -> Draws:
    return (1 - 2 * rng.integers(0, 2, size=(rows, count), dtype=np.int8)).astype(np.int8)
