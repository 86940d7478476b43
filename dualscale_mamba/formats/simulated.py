"""Codes of more than 256 levels: values are rounded in floating point, and no kernel ever stores them.

They stand beside eight-bit codes so that quantizers of other widths can be measured. Such a site hands floating-point
values on; what it would need is in ``bits_per_value``, what it saves is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Code, FormatError

MAX_BITS = 16


@dataclass(frozen=True)
class SimulatedCode(Code):
    """A table of any length, for rounding in floating point.

    Attributes:
        rows: fp32 ``(groups, 2 n)``: n non-decreasing levels, then n - 1 thresholds and one +inf.
        bits_per_value: What a stored value would need, at least log2(n).
        has_knee: False: there are no codes to compute with.
    """

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or self.rows.shape[1] % 2 or self.rows.shape[1] < 2:
            raise FormatError(f"simulated rows must be (groups, 2 n), got {tuple(self.rows.shape)}")
        if self.rows.dtype != torch.float32:
            raise FormatError(f"code rows must be float32, got {self.rows.dtype}")
        if self.bits_per_value > MAX_BITS or 2.0**self.bits_per_value < self.count:
            raise FormatError(
                f"{self.count} levels do not fit {self.bits_per_value:g} bits (at most {MAX_BITS})"
            )

    @property
    def count(self) -> int:
        """Levels of a group."""
        return self.rows.shape[1] // 2

    @property
    def is_stored(self) -> bool:
        """Never."""
        return False

    @property
    def is_knee(self) -> bool:
        """Never."""
        return False

    def levels(self) -> Tensor:
        """All levels, fp32 ``(groups, n)``."""
        return self.rows[:, : self.count]

    def ranks(self, values: Tensor) -> Tensor:
        """Rank of the level that each value (..., C) is rounded to, int64 of the same shape; NaN goes to zero's."""
        rows = self.rows.to(values.device)
        thresholds = rows[:, self.count : -1].contiguous()
        values = torch.where(torch.isnan(values), 0.0, values.float())
        if self.groups == 1:
            return torch.searchsorted(thresholds[0], values.contiguous(), right=True)
        columns = values.reshape(-1, values.shape[-1]).T.contiguous()
        return torch.searchsorted(thresholds, columns, right=True).T.reshape(values.shape)

    def rounded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks of values (..., C), and the values rounded to the nearest level in fp32, in their own type."""
        levels, ranks = self.levels().to(values.device), self.ranks(values)
        channel = torch.arange(values.shape[-1], device=values.device)
        found = levels[0][ranks] if self.groups == 1 else levels[channel, ranks]
        return ranks, found.to(values.dtype)


def simulated_code(levels: Tensor, bits: float) -> SimulatedCode:
    """Assemble and prove a simulated code from fp64 levels ``(groups, n)``, ascending.

    Values are rounded to the nearest level; a tie goes to the level of larger magnitude, as everywhere.

    Raises:
        FormatError: More than ``2**bits`` levels, or the contract of :meth:`Code.prove` is broken.
    """
    levels = levels.float()
    middle = ((levels[:, :-1].double() + levels[:, 1:].double()) / 2).float()
    # A negative tie must stay below, so its threshold is the next float up.
    above = torch.nextafter(middle, torch.full_like(middle, float("inf")))
    thresholds = torch.where(middle < 0, above, middle)
    infinite = torch.full_like(levels[:, :1], float("inf"))
    code = SimulatedCode(torch.cat([levels, thresholds, infinite], dim=1).contiguous(), float(bits))
    code.prove()
    return code
