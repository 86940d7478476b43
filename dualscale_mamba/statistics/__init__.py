"""Is a difference more than noise? Paired comparisons: arrays in, results out; no files and no jobs."""

from dualscale_mamba.statistics.families import holm
from dualscale_mamba.statistics.paired import (
    SIGNIFICANT,
    Paired,
    compare,
    compare_outcomes,
    paired_difference,
)
from dualscale_mamba.statistics.single import (
    CONFIDENCE,
    average_interval,
    mean_intervals,
    ratio_interval,
    share_interval,
)

__all__ = [
    "CONFIDENCE",
    "SIGNIFICANT",
    "Paired",
    "average_interval",
    "compare",
    "compare_outcomes",
    "holm",
    "mean_intervals",
    "paired_difference",
    "ratio_interval",
    "share_interval",
]
