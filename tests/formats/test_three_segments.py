"""The three segments of nine bits, and simulated codes in general: levels, errors, rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.formats.base import FormatError, Range, table_code
from dualscale_mamba.formats.simulated import SimulatedCode, simulated_code
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.three_segments import BITS, REACH, ThreeSegments
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.mse import MeanSquaredError
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.ops import reference

STEPS = 127
positive = st.floats(1e-6, 1e6, allow_nan=False)
shares = st.floats(0.0, 1.0)


def fitted(inner: float, stretch: float = 2.0) -> SimulatedCode:
    one = torch.ones(1, dtype=torch.float64)
    return ThreeSegments().fit(Range(-0.2785 * one, inner * one, inner * stretch * one))


@settings(max_examples=100, deadline=None)
@given(inner=positive, stretch=st.floats(1.0, 1e4))
def test_levels_are_those_of_nine_bits_for_any_range(inner: float, stretch: float) -> None:
    code = fitted(inner, stretch)
    levels = code.levels()[0].double()
    assert levels.numel() == code.count == 509
    assert 2**8 < code.count <= 2**BITS
    assert code.bits_per_value == BITS
    assert (levels.diff() > 0).all()
    assert torch.equal(levels, -levels.flip(0))
    assert (levels == 0).sum() == 1
    assert float(levels[-1]) == pytest.approx(REACH * inner / STEPS, rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(inner=positive, share=shares, is_negative=st.booleans())
def test_error_is_bounded_in_each_segment(inner: float, share: float, is_negative: bool) -> None:
    code, step = fitted(inner), inner / STEPS
    sign = -1.0 if is_negative else 1.0
    for low, high, bound in (
        (0.0, 15.75, 0.125),
        (15.75, 16.0, 0.125),
        (16.0, 143.0, 0.5),
        (143.0, REACH, 2.0),
    ):
        x = torch.tensor([sign * step * (low + share * (high - low))])
        assert float((code.rounded(x)[1] - x).abs()) <= bound * step * (1 + 1e-3)
    beyond = torch.tensor([sign * step * (REACH + 100 * share)])
    assert float(code.rounded(beyond)[1]) == pytest.approx(sign * step * REACH, rel=1e-2)


@settings(max_examples=50, deadline=None)
@given(inner=positive, seed=st.integers(0, 2**31))
def test_values_go_to_the_nearest_level_in_order(inner: float, seed: int) -> None:
    code = fitted(inner)
    levels = code.levels()[0]
    x = (torch.randn(2000, generator=torch.Generator().manual_seed(seed)) * inner).sort().values
    found = code.rounded(x)[1]
    assert torch.equal(found, levels[code.ranks(x)])
    assert (found.diff() >= 0).all()
    distance = (x[:, None].double() - levels.double()).abs().amin(1)
    assert ((x - found).abs().double() <= distance * (1 + 1e-5) + 1e-9 * inner).all()
    assert torch.equal(code.ranks(levels), torch.arange(code.count))
    assert torch.equal(code.rounded(found)[1], found)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 127), scale=positive, seed=st.integers(0, 2**31))
def test_a_simulated_table_is_the_stored_table_bitwise(count: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    side = scale * (torch.rand(3, count, generator=generator, dtype=torch.float64) + 1e-3).cumsum(1)
    levels = torch.cat([-side.flip(1), torch.zeros(3, 1), side], dim=1)
    x = scale * count * torch.randn(500, 3, generator=generator)
    x[:count, :] = ((levels[:, :-1] + levels[:, 1:]) / 2).float().T[:count]  # ties
    stored, simulated = table_code(levels), simulated_code(levels, 8)
    decoded = reference.decode(reference.encode(x, stored.rows), stored.rows, torch.float32)
    assert torch.equal(simulated.rounded(x)[1], decoded)


def test_nan_goes_to_zero_and_infinities_saturate() -> None:
    code = fitted(1.0)
    top = float(code.levels()[0, -1])
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
    assert code.rounded(x)[1].tolist() == [0.0, top, -top, top, -top]


def test_values_keep_their_type() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert fitted(1.0).rounded(torch.randn(4, 5).to(dtype))[1].dtype == dtype


def test_channels_have_levels_of_their_own() -> None:
    inner = torch.tensor([0.5, 1.0, 8.0], dtype=torch.float64)
    code = ThreeSegments().fit(Range(-inner, inner, 2 * inner))
    x = 3 * torch.randn(2, 7, 3)
    found = code.rounded(x)[1]
    for channel in range(3):
        assert torch.equal(found[..., channel], fitted(float(inner[channel])).rounded(x[..., channel])[1])
    wide = code.expanded(torch.tensor([2, 0, 2, 1]))
    assert wide.groups == 4
    assert torch.equal(wide.rows[0], code.rows[2])
    assert isinstance(wide.to("cpu"), SimulatedCode)


def test_histogram_measures_it_and_an_observer_may_search() -> None:
    histogram = Histogram()
    histogram.update(torch.linspace(-3, 3, 40_000)[:, None])
    published = Percentile(99.0).fit(histogram, None, ThreeSegments())
    single = Percentile(99.0).fit(histogram, None, Single())
    found = histogram.coding(published.code)
    assert found.codes_used > 256
    assert found.sqnr_db > histogram.coding(single.code).sqnr_db
    searched = MeanSquaredError().fit(histogram, None, ThreeSegments())
    assert isinstance(searched.code, SimulatedCode)
    assert histogram.coding(searched.code).squared_error <= found.squared_error


def test_too_many_levels_for_the_bits_are_refused() -> None:
    levels = torch.arange(-128, 129, dtype=torch.float64)[None]
    assert simulated_code(levels, 9).count == 257
    with pytest.raises(FormatError, match="257 levels do not fit 8 bits"):
        simulated_code(levels, 8)
    with pytest.raises(FormatError, match="at most 16"):
        simulated_code(levels, 17)
    with pytest.raises(FormatError, match="monotone"):
        simulated_code(torch.tensor([[0.0, 2.0, 1.0]]), 8)
    with pytest.raises(FormatError, match="zero"):
        simulated_code(torch.tensor([[1.0, 2.0]]), 8)
    with pytest.raises(FormatError, match="float32"):
        SimulatedCode(torch.zeros(1, 4, dtype=torch.float64))
    with pytest.raises(FormatError, match="groups"):
        SimulatedCode(torch.zeros(1, 5))
