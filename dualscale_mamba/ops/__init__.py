"""The typed face of the operators: what the rest of the package calls.

CUDA tensors run the CUDA kernels, CPU tensors the C++ kernels. There is no silent fallback: without the
compiled library for a device a call raises :class:`~dualscale_mamba.ops.build.BuildError`, which says what to
do. The PyTorch reference is a choice (``with implementation("reference")``), and results record which ran.

Shapes and types of all arguments are those of :mod:`dualscale_mamba.ops.schema`; everything is channels-last.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from dualscale_mamba.ops.dispatch import (
    current_implementation,
    ensure_loaded,
    implementation,
    kernel,
    set_implementation,
)

__all__ = [
    "causal_conv1d_encode",
    "causal_conv1d_update",
    "current_implementation",
    "decode",
    "encode",
    "ensure_loaded",
    "hadamard_quant",
    "implementation",
    "linear_w8a8",
    "rms_norm_quant",
    "selective_scan",
    "selective_state_update",
    "set_implementation",
]


def encode(x: Tensor, code: Tensor) -> Tensor:
    """Values to codes.

    Args:
        x: (..., C) floating point.
        code: fp32 (1 or C, 8 or 512).

    Returns:
        int8 (..., C). NaN becomes the code of 0; values outside the range saturate.
    """
    return cast(Tensor, kernel("encode", x)(x, code))


def decode(codes: Tensor, code: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Codes to values.

    Args:
        codes: int8 (..., C).
        code: fp32 (1 or C, 8 or 512).
        dtype: Of the result.

    Returns:
        ``dtype`` (..., C).
    """
    return cast(Tensor, kernel("decode", codes)(codes, code, dtype))


def causal_conv1d_encode(
    x: Tensor,
    x_code: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    initial: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Causal depthwise convolution, bias, SiLU, encode.

    Args:
        x: (B, L, C) floating point, or int8 with ``x_code``.
        x_code: fp32 (1, 8) or None.
        weight: fp32 (C, W), W in 2..4.
        bias: fp32 (C,).
        initial: (B, W-1, C) of x's type, the inputs before the first; default zeros.
        code: fp32 (1 or C, 8 or 512) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.

    Returns:
        (B, L, C), int8 or ``dtype``.
    """
    run = kernel("causal_conv1d_encode", x)
    return cast(Tensor, run(x, x_code, weight, bias, initial, code, dtype))


def causal_conv1d_update(
    x: Tensor,
    x_code: Tensor | None,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One token of :func:`causal_conv1d_encode`.

    Args:
        x: (B, C) floating point, or int8 with ``x_code``.
        x_code: fp32 (1, 8) or None.
        state: (B, W-1, C) of x's type, the latest inputs; shifted in place.
        weight: fp32 (C, W), W in 2..4.
        bias: fp32 (C,).
        code: fp32 (1 or C, 8 or 512) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.

    Returns:
        (B, C), int8 or ``dtype``.
    """
    run = kernel("causal_conv1d_update", x)
    return cast(Tensor, run(x, x_code, state, weight, bias, code, dtype))


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
) -> tuple[Tensor, Tensor]:
    """Selective scan (Mamba-1), decoding its inputs on load.

    Args:
        u: (B, L, D) floating point, or int8 with ``u_code``.
        u_code: fp32 (1 or D, 8 or 512) or None.
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

    Returns:
        ``dtype`` (B, L, D) and the last state, fp32 (B, D, N).
    """
    return cast(
        "tuple[Tensor, Tensor]",
        kernel("selective_scan", u)(
            u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias, initial, dtype
        ),
    )


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
) -> Tensor:
    """One token of :func:`selective_scan`.

    Args:
        state: fp32 (B, D, N), updated in place.
        u: (B, D); its code and all further arguments are as in :func:`selective_scan`, without the length.
        u_code: fp32 (1 or D, 8 or 512) or None.
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

    Returns:
        ``dtype`` (B, D).
    """
    return cast(
        Tensor,
        kernel("selective_state_update", u)(
            state, u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias, dtype
        ),
    )


def rms_norm_quant(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    code: Tensor | None = None,
    per_token: bool = False,
    residual_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual add, RMSNorm, encode.

    Args:
        x: (..., C) floating point.
        residual: (..., C) floating point, or None for zeros.
        weight: fp32 (C,).
        eps: Added to the mean square.
        code: fp32 (1 or C, 8 or 512) of the result; without it the result is ``dtype``.
        per_token: int8 with one scale a row instead; then ``code`` must be None.
        residual_dtype: Of the new residual.
        dtype: Of a floating-point result.

    Returns:
        The normed rows (..., C), the new residual (..., C), and the row scales, fp32 (rows,) or empty.
    """
    run = kernel("rms_norm_quant", x)
    result = run(x, residual, weight, eps, code, per_token, residual_dtype, dtype)
    return cast("tuple[Tensor, Tensor, Tensor]", result)


def hadamard_quant(
    x: Tensor,
    base: Tensor,
    code: Tensor | None = None,
    per_token: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Orthonormal Hadamard transform of each row, then encode.

    Args:
        x: (..., C) floating point, C = m * 2^k.
        base: fp32 (m, m), entries +-1.
        code: fp32 (1 or C, 8 or 512) of the result; without it the result is ``dtype``.
        per_token: int8 with one scale a row instead; then ``code`` must be None.
        dtype: Of a floating-point result.

    Returns:
        The transformed rows (..., C), and the row scales, fp32 (rows,) or empty.
    """
    return cast("tuple[Tensor, Tensor]", kernel("hadamard_quant", x)(x, base, code, per_token, dtype))


def linear_w8a8(
    x: Tensor,
    x_code: Tensor | None,
    knee: bool,
    row_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """int8 activations times int8 weights, summed exactly, scaled at the end.

    Args:
        x: int8 (..., K).
        x_code: fp32 (1, 8), or None for codes that stand for themselves.
        knee: Whether the knee term of ``x_code`` is computed.
        row_scale: fp32 (rows,) or None.
        weight: int8 (N, K).
        weight_scale: fp32 (N,).
        weight_sum: int32 (N,), the sum of each row of ``weight``.
        bias: fp32 (N,).
        code: fp32 (1 or N, 8) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.

    Returns:
        (..., N), int8 or ``dtype``.
    """
    run = kernel("linear_w8a8", x)
    result = run(x, x_code, knee, row_scale, weight, weight_scale, weight_sum, bias, code, dtype)
    return cast(Tensor, result)
