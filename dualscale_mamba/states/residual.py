"""The residual of error feedback: what rounding left over, in four or eight bits of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from dualscale_mamba.ops.rounding import round_half_away

WIDTHS = (4, 8)
_MIDDLE = 8  # what is added to a code of four bits, so that it is positive


def largest(bits: int) -> int:
    """The largest code: it stands for half a step."""
    return int(2 ** (bits - 1)) - 1


def coded(rest: Tensor, gap: Tensor, bits: int) -> Tensor:
    """What is left over, as codes of half a step.

    Args:
        rest: fp32 ``(..., N)``.
        gap: fp32 ``(..., N)``, the step to the neighbouring level, in the direction of ``rest``; 0 beyond the last.
        bits: 4 or 8.

    Returns:
        int8 ``(..., N)``, 0 where there is no step.
    """
    top = largest(bits)
    share = torch.where(gap == 0, 0.0, rest / gap).abs() * float(2 * top)
    return (round_half_away(share.clamp_max(float(top))) * torch.sign(rest)).to(torch.int8)


def packed(codes: Tensor, bits: int) -> Tensor:
    """int8 ``(..., N)`` as it is stored: int8 of the same shape, or uint8 ``(..., N/2)`` with two codes a byte.

    Byte j holds code j in its low and code N/2 + j in its high half.
    """
    if bits != WIDTHS[0]:
        return codes
    low, high = (codes + _MIDDLE).to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4)


def unpacked(stored: Tensor, bits: int) -> Tensor:
    """Inverse of :func:`packed`."""
    if bits != WIDTHS[0]:
        return stored
    return torch.cat([stored & 15, stored >> 4], dim=-1).to(torch.int8) - _MIDDLE
