"""One symmetric scale: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dualscale_mamba.formats.base import Code, Range, knee_code
from dualscale_mamba.observers.histogram import Histogram

SYMMETRIC_MAX = 127


@dataclass(frozen=True)
class Single:
    """``scale * q``, q in [-127, 127], with the threshold at 127; outliers saturate."""

    needs_floor: ClassVar[bool] = False

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        range_ = range_.clamped()
        zero = torch.zeros_like(range_.inner)
        return knee_code(
            range_.inner / SYMMETRIC_MAX,
            zero,
            zero + SYMMETRIC_MAX,
            zero + 1.0,
            qmin=-SYMMETRIC_MAX,
            has_knee=False,
        )
