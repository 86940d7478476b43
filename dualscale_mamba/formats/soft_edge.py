"""Three scales a side, fine, normal and coarse, at a true 256 levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Code, Range, check_headroom, table_code
from dualscale_mamba.formats.dual_symmetric import SIDE
from dualscale_mamba.observers.histogram import Histogram


@dataclass(frozen=True)
class SoftEdge:
    """The three-segment idea of Quamba-SE (arXiv 2601.09451) within eight bits.

    On each side ``fine_codes`` of a quarter step, then ``normal_codes`` whole steps to the threshold, then what is
    left of 127 codes to the maximum. The published quantizer counts 509 levels, this one 255.

    Args:
        fine_codes: Codes of the fine segment a side.
        normal_codes: Codes of the normal segment a side; fine + normal must be below 127.
        ratio: Normal step over fine step.
        headroom: The coarse part reaches ``headroom`` times the largest magnitude seen, in [1, 16].
    """

    fine_codes: int = 48
    normal_codes: int = 60
    ratio: float = 4.0
    headroom: float = 1.25
    needs_floor: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.fine_codes < 1 or self.normal_codes < 1 or self.fine_codes + self.normal_codes >= SIDE:
            given = f"{self.fine_codes} + {self.normal_codes}"
            raise ConfigError(
                "scale_mode.fine_codes + normal_codes", given, "positive integers, together below 127"
            )
        if not 1.0 <= self.ratio <= 64.0:
            raise ConfigError("scale_mode.ratio", self.ratio, "a number in [1, 64]")
        check_headroom(self.headroom)

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        range_ = range_.clamped()
        inner, top = range_.inner[:, None], range_.outer[:, None] * self.headroom
        coarse_codes = SIDE - self.fine_codes - self.normal_codes
        step = inner / (self.fine_codes + self.ratio * self.normal_codes)
        fine = step * torch.arange(1, self.fine_codes + 1)
        normal = fine[:, -1:] + self.ratio * step * torch.arange(1, self.normal_codes + 1)
        coarse = inner + (top - inner).clamp_min(0) / coarse_codes * torch.arange(1, coarse_codes + 1)
        side = torch.cat([fine, normal, coarse], dim=1)
        return table_code(torch.cat([-side.flip(1), torch.zeros_like(inner), side], dim=1))
