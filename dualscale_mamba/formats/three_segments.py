"""The three-segment quantizer of Quamba-SE as published: nine bits, simulated in floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.simulated import SimulatedCode, simulated_code
from dualscale_mamba.formats.single import SYMMETRIC_MAX
from dualscale_mamba.observers.histogram import Histogram

BITS = 9
# In steps s of the single scale: quarters to 15.75, whole steps from 16 to 143, then 63 steps of four.
FINE, FINE_CODES = 0.25, 63
NORMAL_FIRST, NORMAL_LAST = 16, 143
COARSE, COARSE_CODES = 4.0, 63
REACH = NORMAL_LAST + COARSE * COARSE_CODES


@dataclass(frozen=True)
class ThreeSegments:
    """Quarter steps around zero, whole steps beyond the threshold, steps of four for the outliers.

    With ``s = threshold / 127``, the step of `single`, a magnitude is a multiple of ``s / 4`` up to ``15.75 s``, of
    ``s`` from ``16 s`` to ``143 s``, and ``143 s + 4 s k``, k = 1 to 63, above; beyond ``395 s`` it saturates. That
    is 254 levels a side and zero, 509: nine bits, where `soft_edge` carries the same idea within eight. No kernel
    stores it. Values go to the nearest level; arXiv 2601.09451 sends those from ``15.75 s`` to ``15.875 s`` to
    ``16 s``.
    """

    needs_floor: ClassVar[bool] = False
    is_simulated: ClassVar[bool] = True

    def fit(self, range_: Range, histogram: Histogram | None = None) -> SimulatedCode:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        step = range_.clamped().inner[:, None] / SYMMETRIC_MAX
        side = torch.cat(
            [
                FINE * torch.arange(1, FINE_CODES + 1, dtype=torch.float64),
                torch.arange(NORMAL_FIRST, NORMAL_LAST + 1, dtype=torch.float64),
                NORMAL_LAST + COARSE * torch.arange(1, COARSE_CODES + 1, dtype=torch.float64),
            ]
        )
        return simulated_code(torch.cat([-side.flip(0), torch.zeros(1), side]) * step, BITS)
