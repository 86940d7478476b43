"""Linear layers of every width for exercise_kernels.py: few cases, every kind of input, code and edge.

Each case comes a second time with the promise that its weights may be read ahead, which holds: no kernel writes them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from exercise_inputs import FLOATS, Case, Inputs
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.ops.reference_linear import decode_int4

# Rows, inputs, outputs; with 4 bits the group size too.
SIZES = (
    (1, 64, 24),
    (3, 48, 7),
    (9, 33, 5),
    (17, 64, 32),
    (40, 72, 40),
    (33, 30, 9),
    (20, 128, 16),
    (16, 528, 1000),  # in parts of the depth, beside neighbours, ...
    (64, 2064, 640),
    (65, 1040, 264),
    (100, 144, 403),
    (128, 528, 96),
    (200, 64, 5120),
    (300, 144, 1000),
    (1100, 64, 1608),  # ... and in tiles of many rows, several for a block
    (2, 7216, 40),  # sixteen rows of weights are more than a block of few rows holds
    (8, 14368, 16),  # and rows of values do not fit beside them
)
INT4_SIZES = (
    (1, 64, 24, 32),
    (2, 160, 7, 128),
    (5, 96, 8, 64),
    (8, 520, 16, 256),
    (9, 32, 5, 32),
    (17, 64, 32, 32),
    (33, 160, 192, 64),
    (65, 96, 200, 256),
    (129, 264, 40, 128),
    (3, 14368, 24, 128),
    (8, 14368, 16, 128),
)


def linear(make: Inputs) -> Iterator[Case]:
    """All four operators."""
    for count, depth, columns in SIZES:
        name = f"linear {count}x{depth}x{columns}"
        weight, scale = make.codes(columns, depth), make.floats(columns) * 0.01
        total = weight.int().sum(dim=1, dtype=torch.int32)
        for first, last in on_codes(make, count, depth, columns):
            yield f"{name} w8a8", ops.linear_w8a8, (*first, weight, scale, total, *last)
            yield f"{name} w8a8, read ahead", ops.linear_w8a8, (*first, weight, scale, total, *last, True)
        for x, last in on_values(make, count, depth, columns):
            yield f"{name} w8a16", ops.linear_w8a16, (x, weight, scale, *last)
            yield f"{name} w8a16, read ahead", ops.linear_w8a16, (x, weight, scale, *last, True)
    for count, depth, columns, group_size in INT4_SIZES:
        name = f"linear {count}x{depth}x{columns} in groups of {group_size}"
        weight, scale, total = int4_weights(make, depth, columns, group_size)
        weights = (weight, scale, total, group_size)
        for first, last in on_codes(make, count, depth, columns):
            yield f"{name} w4a8", ops.linear_w4a8, (*first, *weights, *last)
            yield f"{name} w4a8, read ahead", ops.linear_w4a8, (*first, *weights, *last, True)
        for x, last in on_values(make, count, depth, columns):
            yield f"{name} w4a16", ops.linear_w4a16, (x, weight, scale, group_size, *last)
            yield f"{name} w4a16, read ahead", ops.linear_w4a16, (x, weight, scale, group_size, *last, True)


def int4_weights(make: Inputs, depth: int, columns: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, scales and sums of rows; an odd number of columns begins behind an aligned address."""
    odd = columns % 2
    room = make.codes(columns * depth // 2 + odd).view(torch.uint8)
    packed = room[odd:].view(columns, depth // 2)
    scale = make.floats(columns, -(-depth // group_size), dtype=torch.float16, scale=0.1)
    total = decode_int4(packed, scale, group_size, torch.float64).sum(dim=1).float()
    return packed, scale, total


def on_codes(
    make: Inputs, count: int, depth: int, columns: int
) -> Iterator[tuple[tuple[object, ...], tuple[object, ...]]]:
    """x, x_code, knee, row_scale; bias, code, dtype. Rows are apart."""
    bias = make.floats(columns)
    for x_code, knee in (
        (make.knee(), True),
        (make.knee(knee=-40.0), True),
        (make.knee(ratio=1.0), False),
        (None, False),
    ):
        row_scale = make.floats(count).abs() * 0.01 if x_code is None else None
        for code in (None, make.knee(scale=0.3), make.knee(columns, scale=0.3)):
            x = make.codes(count, depth + 16)[:, :depth]
            yield (x, x_code, knee, row_scale), (bias, code, torch.float32)


def on_values(
    make: Inputs, count: int, depth: int, columns: int
) -> Iterator[tuple[Tensor, tuple[object, ...]]]:
    """x; bias, code, dtype. Rows are apart."""
    for dtype, bias, code in zip(
        FLOATS,
        (make.floats(columns), None, make.floats(columns)),
        (None, make.knee(scale=0.3), make.knee(columns, scale=0.3)),
        strict=True,
    ):
        for end in (code, None):
            yield make.floats(count, depth + 16, dtype=dtype)[:, :depth], (bias, end, dtype)
