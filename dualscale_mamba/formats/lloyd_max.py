"""Any 256 levels, fitted to the histogram: the bound of scalar quantization at eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import LEVELS, Code, FormatError, Range, table_code
from dualscale_mamba.observers.histogram import Histogram


@dataclass(frozen=True)
class LloydMax:
    """Levels that minimise the mean squared error (Lloyd 1982; Max 1960), with zero kept exact.

    Args:
        iterations: Rounds of nearest level, then centroid; in [1, 1000].
    """

    iterations: int = 60
    needs_floor: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= 1000:
            raise ConfigError("scale_mode.iterations", self.iterations, "an integer in [1, 1000]")

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`.

        Raises:
            FormatError: Without a histogram.
        """
        if histogram is None:
            raise FormatError("lloyd_max needs the site's histogram")
        inside = 4
        values, weights = histogram.points(inside)
        width = values.abs().double() / (inside << histogram.resolution)
        return table_code(self._levels(values.double(), width, weights))

    def _levels(self, values: Tensor, width: Tensor, weights: Tensor) -> Tensor:
        """Lloyd's iteration, started at the quantiles of the density's cube root (Panter & Dite 1951).

        Args:
            values: Support points, ascending, ``(points,)``.
            width: Distance that each point stands for, ``(points,)``.
            weights: Counts, ``(groups, points)``.
        """
        groups, points = weights.shape
        spread = (weights * width.square()).pow(1 / 3).cumsum(1)
        start = torch.linspace(0, 1, LEVELS, dtype=torch.float64) * spread[:, -1:]
        levels = values[torch.searchsorted(spread, start).clamp_max(points - 1)]
        each = values.expand(groups, -1).contiguous()
        for _ in range(self.iterations):
            nearest = torch.searchsorted((levels[:, 1:] + levels[:, :-1]) / 2, each)
            mass = torch.zeros_like(levels).scatter_add_(1, nearest, weights)
            moment = torch.zeros_like(levels).scatter_add_(1, nearest, weights * each)
            levels = torch.where(mass > 0, moment / mass.clamp_min(1e-300), levels).sort(1).values
        nearest_to_zero = levels.abs().argmin(1, keepdim=True)
        return levels.scatter(1, nearest_to_zero, 0.0).sort(1).values
