"""The control group: the knee path with both scales equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Code, Range, knee_code
from dualscale_mamba.formats.single import SYMMETRIC_MAX
from dualscale_mamba.observers.histogram import Histogram


@dataclass(frozen=True)
class Control:
    """The scale of `single` on the code path of `dual`: a knee at ``knee`` with ratio 1.

    Its results equal those of `single` bit for bit; its cost is that of `dual`.

    Args:
        knee: Code after which the coarse step would begin, in [-127, 126].
    """

    knee: int = 31
    needs_floor: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not -127 <= self.knee <= 126:
            raise ConfigError("scale_mode.knee", self.knee, "an integer in [-127, 126]")

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        range_ = range_.clamped()
        zero = torch.zeros_like(range_.inner)
        return knee_code(
            range_.inner / SYMMETRIC_MAX, zero, zero + self.knee, zero + 1.0, qmin=-SYMMETRIC_MAX
        )
