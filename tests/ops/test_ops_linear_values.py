"""Linear layers with floating-point inputs (w8a16, w4a16): as good as PyTorch's product with decoded weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FLOATS, FLOOR, assert_codes_close, knee_rows, normals, strided
from linear_cases import (
    ODD_SHAPES,
    SHAPES,
    Weights,
    assert_as_good_as_torch,
    by_reference,
    int4_weights,
    int8_weights,
    on_values,
    shifted,
)

from dualscale_mamba import ops

Lead = tuple[int, ...]
CASES = [
    *((lead, inputs, outputs, None) for lead, inputs, outputs in ODD_SHAPES),
    *((lead, inputs, outputs, None) for lead, inputs, outputs, _ in SHAPES),
    *SHAPES,
]


def weights_of(inputs: int, outputs: int, group_size: int | None, device: torch.device) -> Weights:
    if group_size is None:
        return int8_weights(inputs, outputs, device)
    return int4_weights(inputs, outputs, group_size, device)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("lead", "inputs", "outputs", "group_size"), CASES)
def test_as_good_as_torch(
    lead: Lead, inputs: int, outputs: int, group_size: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    """At most twice the error against fp64 of F.linear in the same type."""
    weights = weights_of(inputs, outputs, group_size, device)
    x, bias = normals(*lead, inputs, seed=1, dtype=dtype, device=device), normals(outputs, device=device)
    for given, held, offset in (
        (x, weights, bias),
        (strided(x), weights, None),
        (shifted(x), weights.unaligned(), bias),
    ):
        got = on_values(given, held, offset, None, dtype)
        assert got.shape == (*lead, outputs)
        assert_as_good_as_torch(got, x, weights, offset)


@pytest.mark.parametrize("given", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS)
@pytest.mark.parametrize("group_size", [None, 64])
@pytest.mark.parametrize("rows", [2, 50])
def test_any_type_to_any_type(
    rows: int, group_size: int | None, wanted: torch.dtype, given: torch.dtype, device: torch.device
) -> None:
    weights = weights_of(328, 24, group_size, device)
    x = normals(rows, 328, dtype=given, device=device)
    got, expected = (
        on_values(x, weights, None, None, wanted),
        by_reference(on_values, x, weights, None, None, wanted),
    )
    assert got.dtype == expected.dtype == wanted
    allowed = (FLOOR[given] + FLOOR[wanted]) * float(expected.abs().max())
    assert float((got.double() - expected.double()).abs().max()) <= allowed


@pytest.mark.parametrize(("lead", "inputs", "outputs", "group_size"), CASES[::3])
def test_coded_results(
    lead: Lead, inputs: int, outputs: int, group_size: int | None, device: torch.device
) -> None:
    """The code in the epilogue is the code of the floating-point result."""
    weights = weights_of(inputs, outputs, group_size, device)
    x, bias = normals(*lead, inputs, seed=1, device=device), normals(outputs, device=device)
    plain = on_values(x, weights, bias)
    for groups in (1, outputs):
        code = knee_rows(groups, scale=0.3, device=device)
        got = on_values(x, weights, bias, code)
        for expected in (ops.encode(plain, code), by_reference(on_values, x, weights, bias, code)):
            assert_codes_close(got, expected, 0.001 + 1.0 / max(got.numel(), 1))


@pytest.mark.parametrize("rows", [1, 40])
def test_values_without_a_number_stay_in_their_row(rows: int, device: torch.device) -> None:
    """Padding multiplies nothing: a NaN or an infinity reaches its own row alone, wherever a row ends."""
    for weights in (weights_of(168, 11, None, device), weights_of(168, 11, 32, device)):
        x = normals(rows + 2, 168, device=device)
        x[0, -1], x[1, 0] = torch.nan, torch.inf
        got = on_values(x, weights)
        assert got[0].isnan().all()
        assert got[2:].isfinite().all()


def refused() -> list[tuple[str, dict[str, Any], str]]:
    """Operator, what replaces the right arguments, the sentence."""
    shared: list[tuple[dict[str, Any], str]] = [
        ({"x": torch.zeros(4, 16, dtype=torch.int8)}, r"x is int8, allowed is float32, float16 or bfloat16"),
        ({"x": torch.zeros(16, 4).T}, r"x has last stride 4, allowed is 1"),
        ({"x": torch.zeros(4, 0)}, r"x has shape \(4, 0\), allowed is \(..., channels\)"),
        ({"bias": torch.ones(8).half()}, r"bias is float16, allowed is float32"),
        ({"code": knee_rows(3)}, r"code has shape \(3, 8\), allowed is contiguous \(1 or 8, 8\)"),
        ({"dtype": torch.int8}, r"dtype is int8, allowed is float32, float16 or bfloat16"),
    ]
    own = [
        ("linear_w8a16", {"weight": torch.zeros(8, 8, dtype=torch.int8)}, r"weight has shape \(8, 8\)"),
        ("linear_w8a16", {"weight": torch.zeros(8, 16, dtype=torch.uint8)}, r"weight is uint8, allowed is int8"),
        ("linear_w8a16", {"weight_scale": torch.ones(8, 1)}, r"weight_scale has shape \(8, 1\)"),
        ("linear_w4a16", {"weight": torch.zeros(8, 16, dtype=torch.uint8)}, r"weight has shape \(8, 16\)"),
        ("linear_w4a16", {"weight": torch.zeros(8, 8, dtype=torch.uint8).T}, r"weight is not contiguous"),
        ("linear_w4a16", {"weight_scale": torch.ones(8).half()}, r"weight_scale has shape \(8\)"),
        ("linear_w4a16", {"x": torch.zeros(4, 20)}, r"x has 20 channels, allowed is a multiple of 8"),
        ("linear_w4a16", {"group_size": 100}, r"group_size is 100, allowed is a power of two from 32 to 1024"),
    ]  # fmt: skip
    both = ("linear_w8a16", "linear_w4a16")
    return [*((op, change, text) for op in both for change, text in shared), *own]


@pytest.mark.parametrize("index", range(len(refused())))
def test_refusals(index: int, device: torch.device) -> None:
    op, change, message = refused()[index]
    weights = weights_of(16, 8, None if op == "linear_w8a16" else 32, device)
    right = {
        "x": normals(4, 16, device=device), "weight": weights.codes, "weight_scale": weights.scale, "bias": None,
        "code": None, "dtype": torch.float32,
    }  # fmt: skip
    if weights.group_size:
        right["group_size"] = weights.group_size
    moved = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in change.items()}
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        getattr(ops, op)(**(right | moved))
