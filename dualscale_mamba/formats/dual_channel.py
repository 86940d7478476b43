"""Two scales for all channels, of which each has one: the finer where its values allow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Code, Range, knee_code
from dualscale_mamba.formats.single import SYMMETRIC_MAX
from dualscale_mamba.observers.histogram import Histogram

SELECTOR_BITS = 1.0


@dataclass(frozen=True)
class DualChannel:
    """``scale * q``, q in [-127, 127], as `single` has it, with one of two scales a channel.

    The coarse scale has the largest threshold of all channels at 127. The fine one has that of the channel after which
    a cut leaves the least squared step, mean over the channels. Which of the two a channel has is one bit, spent once
    and not again for each token: ``bits_per_value`` spreads it over the values that calibration counted in a channel.
    """

    needs_floor: ClassVar[bool] = False
    needs_channels: ClassVar[bool] = True

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`; without a histogram the selector is not counted."""
        inner = range_.clamped().inner
        fine = _cut(inner)
        zero = torch.zeros_like(inner)
        code = knee_code(
            torch.where(inner <= fine, fine, inner.amax()) / SYMMETRIC_MAX,
            zero,
            zero + SYMMETRIC_MAX,
            zero + 1.0,
            qmin=-SYMMETRIC_MAX,
            has_knee=False,
        )
        counted = 0.0 if histogram is None else float(histogram.total.double().mean())
        return replace(code, bits_per_value=8.0 + SELECTOR_BITS / counted) if counted else code


def _cut(inner: Tensor) -> Tensor:
    """The threshold of the fine scale: of ``inner`` (channels,) that with the least sum of squares when those up to it
    have it and the others the largest."""
    ordered = inner.sort().values
    below = torch.arange(1, ordered.numel() + 1, dtype=ordered.dtype)
    cost = below * ordered.square() + (ordered.numel() - below) * ordered[-1].square()
    return ordered[cost.argmin()]
