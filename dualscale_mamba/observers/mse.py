"""The threshold (and the split of the codes) with the least mean squared error on the histogram."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Range, ScaleMode, Searchable
from dualscale_mamba.observers.base import Fitted, range_at
from dualscale_mamba.observers.histogram import Histogram

DEFAULT_PERCENTILES = (90.0, 95.0, 97.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99, 99.995, 100.0)


@dataclass(frozen=True)
class MeanSquaredError:
    """Search over percentiles and over the variants of the scale mode, each group for itself.

    Args:
        percentiles: Candidates, each in (50, 100].
    """

    percentiles: tuple[float, ...] = DEFAULT_PERCENTILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "percentiles", tuple(float(p) for p in self.percentiles))
        for percent in self.percentiles:
            if not 50.0 < percent <= 100.0:
                raise ConfigError("observer.percentiles", percent, "numbers in (50, 100]")
        if not self.percentiles:
            raise ConfigError("observer.percentiles", "[]", "at least one number in (50, 100]")

    def fit(self, histogram: Histogram, floor: float | None, mode: ScaleMode) -> Fitted:
        """See :class:`~dualscale_mamba.observers.base.Observer`."""
        best: Fitted | None = None
        least = torch.full((histogram.groups,), float("inf"), dtype=torch.float64)
        percent_of = torch.zeros(histogram.groups, dtype=torch.float64)
        candidates = mode.variants() if isinstance(mode, Searchable) else [mode]
        for percent in self.percentiles:
            range_ = range_at(histogram, floor, percent)
            for variant in candidates:
                code = variant.fit(range_, histogram)
                error = histogram.squared_error(code)
                better = error < least
                percent_of = torch.where(better, percent, percent_of)
                least = torch.where(better, error, least)
                best = _pick(better, Fitted(code, range_, percent, variant), best)
        assert best is not None
        return Fitted(best.code.prove(), best.range, float(percent_of.mean()), best.mode)


def _pick(better: torch.Tensor, new: Fitted, old: Fitted | None) -> Fitted:
    """Row by row the better of two fits; the named mode is the last one that won anywhere."""
    if old is None:
        return new
    if not better.any():
        return old
    rows = torch.where(better[:, None], new.code.rows, old.code.rows)
    inner = torch.where(better, new.range.inner, old.range.inner)
    range_ = Range(new.range.floor, inner, new.range.outer)
    return Fitted(replace(new.code, rows=rows), range_, new.percentile, new.mode)
