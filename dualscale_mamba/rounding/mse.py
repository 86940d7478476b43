"""Scales with the least squared error of the weights: clipping the largest may pay for all the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight, on_grid
from dualscale_mamba.rounding.nearest import Nearest

# Numbers that are worked on at a time: a search in one piece would need the memory of the weight for every candidate.
CHUNK_ELEMENTS = 1 << 18
# With 4 bits a little more than the nearest rule's step may pay as well: at 8/7 of it both extremes are inside.
WIDEST = {8: 1.0, 4: 8.0 / 7.0}


@dataclass(frozen=True)
class MseClip:
    """Search each row's or group's scale among shrunken ones, with both signs where the grid is not symmetric.

    The rule of :class:`~dualscale_mamba.rounding.nearest.Nearest` is always among the candidates, so that no group
    errs more than with it.

    Args:
        narrowest: The smallest candidate, as a share of the nearest rule's scale.
        steps: Number of candidates, evenly spaced, of each sign.
    """

    narrowest: float = 0.5
    steps: int = 40

    def __post_init__(self) -> None:
        if not 0.0 < self.narrowest < 1.0:
            raise ConfigError("rounding.narrowest", self.narrowest, "a number above 0 and below 1")
        if self.steps < 2:
            raise ConfigError("rounding.steps", self.steps, "at least 2")

    @property
    def needs_inputs(self) -> bool:
        """Never: the weights say it all."""
        return False

    def scales(self, groups: Tensor, grid: Grid) -> Tensor:
        """See :class:`~dualscale_mamba.rounding.base.ScaleRule`."""
        rows = max(1, CHUNK_ELEMENTS // max(1, groups[0].numel()))
        return torch.cat([self._search(chunk, grid) for chunk in torch.split(groups, rows)])

    def _search(self, groups: Tensor, grid: Grid) -> Tensor:
        first = Nearest().scales(groups, grid)
        best, least = first, _squared_error(groups, first, grid)
        shares = torch.linspace(self.narrowest, WIDEST[grid.bits], self.steps, dtype=torch.float64).tolist()
        for sign in (1.0, -1.0) if grid.bits == 4 else (1.0,):
            for share in shares:
                scale = first * (sign * share)
                error = _squared_error(groups, scale, grid)
                better = error < least
                best, least = torch.where(better, scale, best), torch.where(better, error, least)
        return best

    def __call__(self, weight: Tensor, grid: Grid, hessian: Tensor | None = None) -> QuantizedWeight:
        """See :class:`~dualscale_mamba.rounding.base.Rounding`; ``hessian`` is not read."""
        return on_grid(weight, self.scales(grid.grouped(weight.detach().float()), grid), grid)


def _squared_error(groups: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Sum of squares of each group (N, G, width) at scales (N, G), as they will be kept: fp32 (N, G)."""
    kept = grid.stored_scale(scale).float().reshape(*scale.shape, 1)
    # Both codes next to a tie are as far from it: here the rule of ties is of no account, and this one is the fastest.
    values = (groups / kept).round_().clamp_(*grid.levels).mul_(kept)
    return values.sub_(groups).square_().sum(2)
