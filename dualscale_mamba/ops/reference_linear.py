"""The linear layers in plain PyTorch: the definition that the compiled kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from dualscale_mamba.ops.reference import result_of, unpack_int4


def decode_int4(weight: Tensor, scale: Tensor, group_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (N, K/2) with scales (N, ceil(K/group_size)) -> values (N, K) of type dtype."""
    codes = unpack_int4(weight)
    return codes.to(dtype) * scale.to(dtype).repeat_interleave(group_size, dim=1)[:, : codes.shape[1]]


def _steps(x: Tensor, x_code: Tensor | None, knee: bool) -> Tensor:
    """Codes (..., K) -> fp64 (rows, K), the values in units of the code's scale."""
    rows = x.reshape(-1, x.shape[-1]).double()
    if x_code is None:
        return rows
    _, _, zero, knee_at, gain, _, _, _ = x_code.double().unbind(1)
    steps = rows - zero
    return steps + gain * (rows - knee_at).clamp_min(0.0) if knee else steps


def linear_w8a8(
    x: Tensor,
    x_code: Tensor | None,
    knee: bool,
    row_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None,
    code: Tensor | None,
    dtype: torch.dtype,
    constant_weight: bool,
) -> Tensor:
    """Decoded int8 activations times int8 weights, accumulated exactly, scaled once at the end."""
    y = (_steps(x, x_code, knee) @ weight.double().T).float()
    y = y * (weight_scale if x_code is None else x_code[0, 0] * weight_scale)
    if row_scale is not None:
        y = y * row_scale[:, None]
    if bias is not None:
        y = y + bias
    return result_of(y, code, dtype).reshape(*x.shape[:-1], weight.shape[0])


def linear_w4a8(
    x: Tensor,
    x_code: Tensor | None,
    knee: bool,
    row_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    group_size: int,
    bias: Tensor | None,
    code: Tensor | None,
    dtype: torch.dtype,
    constant_weight: bool,
) -> Tensor:
    """Decoded int8 activations times decoded int4 weights in fp64, scaled by the code at the end."""
    wide = decode_int4(weight, weight_scale, group_size, torch.float64)
    y = (_steps(x, x_code, knee) @ wide.T).float()
    if x_code is not None:
        y = y * x_code[0, 0]
    if row_scale is not None:
        y = y * row_scale[:, None]
    if bias is not None:
        y = y + bias
    return result_of(y, code, dtype).reshape(*x.shape[:-1], weight.shape[0])


def linear_w8a16(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    code: Tensor | None,
    dtype: torch.dtype,
    constant_weight: bool,
) -> Tensor:
    """Floating-point activations times decoded int8 weights, in fp32."""
    return _product(x, weight.float() * weight_scale[:, None], bias, code, dtype)


def linear_w4a16(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    group_size: int,
    bias: Tensor | None,
    code: Tensor | None,
    dtype: torch.dtype,
    constant_weight: bool,
) -> Tensor:
    """Floating-point activations times decoded int4 weights, in fp32."""
    return _product(x, decode_int4(weight, weight_scale, group_size), bias, code, dtype)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, code: Tensor | None, dtype: torch.dtype
) -> Tensor:
    y = x.float() @ weight.T
    return result_of(y if bias is None else y + bias, code, dtype)
