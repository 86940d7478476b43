"""State space duality in plain PyTorch, in the shape of Listing 1 of the paper (Dao & Gu 2024, arXiv:2405.21060).

The definition that the compiled kernels of Mamba-2 are tested against; arguments as in
:mod:`dualscale_mamba.ops.schema`. Letters of the einsum strings: b batch, c chunk, l and s positions inside a chunk,
z chunk boundary, h head, p channel of a head, n state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba.ops.reference import split_last, value_of


def segment_sums(x: Tensor) -> Tensor:
    """(..., T) -> (..., T, T): entry (i, j) is x[j + 1] + ... + x[i], minus infinity above the diagonal."""
    length = x.shape[-1]
    ones = torch.ones(length, length, dtype=torch.bool, device=x.device)
    spread = x[..., None].expand(*x.shape, length).masked_fill(~ones.tril(-1), 0.0)
    return spread.cumsum(dim=-2).masked_fill(~ones.tril(), -torch.inf)


def chunked_ssd(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, initial: Tensor, chunk: int, operand: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The four steps of the listing.

    Args:
        x: delta' x, (b, L, h, p); L is a multiple of ``chunk``.
        decay: delta' A, (b, L, h).
        B: (b, L, h, n).
        C: (b, L, h, n).
        initial: (b, h, p, n).
        chunk: Tokens of a chunk.
        operand: Operands of the matrix products are rounded to this type; sums keep the type of ``x``.

    Returns:
        y (b, L, h, p) and the last state (b, h, p, n).
    """

    def rounded(t: Tensor) -> Tensor:
        return t.to(operand).to(t.dtype)

    x, decay, B, C = (
        t.reshape(t.shape[0], t.shape[1] // chunk, chunk, *t.shape[2:]) for t in (x, decay, B, C)
    )
    x, B, C = rounded(x), rounded(B), rounded(C)
    decay = decay.permute(0, 3, 1, 2)  # (b, h, c, l)
    total = decay.cumsum(dim=-1)
    # 1. Inside the chunks: the quadratic form, masked by the decay.
    scores = torch.einsum("bclhn,bcshn->bhcls", C, B) * torch.exp(segment_sums(decay))
    y_inside = torch.einsum("bhcls,bcshp->bclhp", rounded(scores), x)
    # 2. What each chunk adds to the state at its end.
    weighted = x * torch.exp(total[..., -1:] - total).permute(0, 2, 3, 1)[..., None]
    states = torch.einsum("bclhn,bclhp->bchpn", B, rounded(weighted))
    # 3. The recurrence between chunks.
    states = torch.cat([initial[:, None], states], dim=1)
    between = torch.exp(segment_sums(F.pad(total[..., -1], (1, 0))))
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)
    before, last = states[:, :-1], states[:, -1]
    # 4. What the state at a chunk's beginning gives to its outputs.
    y_before = torch.einsum("bclhn,bchpn->bclhp", C, rounded(before))
    y = y_inside + y_before * torch.exp(total).permute(0, 2, 3, 1)[..., None]
    return y.flatten(1, 2), last


def step_size(
    delta: Tensor, delta_code: Tensor | None, bias: Tensor | None, low: float, high: float
) -> Tensor:
    """delta' = clamp(softplus(delta + bias), low, high), fp32."""
    value = value_of(delta, delta_code)
    return F.softplus(value if bias is None else value + bias).clamp(low, high)


def per_head(v: Tensor, code: Tensor | None, groups: int, heads: int) -> Tensor:
    """B or C (..., groups*N) -> its values for every head, fp32 (..., heads, N)."""
    return split_last(value_of(v, code), groups).repeat_interleave(heads // groups, dim=-2)


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
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_min: float,
    delta_max: float,
    groups: int,
    initial: Tensor | None,
    chunk: int,
    state_dtype: torch.dtype,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """SSD over a sequence of any length; returns y (B, L, H*P) and the last state (B, H, P, N)."""
    heads, length = A.shape[0], x.shape[1]
    value = split_last(value_of(x, x_code), heads)
    step = step_size(delta, delta_code, delta_bias, delta_min, delta_max)
    b, c = (per_head(v, code, groups, heads) for v, code in ((B, B_code), (C, C_code)))
    shape = (x.shape[0], heads, value.shape[-1], b.shape[-1])
    state = value.new_zeros(shape) if initial is None else initial.float()
    if not length:
        return value.flatten(-2).to(dtype), state.to(state_dtype, copy=True)
    chunk = min(chunk, length)
    rest = -length % chunk  # a step of size 0 changes nothing
    inputs, decay, b, c = (
        F.pad(t, (0, 0) * (t.dim() - 2) + (0, rest)) for t in (value * step[..., None], step * A, b, c)
    )
    y, last = chunked_ssd(inputs, decay, b, c, state, chunk, torch.float32)
    y = y[:, :length]
    if D is not None:
        y = y + D[:, None] * value
    return y.flatten(-2).to(dtype), last.to(state_dtype)


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
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_min: float,
    delta_max: float,
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """One token of :func:`ssd_scan` as a recurrence; state (B, H, P, N) is updated in place, y is of its fp32 value."""
    heads = A.shape[0]
    value = split_last(value_of(x, x_code), heads)
    step = step_size(delta, delta_code, delta_bias, delta_min, delta_max)
    b, c = (per_head(v, code, groups, heads) for v, code in ((B, B_code), (C, C_code)))
    h = state.float() * torch.exp(step * A)[..., None, None]
    h = h + (step[..., None] * value)[..., None] * b[..., None, :]
    state.copy_(h)
    y = torch.einsum("bhpn,bhn->bhp", h, c)
    if D is not None:
        y = y + D[:, None] * value
    return y.flatten(-2).to(dtype)
