"""Paired comparisons: what holds for any values, and what other programs and brute force say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from dualscale_mamba.statistics import (
    average_interval,
    compare,
    compare_outcomes,
    holm,
    mean_intervals,
    paired_difference,
    ratio_interval,
    share_interval,
)
from dualscale_mamba.statistics.power import detectable_share
from dualscale_mamba.statistics.resampling import RESAMPLES, bootstrap_means, sign_flip_p

# Multiples of 1/8 can be added and subtracted without rounding.
VALUES = st.integers(-800, 800).map(lambda value: value / 8)
MANY = st.lists(VALUES, min_size=2, max_size=40).map(np.asarray)
FEW = st.lists(VALUES, min_size=2, max_size=9).map(np.asarray)
OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(
    lambda pairs: np.asarray(pairs, dtype=float).T
)
RATES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8)
quick = settings(max_examples=40, deadline=None)


@quick
@given(MANY)
def test_swapped_arms_give_the_opposite(difference: NDArray[np.float64]) -> None:
    found, swapped = compare([difference]), compare([-difference])
    assert swapped.mean == -found.mean
    assert swapped.p_value == found.p_value
    assert swapped.detectable == found.detectable
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=1e-4)


@quick
@given(OUTCOMES)
def test_swapped_outcomes_give_the_opposite(both: NDArray[np.float64]) -> None:
    found, swapped = compare_outcomes(*both), compare_outcomes(*both[::-1])
    assert (swapped.mean, swapped.p_value) == (-found.mean, found.p_value)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


@quick
@given(MANY, VALUES)
def test_what_both_arms_share_is_no_difference(values: NDArray[np.float64], shift: float) -> None:
    other = values[::-1]
    plain = paired_difference(list(values), list(other))
    assert paired_difference(list(values + shift), list(other + shift)) == plain


@quick
@given(MANY, st.integers(1, 64))
def test_a_constant_difference_moves_the_interval(values: NDArray[np.float64], shift: int) -> None:
    found, moved = compare([values]), compare([values + shift])
    assert moved.mean == pytest.approx(found.mean + shift)
    assert (moved.low, moved.high) == pytest.approx((found.low + shift, found.high + shift), abs=1e-3)


@quick
@given(FEW, st.randoms())
def test_the_order_of_the_items_does_not_matter_to_the_exact_test(
    values: NDArray[np.float64], random: object
) -> None:
    shuffled = np.asarray(sorted(values, key=lambda _: random.random()))  # type: ignore[attr-defined]
    assert sign_flip_p(shuffled) == sign_flip_p(values)
    assert compare([shuffled]).mean == pytest.approx(compare([values]).mean)


@quick
@given(OUTCOMES, st.randoms())
def test_the_order_of_the_items_does_not_matter_to_outcomes(
    both: NDArray[np.float64], random: object
) -> None:
    order = sorted(range(both.shape[1]), key=lambda _: random.random())  # type: ignore[attr-defined]
    assert compare_outcomes(*both[:, order]) == compare_outcomes(*both)


@quick
@given(FEW)
def test_sign_flips_agree_with_brute_force(values: NDArray[np.float64]) -> None:
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=len(values))]
    assert sign_flip_p(values) == pytest.approx(np.mean(np.asarray(sums) >= abs(values.sum())))


def test_sign_flips_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for items in (10, 60):
        values = rng.normal(size=items) + 0.25
        known = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=1
        ).pvalue
        assert sign_flip_p(values) == pytest.approx(known, abs=4 * math.sqrt(known / RESAMPLES))


@quick
@given(OUTCOMES)
def test_outcomes_agree_with_statsmodels_and_with_sign_flips(both: NDArray[np.float64]) -> None:
    first, second = both
    table = [[int(((first == a) & (second == b)).sum()) for b in (1, 0)] for a in (1, 0)]
    found = compare_outcomes(first, second)
    assert found.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert found.p_value == pytest.approx(sign_flip_p(first - second))
    assert found.low <= found.mean * len(first) / (len(first) + 2) <= found.high


def test_interval_and_p_are_near_those_of_the_t_test() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=40) * 10  # pairing takes the large variance between items away
    first, second = base + 0.3 + rng.normal(size=40) * 0.3, base
    found = paired_difference(list(first), list(second))
    known = stats.ttest_rel(first, second)
    low, high = known.confidence_interval(0.95)
    assert found.mean == pytest.approx(float((first - second).mean()))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert found.is_significant
    assert found == paired_difference(list(first), list(second))


def test_counts_of_values_are_resampled_as_the_values_are() -> None:
    rng = np.random.default_rng(2)
    values = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=400)
    drawn, dense = bootstrap_means(values), bootstrap_means(values[:, None])[:, 0]
    assert drawn.mean() == pytest.approx(values.mean(), abs=1e-3)
    assert drawn.std() == pytest.approx(dense.std(), rel=0.05)
    assert drawn.std() == pytest.approx(values.std() / 20, rel=0.05)


def test_large_samples_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=50)
    kept = bootstrap_means(values, seed=7)
    monkeypatch.setattr("dualscale_mamba.statistics.resampling._KEPT_BYTES", 0)
    assert np.array_equal(bootstrap_means(values, seed=7), kept)
    assert not np.array_equal(bootstrap_means(values, seed=8), kept)


def test_tasks_count_alike_and_are_resampled_by_themselves() -> None:
    rng = np.random.default_rng(4)
    tasks = [rng.normal(size=2000) + 1, rng.normal(size=100) * 3]
    found = compare(tasks)
    error = math.sqrt(1 / 2000 + 9 / 100) / 2
    assert found.mean == pytest.approx((tasks[0].mean() + tasks[1].mean()) / 2)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.15)
    assert found.pairs == 2100
    low, high = average_interval(tasks)
    assert (low, high) == pytest.approx((found.low, found.high))


def test_equal_arms_and_constant_differences() -> None:
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    constant = paired_difference([2.0] * 8, [1.0] * 8)
    assert (constant.mean, constant.low, constant.high) == (1.0, 1.0, 1.0)
    assert constant.p_value == 2.0**-7
    assert constant.detectable is None


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_values_that_are_not_paired_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="paired values are needed"):
        paired_difference(first, second)
    with pytest.raises(ValueError, match="paired outcomes 0 or 1 are needed"):
        compare_outcomes(np.asarray(first), np.asarray(second))


def test_tasks_of_different_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="all of as many seeds"):
        compare([np.zeros((2, 5)), np.zeros((3, 5))])
    with pytest.raises(ValueError, match="tasks of two items or more"):
        compare([np.zeros(1)])


def test_seeds_widen_the_interval_and_raise_the_p_value() -> None:
    rng = np.random.default_rng(5)
    items = rng.normal(size=50) * 0.1 + 0.5
    one = compare([items])
    noisy = compare([np.stack([items - 0.6, items, items + 0.6])])
    assert noisy.p_value > one.p_value
    assert noisy.low < one.low < one.high < noisy.high
    assert (noisy.detectable or 0) > (one.detectable or 1)
    same = compare([np.stack([items, items, items])])
    assert (same.p_value, same.low, same.high) == (one.p_value, one.low, one.high)
    assert same.seeds == 3


@settings(max_examples=10, deadline=None)  # statsmodels collects garbage at every call
@given(RATES)
def test_holm_is_what_statsmodels_says_and_keeps_the_order(p_values: list[float]) -> None:
    found = holm(p_values)
    assert found == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert all(given <= adjusted <= 1 for given, adjusted in zip(p_values, found, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.asarray(found)[order]) >= 0)


@quick
@given(RATES, st.integers(0, 7), st.floats(0.0, 1.0))
def test_holm_is_monotone(p_values: list[float], place: int, factor: float) -> None:
    place %= len(p_values)
    smaller = [p * factor if index == place else p for index, p in enumerate(p_values)]
    assert holm(smaller)[place] <= holm(p_values)[place] + 1e-12


@pytest.mark.parametrize(("discordant", "pairs"), [(0, 500), (5, 500), (40, 500), (300, 500), (9, 10)])
def test_detectable_share_is_near_the_normal_approximation(discordant: int, pairs: int) -> None:
    found = detectable_share(discordant, pairs)
    assert 0 < found <= 1
    if discordant >= 40:  # Connor, Biometrics 43 (1987), solved for the difference by iteration
        share, shift = discordant / pairs, 0.0
        for _ in range(50):
            spread = 1.96 * math.sqrt(share) + 0.8416 * math.sqrt(share - shift**2)
            shift = spread / math.sqrt(pairs)
        assert found == pytest.approx(shift, rel=0.12)


def test_intervals_of_single_arms() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(size=(60, 2)) * [1, 5] + [3, 40]
    low, high = mean_intervals(values)
    for column in range(2):
        known = stats.t.interval(0.95, 59, values[:, column].mean(), stats.sem(values[:, column]))
        assert (low[column], high[column]) == pytest.approx(known, rel=0.03)
    assert np.isnan(mean_intervals(values[:1])).all()
    assert share_interval(np.repeat([1.0, 0.0], [8, 2])) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    ends = ratio_interval(values[:, 0] * 2, values[:, 0])
    assert ends == pytest.approx((2.0, 2.0))
