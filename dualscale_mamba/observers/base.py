"""What an observer does: from the counted values of a site, say where the threshold lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Code, Range, ScaleMode
from dualscale_mamba.observers.histogram import Histogram

# Room below the lowest value that a channel was seen to take: a channel sees few tokens in calibration.
CHANNEL_FLOOR_HEADROOM = 1.25


@dataclass(frozen=True)
class Fitted:
    """A code and how it was found.

    Attributes:
        code: The code, one row a group.
        range: What the format was fitted to.
        percentile: The percentile behind ``range.inner`` (mean over groups).
        mode: The scale mode that was chosen (a searching observer may choose a variant).
    """

    code: Code
    range: Range
    percentile: float
    mode: ScaleMode


class Observer(Protocol):
    """Where the threshold lies; orthogonal to the scale mode, which says how codes are spent around it."""

    def fit(self, histogram: Histogram, floor: float | None, mode: ScaleMode) -> Fitted:
        """Choose a range for ``mode`` and fit its code.

        Args:
            histogram: The site's counted values.
            floor: Analytic lower bound of the site, or None.
            mode: The scale mode that will spend the codes.
        """
        ...


def range_at(histogram: Histogram, floor: float | None, percent: float) -> Range:
    """The range whose threshold is the given percentile of the magnitudes."""
    return Range(lowest(histogram, floor), histogram.quantile(percent), histogram.absmax).clamped()


def lowest(histogram: Histogram, floor: float | None) -> Tensor:
    """Lowest value to represent, fp64 ``(groups,)``: the analytic floor, tightened per channel to what was seen."""
    seen = histogram.minimum.double()
    if floor is None:
        return seen
    analytic = torch.full_like(seen, floor)
    return analytic if histogram.groups == 1 else torch.maximum(analytic, seen * CHANNEL_FLOOR_HEADROOM)
