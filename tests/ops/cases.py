"""Inputs for the operators, their definition in fp64, and the bound that results must keep.

The bound: the largest error against fp64 is at most twice that of the PyTorch reference on the same inputs,
plus a floor of FLOOR[dtype] times the largest true value (or term, where terms cancel): the rounding to the
result's type, or some three fp32 units in the last place where the reference is exact by luck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba.formats.base import knee_code, table_code
from dualscale_mamba.ops import encode, reference_ssd

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FLOOR = {torch.float32: 4e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}
# The GPU's exponential instruction is good to two units in the last place, and a state remembers each of its errors.
CUDA_FLOOR = FLOOR | {torch.float32: 1e-6}

# What an activation is: of a floating-point type, or coded by this member of `codes_of`.
Kind = torch.dtype | int
KNEE, KNEE_ROWS, TABLE, TABLE_ROWS = range(4)
KINDS: tuple[Kind, ...] = (*FLOATS, KNEE, KNEE_ROWS, TABLE, TABLE_ROWS)


def knee_rows(
    groups: int = 1,
    *,
    seed: int = 0,
    ratio: float | None = None,
    scale: float = 0.03,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Rows of random knee codes (groups, 8); ``ratio`` 1 makes the knee do nothing."""
    random = torch.Generator().manual_seed(seed)
    uniform = torch.rand(4, groups, generator=random, dtype=torch.float64)
    scales = scale * (0.5 + uniform[0])
    zero = torch.round(-100 + 130 * uniform[1])
    knee = torch.round(zero + 1 + (126 - zero) * uniform[2])
    ratios = torch.full_like(scales, ratio) if ratio is not None else 1 + 30 * uniform[3]
    return knee_code(scales, zero, knee, ratios).rows.to(device)


def table_rows(
    groups: int = 1, *, seed: int = 0, levels: int = 256, device: torch.device | str = "cpu"
) -> Tensor:
    """Rows of random table codes (groups, 512), zero among the levels."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(groups, levels, generator=random, dtype=torch.float64)
    values[:, 0] = 0.0
    return table_code(values.sort(dim=1).values).rows.to(device)


def codes_of(channels: int, *, seed: int = 0, device: torch.device | str = "cpu") -> list[Tensor]:
    """Both families, one row and one row a channel."""
    return [make(n, seed=seed, device=device) for make in (knee_rows, table_rows) for n in (1, channels)]


def strided(x: Tensor) -> Tensor:
    """The same values between others: outer strides are not those of contiguous memory, the last one is 1."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), 77, dtype=x.dtype, device=x.device)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def integers(*shape: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Random int8 of all values."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=random, dtype=torch.int8).to(device)


