"""The largest magnitude seen is the threshold: nothing is an outlier."""

from __future__ import annotations

from dataclasses import dataclass

from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.observers.base import Fitted, range_at
from dualscale_mamba.observers.histogram import Histogram


@dataclass(frozen=True)
class AbsMax:
    """Inner threshold = outer range = true maximum magnitude of the calibration set."""

    def fit(self, histogram: Histogram, floor: float | None, mode: ScaleMode) -> Fitted:
        """See :class:`~dualscale_mamba.observers.base.Observer`."""
        range_ = range_at(histogram, floor, 100.0)
        return Fitted(mode.fit(range_, histogram), range_, 100.0, mode)
