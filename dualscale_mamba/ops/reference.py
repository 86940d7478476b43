"""Every operator in plain PyTorch: the definition that the compiled kernels are tested against.

The functions take the arguments of :mod:`dualscale_mamba.ops.schema` in the same order. They work on any device
and are written to be read; the selective scan is the recurrence of Algorithm 2 (Gu & Dao 2023) step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba.formats.base import CODE_SPACE_LIMIT, KNEE_WIDTH, LEVELS
from dualscale_mamba.ops.reference_pair import decode_pair, encode_pair
from dualscale_mamba.ops.rounding import round_half_away

__all__ = ["decode_pair", "encode_pair"]  # the operators of this module that are written elsewhere


def encode(x: Tensor, code: Tensor) -> Tensor:
    """x (..., C) float -> codes (..., C) int8."""
    x = torch.where(torch.isnan(x), 0.0, x.float())
    if code.shape[1] != KNEE_WIDTH:
        return _encode_table(x, code)
    _, inv_scale, zero, knee, _, inv_gain, qmin, qmax = code.unbind(1)
    t = (x * inv_scale).clamp(-CODE_SPACE_LIMIT, CODE_SPACE_LIMIT) + zero
    t = t + inv_gain * (t - knee).clamp_min(0.0)
    return torch.minimum(torch.maximum(round_half_away(t), qmin), qmax).to(torch.int8)


def _encode_table(x: Tensor, code: Tensor) -> Tensor:
    thresholds = code[:, LEVELS:-1].contiguous()
    if thresholds.shape[0] == 1:
        count = torch.searchsorted(thresholds[0], x.contiguous(), right=True)
    else:
        columns = x.reshape(-1, x.shape[-1]).T.contiguous()
        count = torch.searchsorted(thresholds, columns, right=True).T.reshape(x.shape)
    return (count.clamp_max(LEVELS - 1) - 128).to(torch.int8)


def decode(codes: Tensor, code: Tensor, dtype: torch.dtype) -> Tensor:
    """codes (..., C) int8 -> values (..., C) of type dtype."""
    if code.shape[1] == KNEE_WIDTH:
        scale, _, zero, knee, gain, _, _, _ = code.unbind(1)
        q = codes.float()
        return (scale * ((q - zero) + gain * (q - knee).clamp_min(0.0))).to(dtype)
    index = codes.long() + 128
    if code.shape[0] == 1:
        return code[0, :LEVELS][index].to(dtype)
    return code[torch.arange(codes.shape[-1], device=codes.device), index].to(dtype)


def value_of(
    v: Tensor, code: Tensor | None, mask: Tensor | None = None, outliers: Tensor | None = None
) -> Tensor:
    """fp32 values of an activation that is int8 with a code (of a pair: with selectors too), or floating point."""
    if code is not None and mask is not None:
        return decode_pair(v, code, mask, outliers, torch.float32)
    return v.float() if code is None else decode(v, code, torch.float32)


def result_of(y: Tensor, code: Tensor | None, dtype: torch.dtype) -> Tensor:
    """fp32 values as int8 with a code, or as ``dtype`` without."""
    return y.to(dtype) if code is None else encode(y, code)


def unpack_int4(packed: Tensor) -> Tensor:
    """uint8 (..., K/2) -> int8 (..., K) in [-8, 7]: the one definition of how 4-bit codes lie in memory.

    Eight neighbours k0..k7 take four bytes: the low nibble of byte j holds code k0+j, the high nibble code k0+4+j,
    both in two's complement.
    """
    fours = packed.reshape(*packed.shape[:-1], packed.shape[-1] // 4, 4)
    nibbles = torch.stack([fours & 15, fours >> 4], dim=-2).to(torch.int8)
    return ((nibbles ^ 8) - 8).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def split_last(t: Tensor, parts: int) -> Tensor:
    """(..., parts*n) -> (..., parts, n)."""
    return t.reshape(*t.shape[:-1], parts, t.shape[-1] // parts)


def causal_conv1d_encode(
    x: Tensor,
    x_code: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    code: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    outliers: Tensor | None = None,
) -> Tensor:
    """encode(SiLU(causal depthwise conv(x) + bias)); see the schema for shapes."""
    width = weight.shape[1]
    value = value_of(x, x_code)
    zeros = value.new_zeros(x.shape[0], width - 1, x.shape[2])
    before = zeros if initial is None else value_of(initial, x_code)
    value = torch.cat([before, value], dim=1).transpose(1, 2)
    y = F.conv1d(value, weight.float()[:, None], bias, groups=weight.shape[0])
    y = F.silu(y).transpose(1, 2).contiguous()
    if code is not None and mask is not None:
        return encode_pair(y, code, mask, outliers)
    return result_of(y, code, dtype)


def causal_conv1d_update(
    x: Tensor,
    x_code: Tensor | None,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    code: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    outliers: Tensor | None = None,
) -> Tensor:
    """One token of :func:`causal_conv1d_encode`; state (B, W-1, C) is shifted in place."""
    y = causal_conv1d_encode(x[:, None], x_code, weight, bias, state, code, dtype, mask, outliers)
    state.copy_(torch.cat([state[:, 1:], x[:, None]], dim=1))
    return y[:, 0]


def _advance(
    state: Tensor,  # (B, D, N)
    u: Tensor,  # (B, D)
    delta: Tensor,  # (B, D), after softplus
    A: Tensor,  # (D, N)
    B: Tensor,  # (B, N)
    C: Tensor,  # (B, N)
) -> tuple[Tensor, Tensor]:
    decay = torch.exp(delta[..., None] * A)
    state = decay * state + (delta * u)[..., None] * B[:, None]
    return state, torch.einsum("bdn,bn->bd", state, C)


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
    D: Tensor | None,
    z: Tensor | None,
    z_code: Tensor | None,
    delta_bias: Tensor | None,
    initial: Tensor | None,
    dtype: torch.dtype,
    u_mask: Tensor | None = None,
    u_outliers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Selective scan, decoded on load; returns y (B, L, D) and the last state (B, D, N)."""
    value_u, step, b, c = (
        value_of(u, u_code, u_mask, u_outliers),
        value_of(delta, delta_code),
        value_of(B, B_code),
        value_of(C, C_code),
    )
    if delta_bias is not None:
        step = step + delta_bias
    step = F.softplus(step)
    zeros = A.new_zeros(u.shape[0], *A.shape, dtype=torch.float32)
    state = zeros if initial is None else initial.float()
    outputs = []
    for t in range(u.shape[1]):
        state, y_t = _advance(state, value_u[:, t], step[:, t], A, b[:, t], c[:, t])
        outputs.append(y_t)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(value_u)
    if D is not None:
        y = y + D * value_u
    if z is not None:
        y = y * F.silu(value_of(z, z_code))
    return y.to(dtype), state.clone() if state is initial else state


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
    D: Tensor | None,
    z: Tensor | None,
    z_code: Tensor | None,
    delta_bias: Tensor | None,
    dtype: torch.dtype,
    u_mask: Tensor | None = None,
    u_outliers: Tensor | None = None,
) -> Tensor:
    """One token of :func:`selective_scan`; state (B, D, N) is updated in place."""
    y, last = selective_scan(
        u[:, None], u_code, delta[:, None], delta_code, A, B[:, None], B_code, C[:, None], C_code,
        D, None if z is None else z[:, None], z_code, delta_bias, state, dtype, u_mask, u_outliers,
    )  # fmt: skip
    state.copy_(last)
    return y[:, 0]


