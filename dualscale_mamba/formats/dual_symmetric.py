"""Two scales, mirrored: for sites without a floor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Code, Range, ScaleMode, check_headroom, table_code
from dualscale_mamba.observers.histogram import Histogram

SIDE = 127
SPLITS = (64, 80, 96, 104, 110, 116, 120)


@dataclass(frozen=True)
class DualSymmetric:
    """On each side ``inner_codes`` fine codes to the threshold and the rest of 127 to the maximum.

    Args:
        inner_codes: In [8, 126].
        headroom: The coarse part reaches ``headroom`` times the largest magnitude seen, in [1, 16].
    """

    inner_codes: int = 110
    headroom: float = 1.25
    needs_floor: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 8 <= self.inner_codes <= 126:
            raise ConfigError("scale_mode.inner_codes", self.inner_codes, "an integer in [8, 126]")
        check_headroom(self.headroom)

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        range_ = range_.clamped()
        inner, top = range_.inner[:, None], range_.outer[:, None] * self.headroom
        outer_codes = SIDE - self.inner_codes
        uniform = (top - inner) / outer_codes <= inner / self.inner_codes
        inner = torch.where(uniform, top * self.inner_codes / SIDE, inner)
        fine = inner / self.inner_codes * torch.arange(1, self.inner_codes + 1)
        coarse = inner + (top - inner) / outer_codes * torch.arange(1, outer_codes + 1)
        side = torch.cat([fine, coarse], dim=1)
        return table_code(torch.cat([-side.flip(1), torch.zeros_like(inner), side], dim=1))

    def variants(self) -> list[ScaleMode]:
        """Every split that a searching observer may try."""
        return [replace(self, inner_codes=split) for split in sorted({*SPLITS, self.inner_codes})]
