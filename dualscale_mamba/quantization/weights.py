"""Weights in int8, one symmetric scale an output channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.ops.reference import round_half_away

WEIGHT_MAX = 127


@dataclass(frozen=True)
class Int8Weight:
    """A weight matrix in int8.

    Attributes:
        codes: int8 ``(N, K)``.
        scale: fp32 ``(N,)``.
    """

    codes: Tensor
    scale: Tensor

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, ``(N, K)``."""
        return (self.codes.float() * self.scale[:, None]).to(dtype)


def quantize_weight(weight: Tensor) -> Int8Weight:
    """Round to nearest with the row's largest magnitude at 127: weight (N, K) float -> int8 and fp32 scales."""
    values = weight.detach().float()
    scale = values.abs().amax(1).clamp_min(1e-12) / WEIGHT_MAX
    codes = round_half_away(values / scale[:, None]).clamp(-WEIGHT_MAX, WEIGHT_MAX)
    return Int8Weight(codes.to(torch.int8), scale)
