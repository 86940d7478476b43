"""Hardware 8-bit floats: what the chip offers for free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Code, Range, table_code
from dualscale_mamba.observers.histogram import Histogram

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True)
class Float8:
    """The finite values of an 8-bit float format, scaled so that the largest is the threshold.

    Codes are the ranks of the values, not the bits of the float: the same 8 bits in another order.

    Args:
        layout: ``e4m3`` (253 values) or ``e5m2`` (247 values).
    """

    layout: str = "e4m3"
    needs_floor: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.layout not in DTYPES:
            raise ConfigError("scale_mode.layout", self.layout, "e4m3 or e5m2")

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        bits = torch.arange(256, dtype=torch.uint8)
        values = bits.view(DTYPES[self.layout]).double()
        values = torch.unique(values[torch.isfinite(values)])
        inner = range_.clamped().inner[:, None]
        return table_code(values * (inner / values.max()))
