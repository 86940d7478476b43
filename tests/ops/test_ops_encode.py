"""encode and decode agree with the reference bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from cases import FLOATS, codes_of, integers, knee_rows, normals, strided, table_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba import ops
from dualscale_mamba.formats.base import knee_code, table_code
from dualscale_mamba.ops import reference

MANY = 10_000_000
SPECIAL = [
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1.1754944e-38,
    3.4e38,
    -3.4e38,
    0.49999997,
    0.5,
    -0.5,
]


def ties(code: torch.Tensor) -> torch.Tensor:
    """Values where a code changes, and their neighbours."""
    levels = torch.unique(
        reference.decode(torch.arange(-128, 128, dtype=torch.int8)[:, None], code[:1], torch.float32)
    )
    middle = (levels[1:] + levels[:-1]) / 2
    thresholds = code[0, 256:-1] if code.shape[1] == 512 else middle
    points = torch.cat([levels, middle, thresholds[thresholds.isfinite()]])
    infinity = torch.full_like(points, math.inf)
    return torch.cat([points, torch.nextafter(points, infinity), torch.nextafter(points, -infinity)])


def assert_same(x: torch.Tensor, code: torch.Tensor, device: torch.device) -> None:
    got = ops.encode(x.to(device), code.to(device)).cpu()
    assert torch.equal(got, reference.encode(x, code))


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(1e-6, 1e3),
    zero=st.integers(-128, 127),
    knee=st.integers(-200, 200),
    ratio=st.floats(1.0, 4096.0),
    values=st.lists(st.floats(width=32), max_size=40),
)
def test_any_knee_code(scale: float, zero: int, knee: int, ratio: float, values: list[float]) -> None:
    knee = max(knee, zero)  # zero must be representable, so it lies in the fine part
    code = knee_code(*(torch.tensor([v], dtype=torch.float64) for v in (scale, zero, knee, ratio))).rows
    x = torch.cat([torch.tensor(values + SPECIAL), ties(code)])[:, None]
    assert_same(x, code, torch.device("cpu"))


@settings(max_examples=40, deadline=None)
@given(levels=st.lists(st.floats(-1e4, 1e4), max_size=255), values=st.lists(st.floats(width=32), max_size=40))
def test_any_table_code(levels: list[float], values: list[float]) -> None:
    code = table_code(torch.tensor([sorted([*levels, 0.0])], dtype=torch.float64)).rows
    assert_same(torch.cat([torch.tensor(values + SPECIAL), ties(code)])[:, None], code, torch.device("cpu"))


@pytest.mark.parametrize("make", [knee_rows, table_rows])
def test_ten_million_values(make: type, device: torch.device) -> None:
    code = make(seed=3)
    x = normals(MANY, seed=1) * torch.exp(3 * normals(MANY, seed=2))
    points = torch.cat([torch.tensor(SPECIAL), ties(code)])
    x[: points.numel()] = points
    assert_same(x.reshape(-1, 1000), code, device)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(0, 5), (1,), (3, 1), (7, 33), (2, 3, 512), (2, 700)])
def test_shapes_types_strides(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    for code in codes_of(shape[-1], seed=5):
        x = normals(*shape, seed=4, dtype=dtype)
        assert_same(x, code, device)
        q = reference.encode(x, code).contiguous()
        for given_x, given_q in ((x, q), (strided(x), strided(q))):
            assert torch.equal(ops.encode(given_x.to(device), code.to(device)).cpu(), q)
            back = ops.decode(given_q.to(device), code.to(device), dtype).cpu()
            assert torch.equal(back, reference.decode(q, code, dtype))


def test_every_code_decodes_bitwise(device: torch.device) -> None:
    q = torch.arange(-128, 128, dtype=torch.int8)[:, None].expand(256, 32).contiguous()
    for code in codes_of(32, seed=9):
        for dtype in FLOATS:
            got = ops.decode(q.to(device), code.to(device), dtype).cpu()
            assert torch.equal(got, reference.decode(q, code, dtype))


def test_control_is_single(device: torch.device) -> None:
    """With ratio 1 the place of the knee changes nothing."""
    x, q = (5 * normals(64, 100, seed=2)).to(device), integers(64, 100, device=device)
    single = knee_rows(ratio=1.0, device=device)
    for knee in (-128.0, -3.0, 60.0, 127.0):
        control = single.clone()
        control[:, 3] = knee
        assert torch.equal(ops.encode(x, control), ops.encode(x, single))
        assert torch.equal(ops.decode(q, control), ops.decode(q, single))


def test_refusals(device: torch.device) -> None:
    x, code = torch.zeros(4, 6, device=device), knee_rows(device=device)
    with pytest.raises(RuntimeError, match=r"encode: x is int32, allowed is float32, float16 or bfloat16"):
        ops.encode(x.int(), code)
    with pytest.raises(RuntimeError, match=r"encode: code has shape \(3, 8\), allowed is .*1 or 6"):
        ops.encode(x, code.expand(3, 8).contiguous())
    with pytest.raises(RuntimeError, match=r"encode: code is float64, allowed is float32"):
        ops.encode(x, code.double())
    with pytest.raises(RuntimeError, match=r"encode: x has last stride 6, allowed is 1"):
        ops.encode(x.T, code)
    with pytest.raises(RuntimeError, match=r"decode: codes is float32, allowed is int8"):
        ops.decode(x, code)
    with pytest.raises(RuntimeError, match=r"decode: dtype is int32"):
        ops.decode(x.to(torch.int8), code, torch.int32)


@settings(max_examples=30, deadline=None)
@given(
    runs=st.lists(st.integers(1, 200), min_size=1, max_size=12), family=st.sampled_from(["knee", "table"]),
    rows=st.integers(1, 3), seed=st.integers(0, 1000),
)  # fmt: skip
def test_neighbouring_channels_with_one_code(runs: list[int], family: str, rows: int, seed: int) -> None:
    """Runs of any length, shorter and longer than a register and than a block of channels."""
    make = knee_rows if family == "knee" else table_rows
    code = make(len(runs), seed=seed).repeat_interleave(torch.tensor(runs), dim=0)
    x = normals(rows, code.shape[0], seed=seed) * 4
    x[0, :: max(1, code.shape[0] // 7)] = math.nan
    assert_same(x, code, torch.device("cpu"))
