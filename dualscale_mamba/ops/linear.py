"""The typed face of the linear layers: weights in 8 or 4 bits, activations in int8 or floating point.

``constant_weight`` is a promise: the kernel queued just before the call writes neither ``weight`` nor
``weight_scale``. On a GPU the product of a few rows then reads them while that kernel still runs. Where the promise is
broken, the result is undefined; without it, nothing is read ahead.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from dualscale_mamba.ops.dispatch import kernel


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
    constant_weight: bool = False,
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
        constant_weight: See the module.

    Returns:
        (..., N), int8 or ``dtype``.

    Raises:
        RuntimeError: An argument is of another type, shape or device; the message says what is allowed.
    """
    run = kernel("linear_w8a8", x)
    given = (x, x_code, knee, row_scale, weight, weight_scale, weight_sum)
    result = run(*given, bias, code, dtype, constant_weight)
    return cast(Tensor, result)


def linear_w4a8(
    x: Tensor,
    x_code: Tensor | None,
    knee: bool,
    row_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    group_size: int,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    constant_weight: bool = False,
) -> Tensor:
    """int8 activations times int4 weights, summed exactly within a group, groups in floating point.

    Args:
        x: int8 (..., K).
        x_code: fp32 (1, 8), or None for codes that stand for themselves.
        knee: Whether the knee term of ``x_code`` is computed.
        row_scale: fp32 (rows,) or None.
        weight: uint8 (N, K/2), K a multiple of 8, packed as
            :func:`dualscale_mamba.ops.reference.unpack_int4` says.
        weight_scale: fp16 (N, ceil(K / group_size)), of any sign.
        weight_sum: fp32 (N,), the sum of each row of decoded weights.
        group_size: Columns that share a scale, a power of two in 32..1024.
        bias: fp32 (N,).
        code: fp32 (1 or N, 8) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.
        constant_weight: See the module.

    Returns:
        (..., N), int8 or ``dtype``.

    Raises:
        RuntimeError: An argument is of another type, shape or device; the message says what is allowed.
    """
    run = kernel("linear_w4a8", x)
    given = (x, x_code, knee, row_scale, weight, weight_scale, weight_sum, group_size)
    result = run(*given, bias, code, dtype, constant_weight)
    return cast(Tensor, result)


def linear_w8a16(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    constant_weight: bool = False,
) -> Tensor:
    """Floating-point activations times int8 weights, summed in fp32.

    Args:
        x: (..., K) floating point.
        weight: int8 (N, K).
        weight_scale: fp32 (N,).
        bias: fp32 (N,).
        code: fp32 (1 or N, 8) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.
        constant_weight: See the module.

    Returns:
        (..., N), int8 or ``dtype``.

    Raises:
        RuntimeError: An argument is of another type, shape or device; the message says what is allowed.
    """
    run = kernel("linear_w8a16", x)
    result = run(x, weight, weight_scale, bias, code, dtype, constant_weight)
    return cast(Tensor, result)


def linear_w4a16(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    group_size: int,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    constant_weight: bool = False,
) -> Tensor:
    """Floating-point activations times int4 weights, summed in fp32.

    Args:
        x: (..., K) floating point.
        weight: uint8 (N, K/2), K a multiple of 8, packed as
            :func:`dualscale_mamba.ops.reference.unpack_int4` says.
        weight_scale: fp16 (N, ceil(K / group_size)), of any sign.
        group_size: Columns that share a scale, a power of two in 32..1024.
        bias: fp32 (N,).
        code: fp32 (1 or N, 8) of the result; without it the result is ``dtype``.
        dtype: Of a floating-point result.
        constant_weight: See the module.

    Returns:
        (..., N), int8 or ``dtype``.

    Raises:
        RuntimeError: An argument is of another type, shape or device; the message says what is allowed.
    """
    run = kernel("linear_w4a16", x)
    result = run(x, weight, weight_scale, group_size, bias, code, dtype, constant_weight)
    return cast(Tensor, result)
