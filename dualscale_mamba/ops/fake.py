"""Shape functions (fake kernels): what each operator returns, without computing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _like(x: Tensor, code: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype if code is None else torch.int8, device=x.device)


def _rows(x: Tensor, per_token: bool) -> Tensor:
    return x.new_empty(
        (x.numel() // x.shape[-1] if x.shape[-1] else 0) if per_token else 0, dtype=torch.float32
    )


def encode(x: Tensor, code: Tensor) -> Tensor:
    """(..., C) -> (..., C) int8."""
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


def decode(codes: Tensor, code: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., C) int8 -> (..., C) dtype."""
    return torch.empty(codes.shape, dtype=dtype, device=codes.device)


def encode_pair(x: Tensor, *rest: Any) -> Tensor:
    """(B, L, C) -> (B, L, C) int8."""
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


def decode_pair(codes: Tensor, *rest: Any) -> Tensor:
    """(B, L, C) int8 -> (B, L, C) dtype."""
    return torch.empty(codes.shape, dtype=rest[-1], device=codes.device)


def causal_conv1d_encode(x: Tensor, *rest: Any) -> Tensor:
    """(B, L, C) -> (B, L, C)."""
    return _like(x, *rest[4:6])


def causal_conv1d_update(x: Tensor, *rest: Any) -> Tensor:
    """(B, C) -> (B, C)."""
    return _like(x, *rest[4:6])


def selective_scan(u: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """(B, L, D) -> (B, L, D), (B, D, N)."""
    A, dtype = rest[3], rest[13]
    return _like(u, None, dtype), A.new_empty((u.shape[0], *A.shape), dtype=torch.float32)


def selective_state_update(state: Tensor, u: Tensor, *rest: Any) -> Tensor:
    """(B, D) -> (B, D)."""
    return _like(u, None, rest[12])


def ssd_scan(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """(B, L, H*P) -> (B, L, H*P), (B, H, P, N)."""
    A, B, groups, state_dtype, dtype = rest[3], rest[4], rest[12], rest[-2], rest[-1]
    heads = A.shape[0]
    shape = (x.shape[0], heads, x.shape[2] // heads, B.shape[2] // groups)
    return _like(x, None, dtype), torch.empty(shape, dtype=state_dtype, device=x.device)


def ssd_state_update(state: Tensor, x: Tensor, *rest: Any) -> Tensor:
    """(B, H*P) -> (B, H*P)."""
    return _like(x, None, rest[-1])


def gated_rms_norm_quant(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """(..., C) -> (..., C), (rows,)."""
    code, per_token, dtype = rest[-3:]
    return _like(x, code, torch.int8 if per_token else dtype), _rows(x, per_token)


def rms_norm_quant(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    code: Tensor | None,
    per_token: bool,
    residual_dtype: torch.dtype,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(..., C) -> (..., C), (..., C), (rows,)."""
    y = _like(x, code, torch.int8 if per_token else dtype)
    return y, torch.empty(x.shape, dtype=residual_dtype, device=x.device), _rows(x, per_token)


def hadamard_quant(
    x: Tensor, base: Tensor, code: Tensor | None, per_token: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(..., C) -> (..., C), (rows,)."""
    return _like(x, code, torch.int8 if per_token else dtype), _rows(x, per_token)


def _product(x: Tensor, weight: Tensor, code: Tensor | None, dtype: torch.dtype) -> Tensor:
    shape = (*x.shape[:-1], weight.shape[0])
    return torch.empty(shape, dtype=dtype if code is None else torch.int8, device=x.device)


def linear_w8a8(x: Tensor, *rest: Any) -> Tensor:
    """(..., K) -> (..., N)."""
    return _product(x, rest[3], *rest[-3:-1])


def linear_w4a8(x: Tensor, *rest: Any) -> Tensor:
    """(..., K) -> (..., N)."""
    return _product(x, rest[3], *rest[-3:-1])


def linear_w8a16(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """(..., K) -> (..., N)."""
    return _product(x, weight, *rest[-3:-1])


def linear_w4a16(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    """(..., K) -> (..., N)."""
    return _product(x, weight, *rest[-3:-1])


def mamba_layer_step(hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """(B, D) -> (B, D), (B, D)."""
    return hidden.new_empty(hidden.shape), hidden.new_empty(hidden.shape, dtype=rest[-3])
