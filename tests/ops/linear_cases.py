"""Linear layers of every width: random weights, one way to call all four operators, and the true result.

Bounds. Operators on codes: integer sums are exact, so what remains is a few fp32 roundings of sums of groups, which
stand in the size of the result and of what the zero point takes off, and one rounding to the result's type. Operators
on values: twice the error of PyTorch's own product of the same inputs in the same type with decoded weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cases import assert_as_good, integers, normals, value
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight

# Rows, inputs, outputs, group size: every side of a tile, a warp and a vector, and no side at all.
SHAPES = [
    ((1,), 8, 1, 1024),
    ((1, 1), 32, 8, 32),
    ((0,), 160, 9, 32),
    ((2,), 160, 7, 128),
    ((2, 0), 32, 8, 32),
    ((3,), 512, 192, 128),
    ((4,), 64, 13, 64),
    ((5,), 2560, 200, 128),
    ((1,), 160, 5120, 32),
    ((6,), 104, 31, 64),
    ((7,), 264, 40, 256),
    ((8,), 160, 192, 64),
    ((9,), 96, 33, 32),
    ((16,), 2560, 96, 256),
    ((17,), 64, 200, 32),
    ((5, 7), 512, 130, 256),
    ((33,), 160, 192, 128),
    ((64,), 512, 65, 128),
    ((65,), 96, 8, 64),
    ((128,), 512, 192, 64),
    ((129,), 64, 5120, 32),
    ((257,), 160, 200, 32),
    ((300,), 2560, 40, 128),
    ((2,), 7216, 40, 128),  # sixteen rows of weights are more than a block of few rows holds, of int8 ...
    ((3,), 14368, 24, 128),  # ... and of int4
    ((8,), 14368, 16, 128),  # rows of values that do not fit beside them
]
# Of weights with a scale a column only: nothing need be even.
ODD_SHAPES = [
    ((1,), 16, 8),
    ((1, 1), 33, 5),
    ((3,), 100, 7),
    ((64,), 769, 65),
    ((4,), 1, 1),
    ((40,), 2567, 24),
    ((17100,), 64, 192),  # a block's second tile begins where the first ended
]
# The same, of more than eight rows: every way to cut such a product on a Hopper GPU (csrc/cuda/some_grid.h), by width
# of a block, parts of the depth, neighbours that share x, blocks with one tile and with several.
CUT_SHAPES = [
    ((9,), 528, 1000),
    ((10,), 2560, 40),
    ((16,), 2560, 2000),
    ((3, 11), 2560, 640),
    ((40,), 64, 20000),
    ((64,), 2064, 640),
    ((65,), 1040, 2000),
    ((100,), 1040, 403),
    ((128,), 528, 640),
    ((200,), 64, 5120),
    ((256,), 272, 264),
    ((300,), 64, 5001),
    ((1100,), 160, 1608),
]
TERMS = 1e-6  # a dozen fp32 roundings


@dataclass(frozen=True)
class Weights:
    """Weights of a linear layer as an operator takes them, and their values."""

    codes: Tensor
    scale: Tensor
    total: Tensor
    group_size: int | None
    values: Tensor  # fp64 (N, K)

    @classmethod
    def of(cls, made: QuantizedWeight) -> Weights:
        """What a rounding made."""
        grid, scale = made.grid, made.scale.double()
        wide = scale[:, None] if grid.group_size is None else scale.repeat_interleave(grid.group_size, dim=1)
        values = made.codes.double() * wide[:, : made.codes.shape[1]]
        return cls(*made.stored(), grid.group_size, values)

    @property
    def bits(self) -> int:
        """Of a code."""
        return 8 if self.group_size is None else 4

    def unaligned(self) -> Weights:
        """The same at addresses that nothing divides."""
        moved = [shifted(each) for each in (self.codes, self.scale, self.total)]
        return Weights(*moved, self.group_size, self.values)


def shifted(x: Tensor) -> Tensor:
    """The same values, contiguous, one element behind an aligned address."""
    room = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    moved = room[1:].view(x.shape)
    return moved.copy_(x)


def int8_weights(inputs: int, outputs: int, device: torch.device, seed: int = 5) -> Weights:
    """Codes of all values; scales of either sign."""
    codes = integers(outputs, inputs, seed=seed, device=device)
    scale = 0.001 + 0.01 * normals(outputs, seed=seed + 1, device=device)
    return Weights.of(QuantizedWeight(codes, scale, Grid(8)))


def int4_weights(inputs: int, outputs: int, group_size: int, device: torch.device, seed: int = 5) -> Weights:
    """Codes of all values; scales of either sign, of very different sizes from group to group."""
    codes = integers(outputs, inputs, seed=seed, device=device) >> 4
    sizes = 0.1 * torch.exp(normals(outputs, -(-inputs // group_size), seed=seed + 1, device=device))
    scale = torch.where(normals(*sizes.shape, seed=seed + 2, device=device) > 0, sizes, -sizes).half()
    return Weights.of(QuantizedWeight(codes, scale, Grid(4, group_size)))


def on_codes(
    x: Tensor,
    weights: Weights,
    x_code: Tensor | None = None,
    knee: bool = False,
    row_scale: Tensor | None = None,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """linear_w8a8 or linear_w4a8."""
    first = (x, x_code, knee, row_scale, weights.codes, weights.scale, weights.total)
    if weights.group_size is None:
        return ops.linear_w8a8(*first, bias, code, dtype)
    return ops.linear_w4a8(*first, weights.group_size, bias, code, dtype)


def on_values(
    x: Tensor,
    weights: Weights,
    bias: Tensor | None = None,
    code: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """linear_w8a16 or linear_w4a16."""
    if weights.group_size is None:
        return ops.linear_w8a16(x, weights.codes, weights.scale, bias, code, dtype)
    return ops.linear_w4a16(x, weights.codes, weights.scale, weights.group_size, bias, code, dtype)


def by_reference(function: Any, *arguments: Any) -> Tensor:
    """The same call of the PyTorch reference."""
    with ops.implementation("reference"):
        result: Tensor = function(*arguments)
    return result


def assert_true_sums(
    got: Tensor,
    x: Tensor,
    weights: Weights,
    x_code: Tensor | None,
    row_scale: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Each element of a floating result of an operator on codes is the true sum within this module's bound."""
    steps = (x if x_code is None else value(x, x_code)).double().reshape(-1, x.shape[-1])
    truth = steps @ weights.values.T
    code_scale = 1.0 if x_code is None else float(x_code[0, 0])
    taken_off = (256 * code_scale * weights.values.sum(dim=1).abs()).expand_as(truth)
    if row_scale is not None:
        truth, taken_off = truth * row_scale[:, None].double(), taken_off * row_scale[:, None].double()
    if bias is not None:
        truth = truth + bias.double()
    assert got.shape == (*x.shape[:-1], weights.values.shape[0])
    if not truth.numel():
        return
    terms = truth.abs().max() + taken_off.max()
    allowed = torch.finfo(got.dtype).eps * truth.abs() + TERMS * terms
    error = (got.double().reshape(truth.shape) - truth).abs()
    worst = int((error / allowed).argmax())
    assert (error <= allowed).all(), f"element {worst}: error {error.flatten()[worst]:.3g}"


def assert_as_good_as_torch(got: Tensor, x: Tensor, weights: Weights, bias: Tensor | None) -> None:
    """A floating result of an operator on values against PyTorch's product in the type of x."""
    truth = x.double() @ weights.values.T
    terms = float((x.double().abs() @ weights.values.abs().T).max()) if truth.numel() else 0.0
    own = F.linear(x, weights.values.to(x.dtype), None if bias is None else bias.to(x.dtype))
    truth = truth if bias is None else truth + bias.double()
    assert_as_good(got, own.to(got.dtype), truth, terms, x.dtype)
