"""One scale and a zero point: the honest rival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dualscale_mamba.formats.base import Code, Range, knee_code
from dualscale_mamba.observers.histogram import Histogram

FIRST_CODE = -128
LAST_CODE = 127


@dataclass(frozen=True)
class Affine:
    """256 equal steps from the floor to the threshold, the zero point on an integer code."""

    needs_floor: ClassVar[bool] = False

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        range_ = range_.clamped()
        scale = (range_.inner - range_.floor) / (LAST_CODE - FIRST_CODE)
        zero = FIRST_CODE + torch.round(-range_.floor / scale)
        return knee_code(scale, zero, torch.full_like(zero, LAST_CODE), torch.ones_like(zero), has_knee=False)
