"""linear_w8a8: sums are exact, so results equal the reference to the last rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FLOATS, assert_codes_close, integers, knee_rows, normals, strided

from dualscale_mamba import ops

SHAPES = [
    ((1,), 16, 8),
    ((1, 1), 33, 5),
    ((0,), 40, 9),
    ((2,), 64, 100),
    ((3,), 100, 7),
    ((2, 0), 8, 8),
    ((5, 7), 512, 130),
    ((64,), 768, 65),
    ((1,), 2560, 512),
    ((4,), 1, 1),
]


def weights(
    inputs: int, outputs: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = integers(outputs, inputs, seed=5, device=device)
    scale = 0.001 + 0.01 * normals(outputs, seed=6, device=device).abs()
    return weight, scale, weight.sum(dim=1, dtype=torch.int32)


def both(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    got = ops.linear_w8a8(*arguments)
    with ops.implementation("reference"):
        return got, ops.linear_w8a8(*arguments)


def assert_equal_to_rounding(got: torch.Tensor, reference: torch.Tensor) -> None:
    """Two fp32 units in the last place (scaling in another order), then one of the result's type."""
    assert got.dtype == reference.dtype
    rounding = 2 * torch.finfo(torch.float32).eps + (got.dtype != torch.float32) * torch.finfo(got.dtype).eps
    largest = float(reference.float().abs().max()) if reference.numel() else 0.0
    torch.testing.assert_close(got, reference, rtol=rounding, atol=largest * 1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_floating_results(
    lead: tuple[int, ...], inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> None:
    weight, scale, total = weights(inputs, outputs, device)
    x, bias = integers(*lead, inputs, seed=1, device=device), normals(outputs, seed=2, device=device)
    rows = normals(max(x.numel() // inputs, 0), seed=3, device=device).abs()
    for x_code, knee in (
        (None, False),
        (knee_rows(seed=2, device=device), True),
        (knee_rows(ratio=1.0, device=device), False),
    ):
        for row_scale, offset in ((None, None), (rows, bias)):
            for given in (x, strided(x)):
                got, reference = both(
                    given, x_code, knee, row_scale, weight, scale, total, offset, None, dtype
                )
                assert got.shape == (*lead, outputs)
                assert_equal_to_rounding(got, reference)


@pytest.mark.parametrize(("lead", "inputs", "outputs"), SHAPES)
def test_coded_results(lead: tuple[int, ...], inputs: int, outputs: int, device: torch.device) -> None:
    weight, scale, total = weights(inputs, outputs, device)
    x, x_code = integers(*lead, inputs, seed=1, device=device), knee_rows(seed=4, device=device)
    for groups in (1, outputs):
        got, reference = both(
            x, x_code, True, None, weight, scale, total, None, knee_rows(groups, device=device)
        )
        assert_codes_close(got, reference, share=0.001 + 1.0 / max(got.numel(), 1))


@pytest.mark.parametrize("knee", [-400.0, -128.0, -1.0, 0.0, 90.0, 127.0, 500.0])
def test_knee_anywhere(knee: float, device: torch.device) -> None:
    """The second sum is right wherever the knee lies, and with gain 0 it changes no bit."""
    weight, scale, total = weights(70, 20, device)
    x = integers(6, 70, seed=9, device=device)
    code = knee_rows(seed=1, ratio=9.0, device=device)
    code[:, 3] = knee
    assert_equal_to_rounding(*both(x, code, True, None, weight, scale, total))
    control = knee_rows(seed=1, ratio=1.0, device=device)
    control[:, 3] = knee
    single = ops.linear_w8a8(x, control, False, None, weight, scale, total)
    assert torch.equal(ops.linear_w8a8(x, control, True, None, weight, scale, total), single)


def test_extreme_sums(device: torch.device) -> None:
    """Nothing overflows or saturates inside."""
    for value in (-128, 127):
        x = torch.full((3, 4096), value, dtype=torch.int8, device=device)
        weight = torch.full((9, 4096), -128, dtype=torch.int8, device=device)
        scale, total = torch.ones(9, device=device), weight.sum(dim=1, dtype=torch.int32)
        code = knee_rows(ratio=100.0, device=device)
        code[:, 3] = -128.0
        assert_equal_to_rounding(*both(x, code, True, None, weight, scale, total))


def test_refusals(device: torch.device) -> None:
    weight, scale, total = weights(16, 8, device)
    x, code = integers(4, 16, device=device), knee_rows(device=device)
    for arguments, message in (
        ((x.float(), None, False, None, weight, scale, total), r"x is float32, allowed is int8"),
        ((x, None, True, None, weight, scale, total), r"knee is true without x_code"),
        ((x, knee_rows(16, device=device), True, None, weight, scale, total), r"x_code has shape \(16, 8\)"),
        (
            (x, code, True, None, weight[:, :8], scale, total),
            r"weight has shape \(8, 8\), allowed is shape \(any, 16\)",
        ),
        (
            (x, code, True, None, weight, scale[:3], total),
            r"weight_scale has shape \(3\), allowed is shape \(8\)",
        ),
        ((x, code, True, None, weight, scale, total.float()), r"weight_sum is float32, allowed is int32"),
        (
            (x, code, True, scale[:3], weight, scale, total),
            r"row_scale has shape \(3\), allowed is shape \(4\)",
        ),
    ):
        with pytest.raises(RuntimeError, match="linear_w8a8: " + message):
            ops.linear_w8a8(*arguments)
