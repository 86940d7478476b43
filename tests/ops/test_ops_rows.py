"""rms_norm_quant and hadamard_quant, which finish a whole row at once."""

from __future__ import annotations

import pytest
import torch
from cases import FLOATS, assert_as_good, assert_codes_close, codes_of, knee_rows, normals, strided

from dualscale_mamba import ops
from dualscale_mamba.quantization.rotation import hadamard_base

EPS = 1e-5
# Order of the base of each number of channels.
ORDERS = {
    **{1: 1, 2: 1, 8: 1, 16: 1, 64: 1, 1024: 1},
    **{12: 12, 24: 12, 768: 12, 20: 20, 40: 20, 80: 20, 2560: 20, 28: 28, 224: 28},
}


def true_norm(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = total.double()
    return wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + EPS) * weight.double()


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


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 1), (0, 7), (1, 5), (7, 16), (3, 2, 33), (65, 512), (2, 5120)])
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    channels = shape[-1]
    weight = 0.5 + normals(channels, seed=3, device=device).abs()
    x = normals(*shape, seed=1, dtype=dtype, device=device)
    residual = 4 * normals(*shape, seed=2, device=device)
    for before, kept in ((residual, torch.float32), (residual.to(dtype), dtype), (None, dtype)):
        given = (strided(x), None if before is None else strided(before), weight, EPS)
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


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", ORDERS)
def test_hadamard(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    base = hadamard_base(ORDERS[channels]).float().to(device)
    for shape in ((3, channels), (2, 5, channels), (0, channels)):
        x = normals(*shape, seed=1, dtype=dtype, device=device)
        given, truth = strided(x), true_hadamard(x, base)
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
    y2, scale2 = ops.hadamard_quant(x, base, None, True)
    for codes, scales in ((y, scale), (y2, scale2)):
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