def _encode_rows(
    y: Tensor, code: Tensor | None, per_token: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The common end of the two norm-like operators: static code, one scale a row, or floating point."""
    if not per_token:
        return result_of(y, code, dtype), y.new_empty(0)
    rows = y.reshape(-1, y.shape[-1])
    row_scale = rows.abs().amax(dim=1).clamp_min(1e-12) / 127.0
    codes = round_half_away(rows / row_scale[:, None]).clamp(-127, 127).to(torch.int8)
    return codes.reshape(y.shape), row_scale


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
    """Residual add, RMSNorm, encode; returns y, the new residual and the row scales."""
    total = x.float() if residual is None else x.float() + residual.float()
    rounded = total.to(residual_dtype)
    value = rounded.float()
    y = value * torch.rsqrt(value.square().mean(dim=-1, keepdim=True) + eps) * weight
    y, row_scale = _encode_rows(y, code, per_token, dtype)
    return y, rounded, row_scale


def gated_rms_norm_quant(
    x: Tensor,
    z: Tensor,
    z_code: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    code: Tensor | None,
    per_token: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Gate, RMSNorm in groups of channels, encode; returns y and the row scales."""
    gate, value = F.silu(value_of(z, z_code)), x.float()
    if not norm_before_gate:
        value = value * gate
    grouped = split_last(value, value.shape[-1] // group_size)
    inverse = torch.rsqrt(grouped.square().mean(dim=-1, keepdim=True) + eps)
    y = (grouped * inverse).flatten(-2) * weight
    return _encode_rows(y * gate if norm_before_gate else y, code, per_token, dtype)


def hadamard_quant(
    x: Tensor, base: Tensor, code: Tensor | None, per_token: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x (base (x) H_{2^k})^T / sqrt(C), then encode."""
    channels, m = x.shape[-1], base.shape[0]
    y = x.float().reshape(-1, m, channels // m)
    width = 1
    while width < y.shape[-1]:
        pairs = y.reshape(*y.shape[:2], y.shape[-1] // (2 * width), 2, width)
        y = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], dim=-2)
        y = y.reshape(-1, m, channels // m)
        width *= 2
    y = torch.einsum("ij,rjk->rik", base, y).reshape(x.shape) * channels**-0.5
    return _encode_rows(y, code, per_token, dtype)
