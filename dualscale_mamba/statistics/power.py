"""The smallest true difference that a sample would show: found with 80 % power by a two-sided test at the 5 % level."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

POWER, LEVEL = 0.8, 0.05
# Discordant pairs that all point one way are significant from six on (2 * 0.5^6 < 0.05).
LEAST_DISCORDANT = 6


def detectable_mean(standard_error: float, degrees: float) -> float:
    """For a mean difference: (t(1 - level/2) + t(power)) standard errors.

    Normal approximation with Student's quantiles, which few items need: Cohen, "Statistical Power Analysis for the
    Behavioral Sciences" (1988), chapter 2; for evaluations of language models: Card et al., "With Little Power Comes
    Great Responsibility", EMNLP 2020, section 2.

    Args:
        standard_error: Of the mean difference, in its unit.
        degrees: Of freedom of the standard error.
    """
    from scipy.stats import t

    return float(t.ppf(1 - LEVEL / 2, degrees) + t.ppf(POWER, degrees)) * standard_error


@lru_cache(maxsize=1024)
def detectable_share(discordant: int, pairs: int) -> float:
    """For a difference of two paired shares under the exact McNemar test, at the discordance that was seen.

    Exact: the power is summed over the number of discordant pairs (binomial), given which the test is a sign test;
    Duffy, "Asymptotic and exact power for the McNemar test", Biometrics 40 (1984). Where so few pairs are discordant
    that no difference could be found, the difference that makes enough of them, all one way.

    Args:
        discordant: Pairs in which only one arm is right.
        pairs: All pairs.

    Returns:
        A difference of shares, at most 1.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom, gamma

    share = discordant / pairs
    spread = 6 * math.sqrt(pairs * share * (1 - share)) + 1
    numbers = np.arange(max(0, int(discordant - spread)), min(pairs, int(discordant + spread)) + 1)
    weights = binom.pmf(numbers, pairs, share)
    needed = binom.isf(LEVEL / 2, numbers, 0.5) + 1

    def lack(one_way: float) -> float:
        return POWER - float(weights @ binom.sf(needed - 1, numbers, one_way))

    if lack(1.0) >= 0:
        return min(1.0, float(gamma.ppf(POWER, LEAST_DISCORDANT)) / pairs)
    return share * (2 * float(brentq(lack, 0.5, 1.0, xtol=1e-6)) - 1)
