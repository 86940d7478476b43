"""Weights on a grid: codes within levels, decoded = codes x scale, packed and unpacked the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.ops.reference import unpack_int4
from dualscale_mamba.ops.rounding import round_half_away
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight, on_grid, pack_int4
from dualscale_mamba.rounding.nearest import Nearest

GRIDS = [Grid(8), Grid(4, 32), Grid(4, 128)]


def some_weight(rows: int, inputs: int, seed: int = 0, size: float = 0.05) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) * size


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), eights=st.integers(1, 9), seed=st.integers(0, 1000))
def test_packing_is_undone(rows: int, eights: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, 8 * eights), generator=generator).to(torch.int8)
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, 4 * eights)
    assert torch.equal(unpack_int4(packed), codes)


def test_the_place_of_every_nibble() -> None:
    packed = pack_int4(torch.tensor([[-8, 1, 2, 3, 4, -1, 6, 7]], dtype=torch.int8))
    assert packed.tolist() == [[0x48, 0xF1, 0x62, 0x73]]


def test_int4_needs_a_multiple_of_eight() -> None:
    with pytest.raises(ConfigError, match=r"12 inputs.*precision\.layers"):
        pack_int4(torch.zeros(2, 12, dtype=torch.int8))


@pytest.mark.parametrize("arguments", [(3,), (16,), (4,), (4, 100), (4, 16), (4, 2048), (8, 128)])
def test_other_grids_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"precision\.weights"):
        Grid(*arguments)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("inputs", [8, 40, 128, 200, 264])
def test_stored_and_read_again(grid: Grid, inputs: int) -> None:
    made = Nearest()(some_weight(5, inputs), grid)
    codes, scale, sums = made.stored()
    again = QuantizedWeight.from_stored(codes, scale, grid, inputs)
    assert torch.equal(again.codes, made.codes)
    assert torch.equal(again.decoded(), made.decoded())
    assert scale.dtype == (torch.float32 if grid.bits == 8 else torch.float16)
    in_full = made.codes.double().sum(1) if grid.bits == 8 else made.decoded().double().sum(1)
    torch.testing.assert_close(sums.double(), in_full, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="not"):
        QuantizedWeight.from_stored(codes, scale, grid, inputs + 8)


def test_decoded_is_the_code_times_the_scale_of_its_group() -> None:
    made = Nearest()(some_weight(3, 72), Grid(4, 32))
    assert made.scale.shape == (3, 3)
    decoded = made.decoded()
    for k in range(72):
        expected = made.codes[:, k].float() * made.scale[:, k // 32].float()
        assert torch.equal(decoded[:, k], expected)


def test_int8_is_the_largest_magnitude_over_127() -> None:
    weight = some_weight(7, 100)
    weight[2] = 0.0
    made = Nearest()(weight, Grid(8))
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    codes = round_half_away(weight / scale[:, None]).clamp(-127, 127).to(torch.int8)
    assert torch.equal(made.codes, codes)
    assert torch.equal(made.scale, scale)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9, 1e-4, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weights_of_any_size_stay_finite(grid: Grid, size: float) -> None:
    weight = some_weight(3, 128, size=size)
    made = Nearest()(weight, grid)
    assert made.decoded().isfinite().all()
    assert (made.scale != 0).all()
    if 1e-4 <= size <= 1e4:  # beyond, fp16 scales clip or vanish
        assert (made.decoded() - weight).square().mean() < 0.02 * weight.square().mean()


def test_codes_fit_the_scale_that_is_kept() -> None:
    weight = torch.full((1, 32), 1.0)
    made = on_grid(weight, torch.tensor([[1.0 / 3.0]]), Grid(4, 32))
    kept = made.scale.float()
    assert torch.equal(made.codes.float(), round_half_away(weight / kept))
