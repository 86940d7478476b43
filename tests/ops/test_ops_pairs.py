"""Codes of two scales: the operators that write selectors and those that read them, in every implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import assert_as_good, integers, knee_rows, normals, strided, true_conv, true_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Range, SideData
from dualscale_mamba.formats.pair import TILE, PairCode, pair_code, pair_rows
from dualscale_mamba.ops import reference_pair

SHAPES = [(2, 70, 100), (1, 33, 64), (3, 1, 65), (1, 31, 7), (2, 5, 1), (1, 64, 200), (2, 0, 9), (0, 3, 9)]
# Room of the lists for a full tile: none (a mask), none at all, one, some, and more than any tile needs.
ROOMS: list[int | None] = [None, 0, 1, 96, TILE]


def made_code(
    capacity: int | None, groups: int = 1, *, inner: float = 1.5, device: torch.device | str = "cpu"
) -> PairCode:
    """Scales that differ by group, about 13 % outliers of normal values."""
    sizes = inner * (1 + 0.3 * torch.rand(groups, generator=torch.Generator().manual_seed(3)).double())
    return pair_code(pair_rows(Range(-sizes, sizes, 4 * sizes), 1.25), capacity).to(device)


def room_for(code: PairCode, shape: tuple[int, ...]) -> SideData:
    """Side data full of what must not be read."""
    side = code.side_data(*shape)
    for each in side:
        if each is not None:
            each.fill_(0x55)
    return side


def encoded(x: Tensor, code: PairCode, name: str) -> tuple[Tensor, SideData]:
    side = room_for(code, tuple(x.shape))
    with ops.implementation(name):
        return ops.encode_pair(x, code.rows, *side), side


def assert_same_side(one: SideData, other: SideData) -> None:
    """The mask, or counts, entries and the mask where a tile has too many."""
    assert one.mask is not None
    assert other.mask is not None
    if one.outliers is None or other.outliers is None:
        assert torch.equal(one.mask, other.mask)
        return
    capacity = one.outliers.shape[3] - 1
    count = one.outliers[..., :1]
    assert torch.equal(count, other.outliers[..., :1])
    used = torch.arange(capacity, device=count.device) < count
    first, second = (torch.where(used, each.outliers[..., 1:], 0) for each in (one, other))  # type: ignore[index]
    assert torch.equal(first, second)
    assert torch.equal(one.mask, other.mask), "what no list needs is left as it was"


def compare_all(x: Tensor, code: PairCode) -> None:
    """Encode and decode agree bitwise, and values are what a code of levels says."""
    results = [encoded(x, code, name) for name in ("compiled", "reference")]
    (codes, side), (expected, other) = results
    assert torch.equal(codes, expected)
    assert_same_side(side, other)
    for dtype in (torch.float32, torch.float16):
        values = [_decode(name, codes, code, side, dtype) for name in ("compiled", "reference")]
        assert torch.equal(*values)
    rounded = code.rounded(x.float())[1]
    assert torch.equal(_decode("compiled", codes, code, side, torch.float32), rounded)
    bits = reference_pair.read_selectors(side.mask, side.outliers, x.shape[2])  # type: ignore[arg-type]
    assert torch.equal(bits, torch.where(x.isnan(), 0.0, x.float()).abs() >= code.rows[:, 4])


def _decode(name: str, codes: Tensor, code: PairCode, side: SideData, dtype: torch.dtype) -> Tensor:
    assert side.mask is not None
    with ops.implementation(name):
        return ops.decode_pair(codes, code.rows, side.mask, side.outliers, dtype)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 2), length=st.integers(0, 70), channels=st.integers(1, 140),
    capacity=st.sampled_from(ROOMS), per_channel=st.booleans(), scale=st.floats(0.01, 3.0), seed=st.integers(0, 999),
)  # fmt: skip
def test_any_size(
    batch: int, length: int, channels: int, capacity: int | None, per_channel: bool, scale: float, seed: int
) -> None:
    x = scale * normals(batch, length, channels, seed=seed)
    compare_all(x, made_code(capacity, channels if per_channel else 1))


@pytest.mark.parametrize("capacity", ROOMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_implementation_agrees(
    shape: tuple[int, int, int], capacity: int | None, device: torch.device
) -> None:
    for groups in {1, shape[2]}:
        code = made_code(capacity, groups, device=device)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = normals(*shape, dtype=dtype, device=device)
            compare_all(x, code)
            compare_all(strided(x), code)


@pytest.mark.parametrize("capacity", ROOMS)
def test_odd_channels(capacity: int | None, device: torch.device) -> None:
    """Constant, all zero, a single spike, all outliers, and values that are no numbers."""
    code = made_code(capacity, device=device)
    x = torch.zeros(1, 40, 72, device=device)
    x[..., 1], x[..., 2], x[..., 3] = 0.7, 99.0, -99.0
    x[0, 33, 4] = 5.0
    x[0, :3, 5] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=device)
    limit = code.rows[0, 4]
    x[0, :3, 6] = torch.stack([limit, -limit, torch.nextafter(limit, limit * 0)])
    compare_all(x, code)
    compare_all(torch.full_like(x, 6.0), code)
    compare_all(torch.zeros_like(x), code)


def test_ties_go_to_the_outer_scale(device: torch.device) -> None:
    rows = torch.tensor([[1.0, 1.0, 8.0, 0.125, 131.5]], device=device)
    code = pair_code(rows)
    x = torch.tensor([127.0, 131.4, 131.5, -131.5, 140.0, 1e9, 0.5, -0.5], device=device)[None, None]
    codes, side = encoded(x, code, "compiled")
    assert codes.flatten().tolist() == [127, 127, 16, -16, 18, 127, 1, -1]
    expected = [127.0, 127.0, 128.0, -128.0, 144.0, 1016.0, 1.0, -1.0]
    assert _decode("compiled", codes, code, side, torch.float32).flatten().tolist() == expected


def scan_inputs(
    shape: tuple[int, int, int], states: int, coded: bool, code: PairCode, device: torch.device
) -> tuple[list[Any], SideData]:
    """All arguments of a scan up to `initial`, and the selectors of u."""
    batch, length, channels = shape

    def activation(last: int, seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor | None]:
        v = normals(batch, length, last, seed=seed, device=device) + shift
        site = knee_rows(seed=seed, device=device)
        return (ops.encode(v, site), site) if coded else (v, None)

    u, side = encoded(normals(*shape, seed=1, device=device), code, "reference")
    decay = -torch.exp(normals(channels, states, seed=11, device=device))
    skip, bias = normals(channels, seed=12, device=device), normals(channels, seed=13, device=device)
    initial = normals(batch, channels, states, seed=14, device=device)
    delta, z = activation(channels, 2, -2.0), activation(channels, 3)
    b, c = activation(states, 4), activation(states, 5)
    return [u, code.rows, *delta, decay, *b, *c, skip, *z, bias, initial], side


@pytest.mark.parametrize("capacity", ROOMS)
@pytest.mark.parametrize(
    ("shape", "states", "coded"),
    [
        ((2, 70, 64), 16, True), ((1, 33, 100), 16, True), ((3, 5, 7), 16, True), ((2, 1, 130), 16, True),
        ((2, 0, 9), 16, True), ((1, 40, 70), 4, True), ((2, 70, 129), 7, False), ((1, 65, 64), 64, True),
        ((2, 34, 20), 17, False), ((1, 45, 96), 16, False), ((1, 40, 40), 128, True), ((1, 40, 36), 200, False),
    ],
)  # fmt: skip
def test_scan_reads_what_was_encoded(
    shape: tuple[int, int, int], states: int, coded: bool, capacity: int | None, device: torch.device
) -> None:
    """As good as the reference, and that of the decoded values but for rounding; sequence and step."""
    for groups in {1, shape[2]}:
        code = made_code(capacity, groups, device=device)
        arguments, side = scan_inputs(shape, states, coded, code, device)
        values = _decode("reference", arguments[0], code, side, torch.float32)
        got = ops.selective_scan(*arguments, torch.float32, *side)
        decoded = [values, None, *arguments[2:]]
        with ops.implementation("reference"):
            reference = ops.selective_scan(*arguments, torch.float32, *side)
            for one, other in zip(reference, ops.selective_scan(*decoded), strict=True):
                assert torch.equal(one, other)
        true_y, true_state, terms = true_scan(*decoded)
        assert_as_good(got[0], reference[0], true_y, terms)
        assert_as_good(got[1], reference[1], true_state)


@pytest.mark.parametrize("capacity", ROOMS)
@pytest.mark.parametrize(("channels", "states"), [(64, 16), (130, 16), (7, 4), (70, 40)])
def test_step_reads_what_was_encoded(
    channels: int, states: int, capacity: int | None, device: torch.device
) -> None:
    for groups in {1, channels}:
        code = made_code(capacity, groups, device=device)
        arguments, side = scan_inputs((3, 1, channels), states, True, code, device)
        values = _decode("reference", arguments[0], code, side, torch.float32)
        step = [v[:, 0] if torch.is_tensor(v) and v.dim() == 3 else v for v in arguments[:-1]]
        states_of = [arguments[-1].clone() for _ in range(3)]
        y = ops.selective_state_update(states_of[0], *step, torch.float32, *side)
        with ops.implementation("reference"):
            expected = ops.selective_state_update(states_of[1], *step, torch.float32, *side)
            again = ops.selective_state_update(states_of[2], values[:, 0], None, *step[2:])
        assert torch.equal(expected, again)
        torch.testing.assert_close(y, expected, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(states_of[0], states_of[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("capacity", ROOMS)
@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 70, 64), (1, 33, 100), (3, 9, 7), (2, 1, 520), (1, 130, 128), (2, 3, 72)]
)
def test_convolution_writes_both(
    shape: tuple[int, int, int], coded: bool, capacity: int | None, device: torch.device
) -> None:
    """Values within half a step of fp64, selectors that hold what the codes need, and steps that go on bit by bit."""
    batch, length, channels = shape
    weight, bias = normals(channels, 4, seed=6, device=device), normals(channels, seed=7, device=device)
    x_code = knee_rows(device=device) if coded else None
    x = integers(*shape, device=device) if coded else normals(*shape, device=device)
    for groups in {1, channels}:
        code = made_code(capacity, groups, inner=2.0, device=device)
        side = room_for(code, shape)
        codes = ops.causal_conv1d_encode(x, x_code, weight, bias, None, code.rows, torch.float32, *side)
        truth = true_conv(x, x_code, weight, bias, None)
        values = _decode("reference", codes, code, side, torch.float32).double()
        inner, outer = code.rows[:, 0].double(), code.rows[:, 2].double()
        step = torch.where(truth.abs() < 127 * inner, inner, outer)
        inside = truth.abs() < 127 * outer
        assert ((values - truth).abs() <= 0.505 * step + 1e-4 * truth.abs()).logical_or(~inside).all()
        state = torch.zeros(batch, 3, channels, dtype=x.dtype, device=device)
        if x_code is not None:
            state = ops.encode(state.float(), x_code)
        with_state = ops.causal_conv1d_encode(
            x, x_code, weight, bias, state.clone(), code.rows, torch.float32, *room_for(code, shape)
        )
        for t in range(min(length, 6)):
            own = room_for(code, (batch, 1, channels))
            token = ops.causal_conv1d_update(
                x[:, t], x_code, state, weight, bias, code.rows, torch.float32, *own
            )
            assert torch.equal(token, with_state[:, t])
            one = _decode("compiled", token[:, None], code, own, torch.float32)
            if t >= 3 or not coded:
                assert torch.equal(one[:, 0], values[:, t].float())


def test_results_do_not_depend_on_the_room(device: torch.device) -> None:
    """A mask, lists that are full and lists that are not say the same, bit by bit."""
    shape, results = (2, 70, 100), []
    weight, x = normals(100, 4, seed=6, device=device), normals(*shape, device=device)
    for capacity in ROOMS:
        code = made_code(capacity, inner=0.4, device=device)
        side = room_for(code, shape)
        codes = ops.causal_conv1d_encode(x, None, weight, None, None, code.rows, torch.float32, *side)
        arguments, _ = scan_inputs(shape, 16, True, code, device)
        y, last = ops.selective_scan(codes, *arguments[1:], torch.float32, *side)
        results.append((codes, _decode("compiled", codes, code, side, torch.float32), y, last))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_refusals(device: torch.device) -> None:
    x, code = normals(2, 5, 9, device=device), made_code(4, device=device)
    mask, outliers = code.side_data(2, 5, 9)
    assert mask is not None
    assert outliers is not None
    for arguments, message in (
        ((x, knee_rows(device=device), mask), r"encode_pair: code has shape \(1, 8\), allowed is 5 columns"),
        ((x, code.rows, mask[:1]), r"encode_pair: mask has shape \(1, 5, 2\), allowed is shape \(2, 5, 2\)"),
        ((x, code.rows, mask.float()), r"encode_pair: mask is float32, allowed is uint8"),
        ((x, code.rows, mask, outliers[:, :0]), r"encode_pair: outliers has shape \(2, 0, 1, 2\)"),
        ((x, code.rows, mask, outliers.int()), r"encode_pair: outliers is int32, allowed is int16"),
        ((x[0], code.rows, mask), r"encode_pair: x has shape \(5, 9\), allowed is 3 dimensions"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.encode_pair(*arguments)
    weight = normals(9, 4, device=device)
    with pytest.raises(RuntimeError, match=r"causal_conv1d_encode: mask is missing"):
        ops.causal_conv1d_encode(x, None, weight, None, None, code.rows)
    with pytest.raises(RuntimeError, match=r"causal_conv1d_encode: mask is given, allowed is none"):
        ops.causal_conv1d_encode(x, None, weight, None, None, knee_rows(device=device), mask=mask)
    with pytest.raises(RuntimeError, match=r"causal_conv1d_update: outliers has shape"):
        ops.causal_conv1d_update(
            x[:, 0], None, x[:, :3].clone(), weight, None, code.rows, torch.float32, mask[:, :1].clone(),
            outliers.expand(2, 2, 1, 2).contiguous(),
        )  # fmt: skip
    arguments, side = scan_inputs((2, 5, 9), 16, True, code, device)
    with pytest.raises(RuntimeError, match=r"selective_scan: u_mask is missing"):
        ops.selective_scan(*arguments)
    arguments[1] = knee_rows(device=device)
    with pytest.raises(RuntimeError, match=r"selective_scan: u_mask is given, allowed is none"):
        ops.selective_scan(*arguments, torch.float32, *side)
