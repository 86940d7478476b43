"""Noise of the seeds beside the noise of the items."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dualscale_mamba.statistics.power import LEVEL, detectable_mean
from dualscale_mamba.statistics.resampling import Values


@dataclass(frozen=True)
class SeedNoise:
    """What the seeds allow to say.

    Attributes:
        p_value: The larger one of the t-test over seeds and of min F'.
        reach: Half of the wider 95 % interval.
        detectable: The larger smallest detectable difference.
    """

    p_value: float
    reach: float
    detectable: float


def over_seeds(means: Values, item_error: float, item_degrees: float) -> SeedNoise:
    """Test a mean difference against the noise of the seeds, and against that of seeds and items together.

    A claim about a method must hold for other seeds and for other items. Two things are asked of it:

    * The test over items (of the differences averaged over the seeds) and the paired t-test over the seeds' means must
      both reject. Taking the larger p value is an intersection-union test: to err, it must reject under a true null
      hypothesis of one of the two, which the test of that hypothesis does in at most 5 % of the cases, so the level
      holds without any correction (Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics
      24, 1982; Casella and Berger, "Statistical Inference" (2002), section 8.2.3).
    * That holds for two nulls that each have one kind of noise. Where both kinds are present at once each test misses
      one part of the variance, and both together still reject too often (Clark, "The language-as-fixed-effect fallacy",
      Journal of Verbal Learning and Verbal Behavior 12, 1973). So Clark's min F' has to reject as well: its variance is
      the sum of both tests', which counts what is common to both twice and is never too small.

    Args:
        means: (seeds,), each seed's mean difference.
        item_error: Standard error over items of the differences averaged over the seeds.
        item_degrees: Its degrees of freedom.

    Returns:
        The larger of the p values over seeds and of min F'; that over items is the caller's.
    """
    from scipy.stats import t

    seeds, mean = len(means), float(np.mean(means))
    seed_error = float(np.std(means, ddof=1)) / math.sqrt(seeds)
    if seed_error <= 1e-12 * abs(mean):  # the seed changes nothing
        return SeedNoise(0.0 if mean else 1.0, 0.0, 0.0)
    both = math.hypot(item_error, seed_error)
    # Satterthwaite's degrees of freedom of a sum of variances, as in Clark (1973).
    degrees = both**4 / (seed_error**4 / (seeds - 1) + item_error**4 / item_degrees)
    tests = ((seed_error, seeds - 1.0), (both, degrees))
    return SeedNoise(
        p_value=max(2 * float(t.sf(abs(mean) / error, freedom)) for error, freedom in tests),
        reach=max(float(t.ppf(1 - LEVEL / 2, freedom)) * error for error, freedom in tests),
        detectable=max(detectable_mean(error, freedom) for error, freedom in tests),
    )
