"""Is the difference between two arms more than noise? They answered the same items, so items are paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualscale_mamba.statistics.power import detectable_mean, detectable_share
from dualscale_mamba.statistics.resampling import Values, bootstrap_means, sign_flip_p, sign_test_p
from dualscale_mamba.statistics.seeds import over_seeds
from dualscale_mamba.statistics.single import CONFIDENCE, percentile_ends

SIGNIFICANT = 1 - CONFIDENCE
MCNEMAR, SIGN_FLIP = "exact McNemar", "paired bootstrap and sign-flip permutation"


@dataclass(frozen=True)
class Paired:
    """A difference of paired values.

    Attributes:
        mean: First minus second, the mean over items (over tasks, of each task's mean over items).
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Two-sided.
        pairs: Number of items.
        detectable: Smallest true difference found with 80 % power at the 5 % level; None where nothing varies.
        test: How it was tested.
        seeds: Runs of each arm.
    """

    mean: float
    low: float
    high: float
    p_value: float
    pairs: int
    detectable: float | None = None
    test: str = SIGN_FLIP
    seeds: int = 1

    @property
    def is_significant(self) -> bool:
        """Whether both the test and the interval say that there is a difference."""
        return self.p_value < SIGNIFICANT and not self.low <= 0.0 <= self.high


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Paired:
    """Compare two arms on the same items.

    Args:
        first: One value an item.
        second: The other arm's, in the same order.
        seed: Of the resampling.

    Raises:
        ValueError: The lengths differ, or there are fewer than two items.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"paired values are needed, two at least: {len(first)} and {len(second)}")
    return compare([np.asarray(first, dtype=float) - np.asarray(second, dtype=float)], seed)


def compare_outcomes(first: Values, second: Values) -> Paired:
    """Compare two arms' right (1) and wrong (0) answers to the same questions.

    The p value is McNemar's, exact. The interval is Wald's after one pair of each discordant kind is added (Bonett and
    Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data", Journal
    of Educational and Behavioral Statistics 37, 2012), which Fagerland, Lydersen and Laake (Statistics in Medicine 33,
    2014) recommend.

    Args:
        first: (items,) of 0 and 1.
        second: The other arm's, in the same order.

    Raises:
        ValueError: The lengths differ, there is no item, or a value is neither 0 nor 1.
    """
    from scipy.stats import norm

    if len(first) != len(second) or not len(first) or not np.isin([*first, *second], (0.0, 1.0)).all():
        raise ValueError(f"paired outcomes 0 or 1 are needed: {len(first)} and {len(second)} were given")
    items = len(first)
    gained, lost = int((first > second).sum()), int((first < second).sum())
    centre = (gained - lost) / (items + 2)
    variance = (gained + lost + 2) / (items + 2) - centre**2
    reach = float(norm.ppf(1 - SIGNIFICANT / 2)) * math.sqrt(variance / (items + 2))
    return Paired(
        mean=(gained - lost) / items,
        low=max(-1.0, centre - reach),
        high=min(1.0, centre + reach),
        p_value=sign_test_p(gained, gained + lost),
        pairs=items,
        detectable=detectable_share(gained + lost, items),
        test=MCNEMAR,
    )


def compare(strata: Sequence[Values], seed: int = 0) -> Paired:
    """Test whether differences are zero on average: over items, over tasks of items, over seeds of tasks of items.

    The interval is the bootstrap's, items resampled within their task (Efron and Tibshirani 1993, section 8.3; expanded
    percentiles). The p value is that of the sign-flip permutation, with the weight that an item has in the average:
    equal arms could have been swapped in any item, whatever its task. With several seeds see
    :func:`~dualscale_mamba.statistics.seeds.over_seeds`.

    Args:
        strata: For each task the differences, (items,) or (seeds, items).
        seed: Of the resampling.

    Raises:
        ValueError: There is no task, a task has fewer than two items, or tasks have different numbers of seeds.
    """
    runs = [np.atleast_2d(np.asarray(stratum, dtype=float)) for stratum in strata]
    seeds = {len(stratum) for stratum in runs}
    if len(seeds) != 1 or min(stratum.shape[1] for stratum in runs) < 2:
        raise ValueError(
            f"tasks of two items or more are needed, all of as many seeds: {seeds or 'no'} seeds"
        )
    found = _over_items([stratum.mean(axis=0) for stratum in runs], seed)
    if len(runs[0]) == 1:
        return found
    means = np.stack([stratum.mean(axis=1) for stratum in runs]).mean(axis=0)
    error, degrees = _standard_error([stratum.mean(axis=0) for stratum in runs])
    noise = over_seeds(means, error, degrees)
    return replace(
        found,
        low=min(found.low, found.mean - noise.reach),
        high=max(found.high, found.mean + noise.reach),
        p_value=max(found.p_value, noise.p_value),
        detectable=max(found.detectable or 0.0, noise.detectable) or None,
        test=f"{SIGN_FLIP}; paired t-test over {len(means)} seeds; min F'",
        seeds=len(means),
    )


def _over_items(strata: Sequence[Values], seed: int) -> Paired:
    weighted = np.concatenate([stratum / (len(strata) * len(stratum)) for stratum in strata])
    items, mean = len(weighted), float(np.mean([stratum.mean() for stratum in strata]))
    p_value = sign_flip_p(weighted, seed)
    if all(np.ptp(stratum) == 0.0 for stratum in strata):  # nothing to resample
        return Paired(mean, mean, mean, p_value, items)
    draws = np.mean([bootstrap_means(stratum, seed, task) for task, stratum in enumerate(strata)], axis=0)
    low, high = percentile_ends(draws, items - len(strata) + 1)
    error, degrees = _standard_error(strata)
    return Paired(mean, float(low), float(high), p_value, items, detectable_mean(error, degrees))


def _standard_error(strata: Sequence[Values]) -> tuple[float, int]:
    """Of the mean over tasks, and its degrees of freedom."""
    variance = math.fsum(float(stratum.var(ddof=1)) / len(stratum) for stratum in strata)
    return math.sqrt(variance) / len(strata), sum(len(stratum) - 1 for stratum in strata)
