"""Round to nearest: the scale lets the largest weight of its group be the outermost code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.quantization.weights import Grid, QuantizedWeight, on_grid

SMALLEST_MAXIMUM = 1e-12


@dataclass(frozen=True)
class Nearest:
    """Each weight for itself, at the code next to it.

    With 8 bits the largest magnitude of a row is at 127. With 4 bits the largest magnitude of a group is at -8, the
    scale bearing the opposite of its sign, so that all sixteen codes are used: the step is absmax / 8 where a scale
    without a sign has absmax / 7.
    """

    @property
    def needs_inputs(self) -> bool:
        """Never: the weights say it all."""
        return False

    def scales(self, groups: Tensor, grid: Grid) -> Tensor:
        """See :class:`~dualscale_mamba.rounding.base.ScaleRule`."""
        lowest, highest = grid.levels
        if grid.bits == 8:
            return groups.abs().amax(2).clamp_min(SMALLEST_MAXIMUM) / highest
        low, high = groups.amin(2).clamp_max(-SMALLEST_MAXIMUM), groups.amax(2)
        return torch.where(high > -low, high, low) / lowest

    def __call__(self, weight: Tensor, grid: Grid, hessian: Tensor | None = None) -> QuantizedWeight:
        """See :class:`~dualscale_mamba.rounding.base.Rounding`; ``hessian`` is not read."""
        return on_grid(weight, self.scales(grid.grouped(weight.detach().float()), grid), grid)
