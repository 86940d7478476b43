"""The typed face of the operators that carry a state: the scans of both families and their one-token forms."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from dualscale_mamba.ops.dispatch import kernel


def selective_scan(
    u: Tensor,
    u_code: Tensor | None,
    delta: Tensor,
    delta_code: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_code: Tensor | None,
    C: Tensor,
    C_code: Tensor | None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    z_code: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    u_mask: Tensor | None = None,
    u_outliers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Selective scan (Mamba-1), decoding its inputs on load.

    Args:
        u: (B, L, D) floating point, or int8 with ``u_code``.
        u_code: fp32 (1 or D, 5, 8 or 512) or None.
        delta: (B, L, D) before softplus. delta, B, C and z are all int8 or all floating point.
        delta_code: fp32 (1, 8) or None; so are the codes of B, C and z.
        A: fp32 (D, N), negative.
        B: (B, L, N).
        B_code: See ``delta_code``.
        C: (B, L, N).
        C_code: See ``delta_code``.
        D: fp32 (D,), the skip connection.
        z: (B, L, D), the gate before SiLU.
        z_code: See ``delta_code``.
        delta_bias: fp32 (D,).
        initial: fp32 (B, D, N), the state before the first token; default zeros.
        dtype: Of the result.
        u_mask: uint8 (B, L, ceil(D/8)), the selectors of u where its code is a pair.
        u_outliers: int16 (B, ceil(L/32), ceil(D/64), 1 + entries), its lists, or None.

    Returns:
        ``dtype`` (B, L, D) and the last state, fp32 (B, D, N).
    """
    return cast(
        "tuple[Tensor, Tensor]",
        kernel("selective_scan", u)(
            u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias, initial, dtype,
            u_mask, u_outliers,
        ),
    )  # fmt: skip


def selective_state_update(
    state: Tensor,
    u: Tensor,
    u_code: Tensor | None,
    delta: Tensor,
    delta_code: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_code: Tensor | None,
    C: Tensor,
    C_code: Tensor | None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    z_code: Tensor | None = None,
    delta_bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    u_mask: Tensor | None = None,
    u_outliers: Tensor | None = None,
) -> Tensor:
    """One token of :func:`selective_scan`.

    Args:
        state: fp32 (B, D, N), updated in place.
        u: (B, D); its code and all further arguments are as in :func:`selective_scan`, without the length.
        u_code: fp32 (1 or D, 5, 8 or 512) or None.
        delta: (B, D).
        delta_code: fp32 (1, 8) or None.
        A: fp32 (D, N).
        B: (B, N).
        B_code: fp32 (1, 8) or None.
        C: (B, N).
        C_code: fp32 (1, 8) or None.
        D: fp32 (D,).
        z: (B, D).
        z_code: fp32 (1, 8) or None.
        delta_bias: fp32 (D,).
        dtype: Of the result.
        u_mask: uint8 (B, 1, ceil(D/8)), the selectors of u where its code is a pair.
        u_outliers: int16 (B, 1, ceil(D/64), 1 + entries), its lists, or None.

    Returns:
        ``dtype`` (B, D).
    """
    return cast(
        Tensor,
        kernel("selective_state_update", u)(
            state, u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias, dtype,
            u_mask, u_outliers,
        ),
    )  # fmt: skip


def ssd_scan(
    x: Tensor,
    x_code: Tensor | None,
    delta: Tensor,
    delta_code: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_code: Tensor | None,
    C: Tensor,
    C_code: Tensor | None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_min: float = 0.0,
    delta_max: float = math.inf,
    groups: int = 1,
    initial: Tensor | None = None,
    chunk: int = 256,
    state_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """State space duality (Mamba-2), decoding its inputs on load.

    On CUDA a half-precision ``dtype`` multiplies matrices of that type on tensor cores and sums in fp32; float32 runs
    the recurrence in fp32.

    Args:
        x: (B, L, H*P) floating point, or int8 with ``x_code``; so are delta, B and C, each on its own.
        x_code: fp32 (1 or H*P, 8 or 512) or None.
        delta: (B, L, H) before softplus.
        delta_code: fp32 (1, 8) or None.
        A: fp32 (H,), negative.
        B: (B, L, groups*N).
        B_code: fp32 (1 or groups*N, 8 or 512) or None.
        C: (B, L, groups*N).
        C_code: See ``B_code``.
        D: fp32 (H,), the skip connection.
        delta_bias: fp32 (H,).
        delta_min: Lower limit of delta after softplus.
        delta_max: Upper limit.
        groups: Number of groups of heads that share B and C; divides H.
        initial: fp32 or fp16 (B, H, P, N), the state before the first token; default zeros.
        chunk: Most tokens of one matrix product; changes rounding only.
        state_dtype: Of the last state: float32 or float16.
        dtype: Of y.

    Returns:
        ``dtype`` (B, L, H*P) and the last state, ``state_dtype`` (B, H, P, N).
    """
    return cast(
        "tuple[Tensor, Tensor]",
        kernel("ssd_scan", x)(
            x, x_code, delta, delta_code, A, B, B_code, C, C_code, D, delta_bias, delta_min, delta_max,
            groups, initial, chunk, state_dtype, dtype,
        ),
    )  # fmt: skip


def ssd_state_update(
    state: Tensor,
    x: Tensor,
    x_code: Tensor | None,
    delta: Tensor,
    delta_code: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_code: Tensor | None,
    C: Tensor,
    C_code: Tensor | None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_min: float = 0.0,
    delta_max: float = math.inf,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One token of :func:`ssd_scan`.

    Args:
        state: fp32 or fp16 (B, H, P, N), updated in place.
        x: (B, H*P); its code and all further arguments are as in :func:`ssd_scan`, without the length.
        x_code: fp32 (1 or H*P, 8 or 512) or None.
        delta: (B, H).
        delta_code: fp32 (1, 8) or None.
        A: fp32 (H,).
        B: (B, groups*N).
        B_code: fp32 (1 or groups*N, 8 or 512) or None.
        C: (B, groups*N).
        C_code: See ``B_code``.
        D: fp32 (H,).
        delta_bias: fp32 (H,).
        delta_min: Lower limit of delta after softplus.
        delta_max: Upper limit.
        groups: Number of groups of heads that share B and C.
        dtype: Of the result.

    Returns:
        ``dtype`` (B, H*P).
    """
    return cast(
        Tensor,
        kernel("ssd_state_update", x)(
            state, x, x_code, delta, delta_code, A, B, B_code, C, C_code, D, delta_bias, delta_min, delta_max,
            groups, dtype,
        ),
    )  # fmt: skip
