"""rms_norm_quant, gated_rms_norm_quant and hadamard_quant, which finish a whole row at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import (
    FLOATS,
    assert_as_good,
    assert_codes_close,
    codes_of,
    integers,
    knee_rows,
    normals,
    strided,
    value,
)

from dualscale_mamba import ops
from dualscale_mamba.quantization.rotation import hadamard_base

EPS = 1e-5
# Order of the base of each number of channels.
ORDERS = {
    **{1: 1, 2: 1, 8: 1, 16: 1, 64: 1, 1024: 1},
    **{12: 12, 24: 12, 768: 12, 20: 20, 40: 20, 80: 20, 2560: 20, 28: 28, 224: 28, 3584: 28, 5120: 20},
}
# Rows as they come from other operators, and rows between others: kernels read the former as whole vectors.
LAYOUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (torch.clone, strided)


def true_norm(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = total.double()
    return wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + EPS) * weight.double()


def true_gated_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, group: int, before_gate: bool
) -> torch.Tensor:
    gate, wide = F.silu(gate), x.double()
    grouped = (wide if before_gate else wide * gate).unflatten(-1, (-1, group))
    y = true_norm(grouped, torch.ones(group, device=x.device)).flatten(-2) * weight.double()
    return y * gate if before_gate else y


def true_hadamard(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """By the matrix, in fp64."""
    matrix = torch.ones(1, 1, dtype=torch.float64, device=x.device)
    while matrix.shape[0] * base.shape[0] < x.shape[-1]:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    full = torch.kron(base.double(), matrix)
    return x.double() @ full.T / x.shape[-1] ** 0.5


def assert_row_scales(y: torch.Tensor, scale: torch.Tensor, truth: torch.Tensor) -> None:
    """Codes of one scale a row: the scale is max / 127, decoding is off by half a step and a little."""
    rows = truth.reshape(-1, truth.shape[-1])
    torch.testing.assert_close(scale.double(), rows.abs().amax(dim=1) / 127, rtol=1e-5, atol=1e-12)
    decoded = y.reshape(rows.shape).double() * scale.double()[:, None]
    assert ((decoded - rows).abs() <= scale.double()[:, None] * 0.5001 + 1e-9).all()


@pytest.mark.parametrize("lay", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape",
    [(3, 1), (0, 7), (1, 5), (7, 16), (3, 2, 33), (65, 512), (2, 5120), (2, 8256), (2, 16640), (400, 2056)],
)
def test_norm(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    lay: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> None:
    channels = shape[-1]
    weight = 0.5 + normals(channels, seed=3, device=device).abs()
    x = normals(*shape, seed=1, dtype=dtype, device=device)
    residual = 4 * normals(*shape, seed=2, device=device)
    for before, kept in ((residual, torch.float32), (residual.to(dtype), dtype), (None, dtype)):
        given = (lay(x), None if before is None else lay(before), weight, EPS)
        same = (x, before, weight, EPS)
        y, total, scale = ops.rms_norm_quant(*given, None, False, kept, dtype)
        with ops.implementation("reference"):
            expected, expected_total, _ = ops.rms_norm_quant(*same, None, False, kept, dtype)
        assert torch.equal(total, expected_total)  # one addition and one rounding: exact
        assert scale.shape == (0,)
        truth = true_norm(total, weight)
        assert_as_good(y, expected, truth)
        y, total, scale = ops.rms_norm_quant(*given, None, True, kept, dtype)
        assert torch.equal(total, expected_total)
        assert y.dtype == torch.int8
        if truth.numel():
            assert_row_scales(y, scale, truth)
        for code in codes_of(channels, device=device):
            y, _, _ = ops.rms_norm_quant(*given, code, False, kept)
            with ops.implementation("reference"):
                expected, _, _ = ops.rms_norm_quant(*same, code, False, kept)
            assert_codes_close(y, expected, share=0.01 + 1.0 / max(y.numel(), 1))


@pytest.mark.parametrize("lay", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("before_gate", [False, True])
@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((3, 1), 1),
        ((0, 6), 3),
        ((1, 5), 1),
        ((7, 16), 16),
        ((3, 2, 33), 11),
        ((65, 512), 64),
        ((2, 5120), 5120),
        ((2, 5120), 20),
        ((2, 8256), 1032),
        ((400, 2056), 2056),
    ],
)
def test_gated_norm(
    shape: tuple[int, ...],
    group: int,
    before_gate: bool,
    dtype: torch.dtype,
    lay: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> None:
    channels, z_code = shape[-1], knee_rows(seed=5, device=device)
    weight = 0.5 + normals(channels, seed=3, device=device).abs()
    x = normals(*shape, seed=1, dtype=dtype, device=device)
    gates = [(normals(*shape, seed=2, dtype=kind, device=device), None) for kind in FLOATS]
    for z, code_of_z in (*gates, (integers(*shape, device=device), z_code)):
        rest = (code_of_z, weight, EPS, group, before_gate)
        given, same = (lay(x), lay(z), *rest), (x, z, *rest)
        truth = true_gated_norm(x, value(z, code_of_z), weight, group, before_gate)
        y, scale = ops.gated_rms_norm_quant(*given, None, False, dtype)
        with ops.implementation("reference"):
            expected, _ = ops.gated_rms_norm_quant(*same, None, False, dtype)
        assert scale.shape == (0,)
        assert_as_good(y, expected, truth)
        y, scale = ops.gated_rms_norm_quant(*given, None, True)
        assert y.dtype == torch.int8
        if truth.numel():
            assert_row_scales(y, scale, truth)
        for code in codes_of(channels, device=device):
            y, _ = ops.gated_rms_norm_quant(*given, code)
            with ops.implementation("reference"):
                expected, _ = ops.gated_rms_norm_quant(*same, code)
            assert_codes_close(y, expected, share=0.01 + 1.0 / max(y.numel(), 1))


@pytest.mark.parametrize("lay", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", ORDERS)
def test_hadamard(
    channels: int,
    dtype: torch.dtype,
    lay: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> None:
    base = hadamard_base(ORDERS[channels]).float().to(device)
    for shape in ((3, channels), (2, 5, channels), (0, channels), (150, channels)):
        x = normals(*shape, seed=1, dtype=dtype, device=device)
        given, truth = lay(x), true_hadamard(x, base)
        y, scale = ops.hadamard_quant(given, base, None, False, dtype)
        with ops.implementation("reference"):
            expected, _ = ops.hadamard_quant(x, base, None, False, dtype)
        assert scale.shape == (0,)
        assert_as_good(y, expected, truth)
        y, scale = ops.hadamard_quant(given, base, None, True)
        if truth.numel():
            assert_row_scales(y, scale, truth)
        for code in codes_of(channels, device=device):
            y, _ = ops.hadamard_quant(given, base, code)
            with ops.implementation("reference"):
                expected, _ = ops.hadamard_quant(x, base, code)
            assert_codes_close(y, expected, share=0.01 + 1.0 / max(y.numel(), 1))


def test_zero_rows(device: torch.device) -> None:
    """A row of zeros has codes of zero and a scale that is not zero."""
    x, weight = torch.zeros(2, 8, device=device), torch.ones(8, device=device)
    base = torch.ones(1, 1, device=device)
    y, _, scale = ops.rms_norm_quant(x, None, weight, EPS, None, True)
    others = (
        ops.hadamard_quant(x, base, None, True),
        ops.gated_rms_norm_quant(x, x, None, weight, EPS, 4, per_token=True),
    )
    for codes, scales in ((y, scale), *others):
        assert not codes.any()
        assert (scales > 0).all()


def test_control_is_single(device: torch.device) -> None:
    x, weight = normals(6, 48, device=device), torch.ones(48, device=device)
    single = knee_rows(ratio=1.0, device=device)
    control = single.clone()
    control[:, 3] = -20.0
    base = hadamard_base(12).float().to(device)
    assert torch.equal(ops.hadamard_quant(x, base, single)[0], ops.hadamard_quant(x, base, control)[0])
    one, other = (ops.rms_norm_quant(x, x, weight, EPS, code)[0] for code in (single, control))
    assert torch.equal(one, other)
    z = integers(6, 48, device=device)
    one, other = (
        ops.gated_rms_norm_quant(x, z, code, weight, EPS, 16, code=code)[0] for code in (single, control)
    )
    assert torch.equal(one, other)


def test_refusals(device: torch.device) -> None:
    x, weight, code = torch.zeros(2, 6, device=device), torch.ones(6, device=device), knee_rows(device=device)
    base = torch.ones(1, 1, device=device)
    with pytest.raises(RuntimeError, match=r"rms_norm_quant: code is given together with per_token"):
        ops.rms_norm_quant(x, None, weight, EPS, code, True)
    with pytest.raises(RuntimeError, match=r"rms_norm_quant: weight has shape \(5\), allowed is shape \(6\)"):
        ops.rms_norm_quant(x, None, weight[:5], EPS)
    with pytest.raises(
        RuntimeError, match=r"rms_norm_quant: residual has shape \(1, 6\), allowed is shape \(2, 6\)"
    ):
        ops.rms_norm_quant(x, x[:1], weight, EPS)
    with pytest.raises(RuntimeError, match=r"rms_norm_quant: residual_dtype is int8"):
        ops.rms_norm_quant(x, None, weight, EPS, None, False, torch.int8)
    with pytest.raises(RuntimeError, match=r"hadamard_quant: x has 6 channels, allowed is the order of base"):
        ops.hadamard_quant(x, base)
    with pytest.raises(RuntimeError, match=r"hadamard_quant: x is int32"):
        ops.hadamard_quant(x.int(), base)


def test_gated_norm_refusals(device: torch.device) -> None:
    x, weight, code = torch.zeros(2, 6, device=device), torch.ones(6, device=device), knee_rows(device=device)
    q = integers(2, 6, device=device)
    good: dict[str, Any] = {"x": x, "z": x, "z_code": None, "weight": weight, "eps": EPS, "group_size": 3}
    for change, message in (
        ({"group_size": 4}, r"group_size is 4, allowed is a divisor of 6, the number of channels"),
        ({"group_size": 0}, r"group_size is 0, allowed is a divisor of 6"),
        ({"x": q}, r"x is int8, allowed is float32, float16 or bfloat16"),
        ({"z": q}, r"z is int8 and has no code"),
        ({"z_code": code}, r"z is float32 though it has a code, allowed is int8"),
        (
            {"z": q, "z_code": knee_rows(6, device=device)},
            r"z_code has shape \(6, 8\), .*contiguous \(1, 8\)",
        ),
        ({"z": x[:1]}, r"z has shape \(1, 6\), allowed is shape \(2, 6\)"),
        ({"weight": weight[:5]}, r"weight has shape \(5\), allowed is shape \(6\)"),
        ({"code": code, "per_token": True}, r"code is given together with per_token"),
        ({"dtype": torch.int8}, r"dtype is int8"),
    ):
        with pytest.raises(RuntimeError, match="gated_rms_norm_quant: " + message):
            ops.gated_rms_norm_quant(**(good | change))
