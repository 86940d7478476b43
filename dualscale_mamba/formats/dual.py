"""Two scales inside the same eight bits: the treatment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.affine import FIRST_CODE, LAST_CODE
from dualscale_mamba.formats.base import Code, Range, ScaleMode, check_headroom, knee_code
from dualscale_mamba.observers.histogram import Histogram

SPLITS = (96, 128, 144, 160, 176, 192, 208, 224, 240)


@dataclass(frozen=True)
class Dual:
    """Fine codes from the floor to the threshold, coarse codes from there to the maximum.

    A SiLU output never falls below -0.2785, so a symmetric code wastes about 100 of its 256 codes. Here the first
    code stands for the floor, and what is saved pays for the outliers. Where nothing lies beyond the threshold
    the coarse part would be finer than the fine one; the code is then affine over the whole range.

    Args:
        fine_codes: Codes below the knee, in [16, 240]; the other ``256 - fine_codes`` are coarse.
        headroom: The coarse part reaches ``headroom`` times the largest value seen, in [1, 16].
    """

    fine_codes: int = 160
    headroom: float = 1.25
    needs_floor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 16 <= self.fine_codes <= 240:
            raise ConfigError("scale_mode.fine_codes", self.fine_codes, "an integer in [16, 240]")
        check_headroom(self.headroom)

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        range_ = range_.clamped()
        last_fine = FIRST_CODE + self.fine_codes - 1
        coarse_codes = LAST_CODE - last_fine
        fine = (range_.inner - range_.floor) / (self.fine_codes - 1)
        top = range_.outer * self.headroom
        coarse = (top - range_.inner) / coarse_codes
        uniform = (top - range_.floor) / (LAST_CODE - FIRST_CODE)
        scale = torch.where(coarse > fine, fine, uniform)
        zero = FIRST_CODE + torch.round(-range_.floor / scale)
        # The threshold's own level is where the fine codes end, after zero was put on an integer.
        ratio = (top / scale - (last_fine - zero)) / coarse_codes
        ratio = torch.where(coarse > fine, ratio, torch.ones_like(ratio))
        return knee_code(scale, zero, torch.full_like(zero, last_fine), ratio)

    def variants(self) -> list[ScaleMode]:
        """Every split that a searching observer may try."""
        return [replace(self, fine_codes=split) for split in sorted({*SPLITS, self.fine_codes})]
