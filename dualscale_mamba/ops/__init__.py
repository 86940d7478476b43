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
from dualscale_mamba.ops.layer_step import fits_layer_step, layer_workspace, mamba_layer_step
from dualscale_mamba.ops.linear import linear_w4a8, linear_w4a16, linear_w8a8, linear_w8a16
from dualscale_mamba.ops.state_space import (
    selective_scan,
    selective_state_update,
    ssd_scan,
    ssd_state_update,
)

__all__ = [
    "causal_conv1d_encode",
    "causal_conv1d_update",
    "current_implementation",
    "decode",
    "decode_pair",
    "encode",
    "encode_pair",
    "ensure_loaded",
    "fits_layer_step",
    "gated_rms_norm_quant",
    "hadamard_quant",
    "implementation",
    "layer_workspace",
    "linear_w4a8",
    "linear_w4a16",
    "linear_w8a8",
    "linear_w8a16",
    "mamba_layer_step",
    "rms_norm_quant",
    "selective_scan",
    "selective_state_update",
    "set_implementation",
    "ssd_scan",
    "ssd_state_update",
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


def encode_pair(x: Tensor, code: Tensor, mask: Tensor, outliers: Tensor | None = None) -> Tensor:
    """Values to codes of two scales, and the selectors beside them.

    Args:
        x: (B, L, C) floating point.
        code: fp32 (1 or C, 5).
        mask: uint8 (B, L, ceil(C/8)), written; with ``outliers`` only where a list is full.
        outliers: int16 (B, ceil(L/32), ceil(C/64), 1 + entries), written; None to have all selectors in the mask.

    Returns:
        int8 (B, L, C). NaN becomes the code of 0; values outside the range saturate.
    """
    return cast(Tensor, kernel("encode_pair", x)(x, code, mask, outliers))


def decode_pair(
    codes: Tensor,
    code: Tensor,
    mask: Tensor,
    outliers: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Codes of two scales to values.

    Args:
        codes: int8 (B, L, C).
        code: fp32 (1 or C, 5).
        mask: As :func:`encode_pair` wrote it.
        outliers: The same.
        dtype: Of the result.

    Returns:
        ``dtype`` (B, L, C).
    """
    return cast(Tensor, kernel("decode_pair", codes)(codes, code, mask, outliers, dtype))


def causal_conv1d_encode(
    x: Tensor,
    x_code: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    initial: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    mask: Tensor | None = None,
    outliers: Tensor | None = None,
) -> Tensor:
    """Causal depthwise convolution, bias, SiLU, encode.

    Args:
        x: (B, L, C) floating point, or int8 with ``x_code``.
        x_code: fp32 (1, 8) or None.
        weight: fp32 (C, W), W in 2..4.
        bias: fp32 (C,).
        initial: (B, W-1, C) of x's type, the inputs before the first; default zeros.
        code: fp32 (1 or C, 5, 8 or 512) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.
        mask: uint8 (B, L, ceil(C/8)), written where ``code`` is a pair; see :func:`encode_pair`.
        outliers: int16 (B, ceil(L/32), ceil(C/64), 1 + entries), written; see there.

    Returns:
        (B, L, C), int8 or ``dtype``.
    """
    run = kernel("causal_conv1d_encode", x)
    return cast(Tensor, run(x, x_code, weight, bias, initial, code, dtype, mask, outliers))


def causal_conv1d_update(
    x: Tensor,
    x_code: Tensor | None,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    mask: Tensor | None = None,
    outliers: Tensor | None = None,
) -> Tensor:
    """One token of :func:`causal_conv1d_encode`.

    Args:
        x: (B, C) floating point, or int8 with ``x_code``.
        x_code: fp32 (1, 8) or None.
        state: (B, W-1, C) of x's type, the latest inputs; shifted in place.
        weight: fp32 (C, W), W in 2..4.
        bias: fp32 (C,).
        code: fp32 (1 or C, 5, 8 or 512) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.
        mask: uint8 (B, 1, ceil(C/8)), written where ``code`` is a pair; see :func:`encode_pair`.
        outliers: int16 (B, 1, ceil(C/64), 1 + entries), written; see there.

    Returns:
        (B, C), int8 or ``dtype``.
    """
    run = kernel("causal_conv1d_update", x)
    return cast(Tensor, run(x, x_code, state, weight, bias, code, dtype, mask, outliers))


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


def gated_rms_norm_quant(
    x: Tensor,
    z: Tensor,
    z_code: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool = False,
    code: Tensor | None = None,
    per_token: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Gate, RMSNorm in groups, encode (Mamba-2).

    Args:
        x: (..., C) floating point.
        z: (..., C) before SiLU, floating point, or int8 with ``z_code``.
        z_code: fp32 (1, 8) or None.
        weight: fp32 (C,).
        eps: Added to the mean square.
        group_size: Adjacent channels that share one mean square; divides C.
        norm_before_gate: Gate the normed values rather than norm the gated ones.
        code: fp32 (1 or C, 8 or 512) of the result; without it the result is ``dtype``.
        per_token: int8 with one scale a row instead; then ``code`` must be None.
        dtype: Of a floating-point result.

    Returns:
        The rows (..., C), and the row scales, fp32 (rows,) or empty.
    """
    run = kernel("gated_rms_norm_quant", x)
    result = run(x, z, z_code, weight, eps, group_size, norm_before_gate, code, per_token, dtype)
    return cast("tuple[Tensor, Tensor]", result)


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
