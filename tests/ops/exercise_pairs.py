"""Cases of exercise_kernels.py: codes with selectors beside them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from exercise_inputs import FLOATS, Case, Inputs
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.pair import TILE, PairCode, pair_code, pair_rows

# Room of the lists of a full tile: a mask, none, little, and enough.
ROOMS = (None, 0, 40, TILE)
SHAPES = ((2, 37, 24), (1, 70, 13), (2, 33, 64), (1, 64, 130), (3, 1, 72), (2, 0, 8), (5, 9, 264))


def code_of(make: Inputs, capacity: int | None, groups: int) -> PairCode:
    sizes = 0.5 + torch.rand(groups, generator=make.generator).double()
    return pair_code(pair_rows(Range(-sizes, sizes, 6 * sizes), 1.25), capacity).to(make.device)


def encoded(x: Tensor, code: PairCode, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes, and the values that they and their selectors stand for."""
    mask, outliers = code.side_data(*x.shape)
    assert mask is not None
    codes = ops.encode_pair(x, code.rows, mask, outliers)
    return codes, ops.decode_pair(codes, code.rows, mask, outliers, dtype)


def convolved(
    x: Tensor, x_code: Tensor | None, weight: Tensor, state: Tensor | None, code: PairCode
) -> Tensor:
    """The values of a convolution's result."""
    mask, outliers = code.side_data(*x.shape)
    assert mask is not None
    side = (mask, outliers)
    codes = ops.causal_conv1d_encode(x, x_code, weight, None, state, code.rows, torch.float32, *side)
    return ops.decode_pair(codes, code.rows, mask, outliers, torch.float16)


def stepped(x: Tensor, x_code: Tensor | None, state: Tensor, weight: Tensor, code: PairCode) -> Tensor:
    """The same of one token."""
    mask, outliers = code.side_data(x.shape[0], 1, x.shape[1])
    assert mask is not None
    side = (mask, outliers)
    codes = ops.causal_conv1d_update(x, x_code, state, weight, None, code.rows, torch.float32, *side)
    return ops.decode_pair(codes[:, None], code.rows, mask, outliers, torch.float16)


def scanned(values: Tensor, code: PairCode, *rest: object) -> tuple[Tensor, Tensor]:
    """A scan of values that are encoded first."""
    mask, outliers = code.side_data(*values.shape)
    assert mask is not None
    u = ops.encode_pair(values, code.rows, mask, outliers)
    return ops.selective_scan(u, code.rows, *rest, u_mask=mask, u_outliers=outliers)  # type: ignore[arg-type]


def updated(state: Tensor, values: Tensor, code: PairCode, *rest: object) -> Tensor:
    """The same of one token."""
    mask, outliers = code.side_data(values.shape[0], 1, values.shape[1])
    assert mask is not None
    u = ops.encode_pair(values[:, None], code.rows, mask, outliers)
    return ops.selective_state_update(state, u[:, 0], code.rows, *rest, u_mask=mask, u_outliers=outliers)  # type: ignore[arg-type]


def recurrence(make: Inputs, shape: tuple[int, ...], channels: int, states: int, coded: bool) -> list[object]:
    """delta up to delta_bias."""
    code = make.knee(ratio=2.0) if coded else None
    both = (make.codes if coded else make.floats)(*shape, 2 * states)
    wide = (make.codes if coded else make.floats)(*shape, 2 * channels)
    rate = -torch.rand(channels, states, generator=make.generator).to(make.device) * 4 - 0.1
    return [
        wide[..., :channels], code, rate, both[..., :states], code, both[..., states:], code,
        make.floats(channels), wide[..., channels:], code, make.floats(channels) - 2,
    ]  # fmt: skip


def pairs(make: Inputs) -> Iterator[Case]:
    for shape in SHAPES:
        batch, length, channels = shape
        for capacity in ROOMS:
            for groups in {1, channels}:
                code = code_of(make, capacity, groups)
                for dtype in FLOATS:
                    x = make.floats(*shape, dtype=dtype)
                    x.view(-1)[:1] = torch.nan
                    yield "encode pair", encoded, (x, code, dtype)
                for x_code in (make.knee(scale=0.02), None):
                    kind = make.floats if x_code is None else make.codes
                    x, state = kind(batch, length, 2 * channels)[..., :channels], kind(batch, 3, channels)
                    weight = make.floats(channels, 4)
                    if length:
                        yield "conv pair", convolved, (x, x_code, weight, state, code)
                        yield "conv pair", convolved, (x[..., : channels // 2 + 1], x_code, weight[: channels // 2 + 1], None, code_of(make, capacity, 1))  # fmt: skip  # noqa: E501
                    token = (kind(batch, channels), x_code, state.clone(), weight, code)
                    yield "conv update pair", stepped, token
                values = make.floats(*shape)
                for states, coded in ((16, True), (16, False), (3, True), (40, True), (130, True)):
                    rest = recurrence(make, shape[:2], channels, states, coded)
                    yield "scan pair", scanned, (values, code, *rest, None, torch.float32)
                    rest = recurrence(make, shape[:1], channels, states, coded)
                    state = make.floats(batch, channels, states)
                    token = (state, make.floats(batch, channels), code, *rest, torch.float32)
                    yield "state update pair", updated, token
    # Every number of states a lane, and a sequence that is worth a table.
    for batch, channels, length in ((8, 16 * 260, 3), (8, 32 * 140, 33), (8, 64, 65), (1, 20, 1030)):
        for capacity in (None, 40):
            code = code_of(make, capacity, 1)
            rest = recurrence(make, (batch, length), channels, 16, True)
            values = make.floats(batch, length, channels)
            yield "scan pair wide", scanned, (values, code, *rest, None, torch.float16)
