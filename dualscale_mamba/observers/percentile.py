"""A percentile of the magnitudes is the threshold."""

from __future__ import annotations

from dataclasses import dataclass

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.observers.base import Fitted, range_at
from dualscale_mamba.observers.histogram import Histogram


@dataclass(frozen=True)
class Percentile:
    """Inner threshold at a percentile of |value|, pooled over all values of the calibration set.

    Not an average of per-document quantiles, and not a percentile of per-batch maxima: both of these depend on
    how the set is cut into batches.

    Args:
        percentile: In (50, 100]; 100 is the true maximum.
    """

    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not 50.0 < self.percentile <= 100.0:
            raise ConfigError("observer.percentile", self.percentile, "a number in (50, 100]")

    def fit(self, histogram: Histogram, floor: float | None, mode: ScaleMode) -> Fitted:
        """See :class:`~dualscale_mamba.observers.base.Observer`."""
        range_ = range_at(histogram, floor, self.percentile)
        return Fitted(mode.fit(range_, histogram), range_, self.percentile, mode)