def normals(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Random normal values."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random).to(device=device, dtype=dtype)


def value(v: Tensor, code: Tensor | None) -> Tensor:
    """What an activation stands for, in fp64."""
    if code is None:
        return v.double()
    if code.shape[1] == 8:
        scale, _, zero, knee, gain, _, _, _ = code.double().unbind(1)
        q = v.double()
        return scale * ((q - zero) + gain * (q - knee).clamp_min(0.0))
    levels = code[:, :256].double().expand(v.shape[-1], -1)
    return levels[torch.arange(v.shape[-1], device=v.device), v.long() + 128]


def true_conv(
    x: Tensor, x_code: Tensor | None, weight: Tensor, bias: Tensor | None, initial: Tensor | None
) -> Tensor:
    """Causal convolution, bias and SiLU in fp64, tap by tap."""
    width = weight.shape[1]
    empty = torch.zeros(x.shape[0], width - 1, x.shape[2], dtype=torch.float64, device=x.device)
    before = empty if initial is None else value(initial, x_code)
    inputs = torch.cat([before, value(x, x_code)], dim=1)
    length = x.shape[1]
    total = sum(
        (inputs[:, k : k + length] * weight[:, k].double() for k in range(width)),
        start=torch.zeros((), dtype=torch.float64, device=x.device),
    )
    return F.silu(total if bias is None else total + bias.double())


def true_scan(
    u: Tensor, u_code: Tensor | None, delta: Tensor, delta_code: Tensor | None, A: Tensor,
    B: Tensor, B_code: Tensor | None, C: Tensor, C_code: Tensor | None, D: Tensor | None,
    z: Tensor | None, z_code: Tensor | None, delta_bias: Tensor | None, initial: Tensor | None, *_: object,
) -> tuple[Tensor, Tensor, float]:  # fmt: skip
    """The recurrence in fp64: y, the last state, and the largest sum of magnitudes that became an element of y."""
    inputs, step = value(u, u_code), value(delta, delta_code)
    b, c = value(B, B_code), value(C, C_code)
    step = F.softplus(step if delta_bias is None else step + delta_bias.double())
    shape = (u.shape[0], *A.shape)
    state = torch.zeros(shape, dtype=torch.float64, device=u.device) if initial is None else initial.double()
    y = torch.zeros(u.shape, dtype=torch.float64, device=u.device)
    terms = torch.zeros_like(y)
    for t in range(u.shape[1]):
        state = (
            torch.exp(step[:, t, :, None] * A.double()) * state
            + (step[:, t] * inputs[:, t])[..., None] * b[:, t, None]
        )
        products = state * c[:, t, None]
        y[:, t], terms[:, t] = products.sum(dim=-1), products.abs().sum(dim=-1)
    y = y if D is None else y + D.double() * inputs
    gate = torch.ones_like(y) if z is None else F.silu(value(z, z_code))
    return y * gate, state, float((terms * gate).abs().amax()) if y.numel() else 0.0


def ssd_inputs(
    batch: int,
    length: int,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    states: int = 16,
    kinds: Sequence[Kind] = (torch.float32,) * 4,
    device: torch.device | str = "cpu",
) -> list[Any]:
    """All arguments of ssd_scan up to `initial`; `heads` and groups, `kinds` of x, delta, B and C."""
    count, groups = heads

    def activation(i: int, channels: int, shift: float = 0.0) -> tuple[Tensor, Tensor | None]:
        v, kind = normals(batch, length, channels, seed=i, device=device) + shift, kinds[i]
        if isinstance(kind, torch.dtype):
            return v.to(kind), None
        code = codes_of(channels, seed=i, device=device)[kind]
        return encode(v, code), code

    x, delta = activation(0, count * head_dim), activation(1, count, -2.0)
    b, c = activation(2, groups * states), activation(3, groups * states)
    decay, skip, bias = (normals(count, seed=seed, device=device) for seed in (11, 12, 13))
    initial = normals(batch, count, head_dim, states, seed=14, device=device)
    return [*x, *delta, -torch.exp(decay), *b, *c, skip, bias, 0.0, math.inf, groups, initial]


def true_ssd(
    x: Tensor, x_code: Tensor | None, delta: Tensor, delta_code: Tensor | None, A: Tensor,
    B: Tensor, B_code: Tensor | None, C: Tensor, C_code: Tensor | None, D: Tensor | None,
    delta_bias: Tensor | None, low: float, high: float, groups: int, initial: Tensor | None, *_: object,
) -> tuple[Tensor, Tensor, float]:  # fmt: skip
    """State space duality as a recurrence in fp64: y, the last state, and the largest sum of magnitudes of a y."""
    (batch, length), heads = x.shape[:2], A.shape[0]
    inputs, step = value(x, x_code).unflatten(-1, (heads, -1)), value(delta, delta_code)
    step = F.softplus(step if delta_bias is None else step + delta_bias.double()).clamp(low, high)
    b, c = (
        value(v, code).unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, dim=2)
        for v, code in ((B, B_code), (C, C_code))
    )
    decay = torch.exp(step * A.double())[..., None, None]
    skip = torch.zeros_like(A).double() if D is None else D.double()
    shape = (batch, heads, inputs.shape[-1], b.shape[-1])
    state = torch.zeros(shape, dtype=torch.float64, device=x.device) if initial is None else initial.double()
    y = skip[:, None] * inputs
    terms = y.abs()
    for t in range(length):
        added = (step[:, t, :, None] * inputs[:, t])[..., None] * b[:, t, :, None]
        state = decay[:, t] * state + added
        y[:, t] += torch.einsum("bhpn,bhn->bhp", state, c[:, t])
        terms[:, t] += torch.einsum("bhpn,bhn->bhp", state.abs(), c[:, t].abs())
    return y.flatten(2), state, float(terms.max()) if y.numel() else 0.0


def low_precision_ssd(arguments: Sequence[Any], state_dtype: torch.dtype, dtype: torch.dtype) -> Any:
    """The reference with the operands of its matrix products rounded to ``dtype``: what CUDA does in 16 bits."""
    chunked = reference_ssd.chunked_ssd

    def rounded(*given: Any) -> tuple[Tensor, Tensor]:
        return chunked(*given[:-1], dtype)

    with patch.object(reference_ssd, "chunked_ssd", rounded):
        return reference_ssd.ssd_scan(*arguments, 64, state_dtype, dtype)


def assert_as_good(
    got: Tensor, reference: Tensor, truth: Tensor, terms: float = 0.0, operands: torch.dtype = torch.float32
) -> None:
    """The bound of this module's docstring; infinities and NaN must agree.

    Where operands of products were rounded to a half type, its floor holds: in short sums a single term decides about
    the largest error, and in which order its factors are rounded is chance.
    """
    assert got.shape == truth.shape
    assert got.dtype == reference.dtype
    if not truth.numel():
        return
    error, allowed = (got.double() - truth).abs().max(), 2 * (reference.double() - truth).abs().max()
    floors = CUDA_FLOOR if got.is_cuda else FLOOR
    floor = max(floors[got.dtype], floors[operands])
    allowed = allowed + floor * truth.abs().max().clamp_min(terms if got.dtype == torch.float32 else 0)
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def assert_codes_close(got: Tensor, reference: Tensor, share: float = 0.01) -> None:
    """Equal codes, but for a few that a last bit before rounding moved by one."""
    assert got.dtype == reference.dtype == torch.int8
    difference = (got.int() - reference.int()).abs()
    assert not difference.numel() or (difference.max() <= 1 and (difference > 0).float().mean() <= share)


def choices(*lists: Sequence[object]) -> list[tuple[object, ...]]:
    """Combine lists so that each value of each occurs, without their product."""
    longest = max(map(len, lists))
    return [tuple(values[i % len(values)] for values in lists) for i in range(longest)]
