"""The histogram is exact in counts and extremes, and merging is free of order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.single import Single
from dualscale_mamba.observers.absmax import AbsMax
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.mse import MeanSquaredError
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.ops import reference


def heavy(seed: int, rows: int = 2000, channels: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.nn.functional.silu(torch.randn(rows, channels, generator=generator))
    return values * torch.where(torch.rand(values.shape, generator=generator) < 0.003, 12.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), cut=st.integers(1, 1999), kind=st.sampled_from([None, "channels", "groups"])
)
def test_streaming_equals_one_shot_and_merge_commutes(seed: int, cut: int, kind: str | None) -> None:
    values = heavy(seed)
    groups = {None: None, "channels": torch.arange(8), "groups": torch.tensor([2, 0, 1, 0, 2, 2, 1, 0])}[kind]
    whole, left, right = Histogram(groups), Histogram(groups), Histogram(groups)
    whole.update(values)
    left.update(values[:cut])
    right.update(values[cut:])
    other = Histogram.from_state({k: v.clone() for k, v in right.state().items()})
    other.merge(left)
    left.merge(right)
    for merged in (left, other):
        assert torch.equal(merged.counts, whole.counts)
        assert torch.equal(merged.absmax, whole.absmax)
        assert torch.equal(merged.minimum, whole.minimum)


@pytest.mark.parametrize("percent", [60.0, 90.0, 99.0, 99.9])
def test_quantile_agrees_with_sorting(percent: float) -> None:
    values = heavy(1, rows=20000)
    histogram = Histogram()
    histogram.update(values)
    ordered = values.abs().flatten().sort().values
    rank = int(
        percent / 100 * ordered.numel()
    )  # in a sparse tail any value between two neighbours is a quantile
    assert ordered[rank - 1] * 0.99 <= float(histogram.quantile(percent)) <= ordered[rank + 1] * 1.01


def test_quantile_is_monotone_and_ends_at_the_true_maximum() -> None:
    histogram = Histogram(torch.arange(8))
    histogram.update(heavy(2))
    curve = torch.stack([histogram.quantile(p) for p in (51, 75, 90, 99, 99.9, 99.99, 100)])
    assert (curve.diff(dim=0) >= 0).all()
    assert torch.equal(curve[-1], histogram.absmax)


def test_a_group_is_the_union_of_its_channels() -> None:
    values = heavy(6)
    groups = torch.tensor([1, 0, 1, 1, 0, 2, 2, 1])
    grouped = Histogram(groups)
    grouped.update(values)
    for group in range(3):
        alone = Histogram()
        alone.update(values[:, groups == group])
        assert torch.equal(grouped.counts[group], alone.counts[0])
        assert grouped.minimum[group] == alone.minimum[0]
        assert grouped.maximum[group] == alone.maximum[0]
    with pytest.raises(ValueError, match="expected 8 channels, got 7"):
        grouped.update(values[:, 1:])


def test_counts_in_the_tail_are_exact() -> None:
    values = torch.cat([torch.ones(100_000), torch.tensor([100.0, 200.0, -300.0])])[:, None]
    histogram = Histogram()
    histogram.update(values)
    assert float(histogram.share_above(torch.tensor([50.0])) * histogram.total) == pytest.approx(3)
    assert float(histogram.share_above(torch.tensor([250.0])) * histogram.total) == pytest.approx(1)
    assert histogram.absmax.item() == 300.0


def test_non_finite_values_are_counted_apart() -> None:
    histogram = Histogram()
    histogram.update(torch.tensor([[1.0], [float("nan")], [float("inf")], [-2.0]]))
    assert histogram.skipped == 2
    assert histogram.absmax.item() == 2.0


def test_empty_and_zero_inputs_still_give_a_code() -> None:
    histogram = Histogram(torch.arange(4))
    histogram.update(torch.zeros(0, 4))
    histogram.update(torch.zeros(3, 4))
    for observer in (AbsMax(), Percentile(99.0), MeanSquaredError((99.0, 100.0))):
        code = observer.fit(histogram, -0.2785, Dual()).code
        decoded = reference.decode(reference.encode(torch.zeros(2, 4), code.rows), code.rows, torch.float32)
        assert decoded.abs().max() == 0


def test_expected_error_agrees_with_coding_the_values() -> None:
    values = heavy(3, rows=20000)
    histogram = Histogram()
    histogram.update(values)
    for mode in (Single(), Dual()):
        code = Percentile(99.9).fit(histogram, -0.2785, mode).code
        decoded = reference.decode(reference.encode(values, code.rows), code.rows, torch.float32)
        measured = (decoded - values).double().square().mean()
        assert float(histogram.squared_error(code)) == pytest.approx(float(measured), rel=0.05)


def test_mse_is_no_worse_than_any_of_its_candidates() -> None:
    histogram = Histogram(torch.arange(8))
    histogram.update(heavy(4))
    found = histogram.squared_error(MeanSquaredError().fit(histogram, -0.2785, Dual()).code)
    for percent in (99.0, 99.9, 100.0):
        for split in (128, 160, 224):
            fitted = Percentile(percent).fit(histogram, -0.2785, Dual(fine_codes=split))
            assert (found <= histogram.squared_error(fitted.code) * (1 + 1e-9)).all()


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.08])
def test_outlier_share_follows_the_percentile(share: float) -> None:
    """Fewer than 0.1 % of outliers, and more than 5 %: the threshold is where the percentile says."""
    histogram = Histogram()
    histogram.update(heavy(5, rows=40000))
    fitted = Percentile(100 * (1 - share)).fit(histogram, -0.2785, Dual())
    assert float(histogram.share_above(fitted.range.inner)) == pytest.approx(share, rel=0.05)


@pytest.mark.parametrize("percent", [50.0, 0.0, 100.1, -1.0])
def test_percentile_outside_its_range_is_refused(percent: float) -> None:
    with pytest.raises(ConfigError, match=r"observer\.percentile"):
        Percentile(percent)
