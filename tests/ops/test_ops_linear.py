"""Linear layers with int8 inputs (w8a8, w4a8): integer sums are exact, what follows is a few roundings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FLOATS, assert_codes_close, integers, knee_rows, normals, strided
from linear_cases import (
    CUT_SHAPES,
    ODD_SHAPES,
    SHAPES,
    Weights,
    assert_true_sums,
    by_reference,
    int4_weights,
    int8_weights,
    on_codes,
    shifted,
)

from dualscale_mamba import ops

Lead = tuple[int, ...]
CASES = [
    *((lead, inputs, outputs, None) for lead, inputs, outputs in (*ODD_SHAPES, *CUT_SHAPES)),
    *((lead, inputs, outputs, None) for lead, inputs, outputs, _ in SHAPES),
    *SHAPES,
]


def weights_of(inputs: int, outputs: int, group_size: int | None, device: torch.device) -> Weights:
    if group_size is None:
        return int8_weights(inputs, outputs, device)
    return int4_weights(inputs, outputs, group_size, device)


@pytest.mark.parametrize(("lead", "inputs", "outputs", "group_size"), CASES)
def test_floating_results(
    lead: Lead, inputs: int, outputs: int, group_size: int | None, device: torch.device
) -> None:
    weights = weights_of(inputs, outputs, group_size, device)
    x, bias = integers(*lead, inputs, seed=1, device=device), normals(outputs, seed=2, device=device)
    rows = normals(x.numel() // inputs, seed=3, device=device).abs()
    codes = (
        (None, False, rows, None),
        (knee_rows(seed=2, device=device), True, None, bias),
        (knee_rows(seed=3, ratio=1.0, device=device), False, rows, bias),
    )
    for (x_code, knee, row_scale, offset), dtype in zip(codes, FLOATS, strict=True):
        for given, held in ((x, weights), (strided(x), weights), (shifted(x), weights.unaligned())):
            got = on_codes(given, held, x_code, knee, row_scale, offset, None, dtype)
            assert got.dtype == dtype
            assert_true_sums(got, x, weights, x_code, row_scale, offset)


@pytest.mark.parametrize(("lead", "inputs", "outputs", "group_size"), CASES)
def test_weights_that_are_constant_may_be_read_ahead(
    lead: Lead, inputs: int, outputs: int, group_size: int | None, device: torch.device
) -> None:
    weights = weights_of(inputs, outputs, group_size, device)
    whole = (weights.codes, weights.scale, weights.total)
    size = () if group_size is None else (group_size,)
    codes, values = integers(*lead, inputs, seed=1, device=device), normals(*lead, inputs, device=device)
    eight, sixteen = (
        (ops.linear_w8a8, ops.linear_w8a16) if group_size is None else (ops.linear_w4a8, ops.linear_w4a16)
    )
    got = []
    for constant in (False, True):
        x = codes + 0  # a kernel just before, that writes the input
        end = (*size, None, None, torch.float32, constant)
        got.append(eight(x, knee_rows(device=device), True, None, *whole, *end))
        got.append(sixteen((values + 0).half(), *whole[:2], *end))
    assert torch.equal(got[0], got[2])
    assert torch.equal(got[1], got[3])


@pytest.mark.parametrize(("lead", "inputs", "outputs", "group_size"), CASES[::2])
def test_coded_results(
    lead: Lead, inputs: int, outputs: int, group_size: int | None, device: torch.device
) -> None:
    weights = weights_of(inputs, outputs, group_size, device)
    x, x_code = integers(*lead, inputs, seed=1, device=device), knee_rows(seed=4, device=device)
    for groups in (1, outputs):
        for knee in (True, False):
            arguments = (x, weights, x_code, knee, None, None, knee_rows(groups, scale=0.3, device=device))
            got = on_codes(*arguments)
            assert_codes_close(got, by_reference(on_codes, *arguments), 0.001 + 1.0 / max(got.numel(), 1))


@pytest.mark.parametrize("group_size", [None, 32, 128])
@pytest.mark.parametrize("rows", [1, 6, 40, 300])
@pytest.mark.parametrize("knee", [-400.0, -128.0, -1.0, 0.0, 90.0, 127.0, 500.0])
def test_knee_anywhere(knee: float, rows: int, group_size: int | None, device: torch.device) -> None:
    """The second sum is right wherever the knee lies, and with gain 0 it changes no bit."""
    weights = weights_of(168, 24, group_size, device)
    x = integers(rows, 168, seed=9, device=device)
    code = knee_rows(seed=1, ratio=9.0, device=device)
    code[:, 3] = knee
    assert_true_sums(on_codes(x, weights, code, True), x, weights, code, None, None)
    control = knee_rows(seed=1, ratio=1.0, device=device)
    control[:, 3] = knee
    assert torch.equal(on_codes(x, weights, control, True), on_codes(x, weights, control, False))


@pytest.mark.parametrize("rows", [1, 3, 40, 200])
@pytest.mark.parametrize("value", [-128, 127])
def test_extreme_sums(value: int, rows: int, device: torch.device) -> None:
    """Nothing overflows or saturates inside."""
    x = torch.full((rows, 4096), value, dtype=torch.int8, device=device)
    code = knee_rows(ratio=100.0, device=device)
    code[:, 3] = -128.0
    for group_size, lowest in ((None, -128), (1024, -8)):
        made = weights_of(4096, 9, group_size, device)
        codes, scale = torch.full((9, 4096), lowest, device=device), torch.ones_like(made.scale)
        packed = codes.to(torch.int8) if group_size is None else torch.full_like(made.codes, 0x88)
        total = (lowest * 4096 * torch.ones(9, device=device)).to(made.total.dtype)
        weights = Weights(packed, scale, total, group_size, codes.double())
        assert_true_sums(on_codes(x, weights, code, True), x, weights, code, None, None)


def test_one_bad_weight_stays_in_its_column(device: torch.device) -> None:
    """An infinite scale spoils its own column, also where a column ends in the middle of a group or a vector."""
    weights = int4_weights(168, 11, 32, device)
    weights.scale[4, 3] = torch.inf
    for rows in (1, 40):
        got = on_codes(integers(rows, 168, device=device), weights)
        assert got[:, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]].isfinite().all()
        assert not got[:, 4].isfinite().any()


def refused() -> list[tuple[str, dict[str, Any], str]]:
    """Operator, what replaces the right arguments, the sentence."""
    long = torch.zeros(1, 65544, dtype=torch.int8)
    shared: list[tuple[dict[str, Any], str]] = [
        ({"x": torch.zeros(4, 16)}, r"x is float32, allowed is int8"),
        ({"x": torch.zeros(16, 4, dtype=torch.int8).T}, r"x has last stride 4, allowed is 1"),
        ({"x": long}, r"x has 65544 channels, allowed is at most 65536"),
        ({"x_code": None}, r"knee is true without x_code, allowed is false, or an x_code"),
        ({"x_code": knee_rows(16)}, r"x_code has shape \(16, 8\), allowed is contiguous \(1, 8\)"),
        ({"row_scale": torch.ones(3)}, r"row_scale has shape \(3\), allowed is shape \(4\)"),
        ({"bias": torch.ones(3)}, r"bias has shape \(3\), allowed is shape \(8\)"),
        ({"code": knee_rows(3)}, r"code has shape \(3, 8\), allowed is contiguous \(1 or 8, 8\)"),
        ({"dtype": torch.int32}, r"dtype is int32, allowed is float32, float16 or bfloat16"),
    ]
    own = [
        ("linear_w8a8", {"weight": torch.zeros(8, 8, dtype=torch.int8)}, r"weight has shape \(8, 8\)"),
        ("linear_w8a8", {"weight": torch.zeros(8, 16)}, r"weight is float32, allowed is int8"),
        ("linear_w8a8", {"weight": torch.zeros(16, 8, dtype=torch.int8).T}, r"weight is not contiguous"),
        ("linear_w8a8", {"weight_scale": torch.ones(3)}, r"weight_scale has shape \(3\)"),
        ("linear_w8a8", {"weight_sum": torch.ones(8)}, r"weight_sum is float32, allowed is int32"),
        ("linear_w4a8", {"weight": torch.zeros(8, 16, dtype=torch.uint8)}, r"weight has shape \(8, 16\)"),
        ("linear_w4a8", {"weight": torch.zeros(8, 8, dtype=torch.int8)}, r"weight is int8, allowed is uint8"),
        ("linear_w4a8", {"weight_scale": torch.ones(8, 1)}, r"weight_scale is float32, allowed is float16"),
        ("linear_w4a8", {"weight_scale": torch.ones(8, 2).half()}, r"weight_scale has shape \(8, 2\)"),
        (
            "linear_w4a8",
            {"weight_sum": torch.ones(8, dtype=torch.int32)},
            r"weight_sum is int32, allowed is float32",
        ),
        (
            "linear_w4a8",
            {"x": torch.zeros(4, 20, dtype=torch.int8)},
            r"x has 20 channels, allowed is a multiple of 8",
        ),
        *(
            ("linear_w4a8", {"group_size": size}, f"group_size is {size}, allowed is a power of two from 32 to 1024")
            for size in (0, 16, 48, 2048, -128)
        ),
    ]  # fmt: skip
    both = ("linear_w8a8", "linear_w4a8")
    return [*((op, change, text) for op in both for change, text in shared), *own]


@pytest.mark.parametrize("index", range(len(refused())))
def test_refusals(index: int, device: torch.device) -> None:
    op, change, message = refused()[index]
    weights = weights_of(16, 8, None if op == "linear_w8a8" else 32, device)
    right = {
        "x": integers(4, 16, device=device), "x_code": knee_rows(device=device), "knee": True, "row_scale": None,
        "weight": weights.codes, "weight_scale": weights.scale, "weight_sum": weights.total, "bias": None,
        "code": None, "dtype": torch.float32,
    }  # fmt: skip
    if weights.group_size:
        right["group_size"] = weights.group_size
    moved = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in change.items()}
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        getattr(ops, op)(**(right | moved))
