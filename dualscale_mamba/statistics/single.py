"""Intervals of one arm's own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dualscale_mamba.statistics.resampling import Values, bootstrap_means

CONFIDENCE = 0.95


def percentile_ends(draws: Values, items: int) -> Values:
    """Ends of the 95 % interval that bootstrap means give, (2,) or (2, quantities).

    Expanded percentile interval: resampling n values has a spread that is too small by sqrt((n - 1) / n) and has
    normal tails; the percentiles lie further out by that and by Student's quantile (Hesterberg, "What Teachers Should
    Know about the Bootstrap", The American Statistician 69, 2015; arXiv:1411.5279).

    Args:
        draws: (resamples,) or (resamples, quantities).
        items: How many values were resampled, less the number of strata, plus one.
    """
    from scipy.stats import norm, t

    reach = float(t.ppf(1 - (1 - CONFIDENCE) / 2, max(1, items - 1))) * math.sqrt(items / max(1, items - 1))
    tail = float(norm.sf(reach))
    return np.quantile(draws, [tail, 1 - tail], axis=0)


def mean_intervals(values: Values, seed: int = 0) -> Values:
    """95 % bootstrap intervals of means, (2, quantities), of values (items, quantities); NaN for a single item."""
    if len(values) < 2:
        return np.full((2, values.shape[1]), math.nan)
    return percentile_ends(bootstrap_means(values, seed), len(values))


def average_interval(strata: Sequence[Values], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over tasks of each task's mean, items resampled within their task.

    Args:
        strata: For each task its values, (items,).
        seed: Of the resampling.
    """
    draws = np.mean([bootstrap_means(stratum, seed, task) for task, stratum in enumerate(strata)], axis=0)
    low, high = percentile_ends(draws, sum(len(stratum) - 1 for stratum in strata) + 1)
    return float(low), float(high)


def share_interval(outcomes: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a share of right answers; Wilson, JASA 22 (1927), as Brown, Cai and DasGupta (2001) advise.

    Args:
        outcomes: (items,) of 0 and 1.
    """
    from scipy.stats import binomtest

    found = binomtest(round(float(outcomes.sum())), len(outcomes)).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def ratio_interval(first: Values, second: Values, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of mean(first) / mean(second), items resampled in pairs (Efron and Tibshirani, ch. 10).

    Args:
        first: (items,), none negative.
        second: The same items of the other arm, not all zero.
        seed: Of the resampling.
    """
    draws = bootstrap_means(np.stack([first, second], axis=1), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = draws[:, 0] / draws[:, 1]
    low, high = percentile_ends(ratios[np.isfinite(ratios)], len(first))
    return float(low), float(high)
