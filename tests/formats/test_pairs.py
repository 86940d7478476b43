"""Formats of two scales: one of them a channel, or one a value with side data beside the codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.formats.base import Code, FormatError, Range
from dualscale_mamba.formats.dual_channel import DualChannel
from dualscale_mamba.formats.dual_mask import DualMask
from dualscale_mamba.formats.dual_sparse import DualSparse, capacity_for
from dualscale_mamba.formats.pair import TILE, PairCode, list_bytes, mask_bytes
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.stored import stored_code
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.percentile import Percentile

positive = st.floats(1e-6, 1e6, allow_nan=False)


def range_of(*inner: float, stretch: float = 4.0) -> Range:
    sizes = torch.tensor(inner, dtype=torch.float64)
    return Range(-sizes, sizes, sizes * stretch)


def counted(values: torch.Tensor, *, channels: bool = False) -> Histogram:
    histogram = Histogram(torch.arange(values.shape[1]) if channels else None)
    histogram.update(values)
    return histogram


@settings(max_examples=200, deadline=None)
@given(inner=positive, stretch=st.floats(1.0, 1e3), headroom=st.floats(1.0, 16.0))
def test_levels_of_a_pair_are_proved_for_any_range(inner: float, stretch: float, headroom: float) -> None:
    code = DualMask(headroom).fit(range_of(inner, stretch=stretch))
    levels = code.levels()[0]
    assert (levels.diff() >= 0).all()
    assert torch.unique(levels).numel() <= 509
    assert (levels == 0).sum() == 1
    top = max(inner * stretch * headroom, inner)
    assert float(levels[-1]) == pytest.approx(top, rel=1e-5)
    x = torch.linspace(-1.2, 1.2, 4001) * top
    ranks, values = code.rounded(x)
    assert torch.equal(values, levels[ranks]) or float((values - levels[ranks]).abs().max()) <= 1e-5 * top
    assert (values.diff() >= 0).all()


def test_outliers_have_the_outer_scale_and_others_that_of_single() -> None:
    range_ = range_of(1.5)
    code, single = DualMask().fit(range_), Single().fit(range_)
    x = 3 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    inside = x.abs() < 1.5
    assert torch.equal(code.rounded(x)[1][inside], single.rounded(x)[1][inside])
    step = float(code.rows[0, 2])
    outside = (x.abs() > 1.5) & (x.abs() < 6.0)
    assert ((code.rounded(x)[1] - x)[outside].abs() <= step / 2 * (1 + 1e-5)).all()


def test_without_outliers_there_are_no_selectors() -> None:
    code = DualMask(headroom=1.0).fit(range_of(2.0, stretch=1.0))
    assert torch.isinf(code.rows[0, 4])
    x = torch.linspace(-9, 9, 1001)
    assert torch.equal(code.rounded(x)[1], Single().fit(range_of(2.0, stretch=1.0)).rounded(x)[1])


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(0, 3), length=st.integers(0, 100), channels=st.integers(1, 300),
    capacity=st.one_of(st.none(), st.integers(0, TILE)),
)  # fmt: skip
def test_formulas_are_the_tensors(batch: int, length: int, channels: int, capacity: int | None) -> None:
    rows = DualMask().fit(range_of(1.0)).rows
    code = PairCode(rows, 9.0, capacity=capacity)
    mask, outliers = code.side_data(batch, length, channels)
    assert mask is not None
    assert mask.nbytes == mask_bytes(batch, length, channels)
    held = mask if outliers is None else outliers
    assert held.nbytes == code.side_bytes(batch, length, channels)


@pytest.mark.parametrize(("share", "saved"), [(0.001, 0.9375), (0.01, 0.72), (0.05, 0.0), (0.5, 0.0)])
def test_what_a_list_saves(share: float, saved: float) -> None:
    """The founding note expected 97 % at one outlier in a thousand, which room for the average alone would give."""
    assert 1 - list_bytes(1, 32, 64, 3) / mask_bytes(1, 32, 64) == 0.96875
    values = (1, 2048, 1536)
    shorter = 1 - list_bytes(*values, capacity_for(share)) / mask_bytes(*values)
    assert shorter == pytest.approx(saved, abs=0.005)


def test_bits_count_what_lies_beside_the_codes() -> None:
    values = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    histogram = counted(values)
    fitted = [Percentile(99.0).fit(histogram, None, mode).code for mode in (DualMask(), DualSparse())]
    assert fitted[0].bits_per_value == 9.0
    assert isinstance(fitted[1], PairCode)
    assert fitted[1].capacity is not None
    assert 1.3 <= fitted[1].capacity / (TILE * 0.01) <= 2.0
    for code in fitted:
        side = 8 * code.side_bytes(1, 64, 128) / (64 * 128)
        assert code.bits_per_value == 8 + side
    assert histogram.quality(fitted[0])[1] > 256
    assert histogram.quality(fitted[0]) == histogram.quality(fitted[1])


def test_each_channel_has_one_of_two_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 1.1, 0.9, 1.0, 20.0, 1.05, 18.0, 0.0])
    histogram = counted(torch.randn(4000, 8, generator=generator) * sizes, channels=True)
    code = Percentile(100.0).fit(histogram, None, DualChannel()).code
    scales = code.rows[:, 0]
    assert torch.unique(scales).numel() == 2
    assert (scales == scales.max()).nonzero().flatten().tolist() == [4, 6]
    assert code.bits_per_value == 8 + 1 / 4000
    assert not code.has_knee
    whole = Percentile(100.0).fit(histogram.merged(), None, Single()).code
    assert histogram.quality(code)[0] > histogram.merged().quality(whole)[0]


@settings(max_examples=50, deadline=None)
@given(inner=st.lists(positive, min_size=1, max_size=40))
def test_two_scales_cover_all_channels_at_the_least_cost(inner: list[float]) -> None:
    code = DualChannel().fit(range_of(*inner))
    reach = 127 * code.rows[:, 0].double()
    assert (reach >= torch.tensor(inner).double() * (1 - 1e-6)).all()
    assert torch.unique(code.rows[:, 0]).numel() <= 2
    others = [sum((cut if size <= cut else max(inner)) ** 2 for size in inner) for cut in sorted(set(inner))]
    assert float(reach.square().sum()) <= min(others) * (1 + 1e-5)


def test_codes_come_back_from_their_facts() -> None:
    for code in (
        DualMask().fit(range_of(1.0, 2.0)),
        DualSparse().fit(range_of(1.0)),
        DualChannel().fit(range_of(1.0, 2.0)),
    ):
        again = stored_code(code.rows, code.facts())
        assert type(again) is type(code)
        assert again == code or torch.equal(again.rows, code.rows)
        assert again.facts() == code.facts()
    moved = DualSparse().fit(range_of(1.0)).expanded(torch.zeros(3, dtype=torch.int64)).to("meta")
    assert isinstance(moved, PairCode)
    assert moved.groups == 3


def test_what_is_no_pair_is_refused() -> None:
    rows = DualMask().fit(range_of(1.0)).rows
    with pytest.raises(FormatError, match="pair rows"):
        PairCode(torch.zeros(1, 8))
    with pytest.raises(FormatError, match="0 to 2048 entries"):
        PairCode(rows, capacity=TILE + 1)
    with pytest.raises(FormatError, match="float32"):
        PairCode(rows.double())
    with pytest.raises(FormatError, match="8 or 512"):
        Code(rows)
    with pytest.raises(FormatError, match="positive and finite"):
        PairCode(rows * torch.tensor([1.0, 1.0, 1.0, torch.inf, 1.0])).prove()
