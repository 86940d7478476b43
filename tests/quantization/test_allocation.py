"""The integer program finds what trying everything finds."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.allocation import Option, allocate

WORDS = ("w8a8", "w4a8", "w4a16", "w8a16")


def options_of(table: list[list[tuple[float, float]]]) -> list[Option]:
    """One unit for each row of (kl, cost)."""
    return [
        Option(f"layers.{unit}", {f"layers.{unit}": WORDS[rank]}, kl, cost)
        for unit, row in enumerate(table)
        for rank, (kl, cost) in enumerate(row)
    ]


def best_by_trying(options: list[Option], budget: float) -> tuple[float, float]:
    """Least divergence within the budget, and the least cost of it, over all choices."""
    units = [list(group) for _, group in itertools.groupby(options, key=lambda option: option.unit)]
    sums = ((sum(o.kl for o in taken), sum(o.cost for o in taken)) for taken in itertools.product(*units))
    within = [pair for pair in sums if pair[1] <= budget]
    least = min(kl for kl, _ in within)
    return least, min(cost for kl, cost in within if kl <= least * (1 + 1e-9))


numbers = st.integers(0, 12)
tables = st.lists(
    st.lists(st.tuples(numbers, numbers.map(lambda n: n + 1)), min_size=1, max_size=4), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(tables, st.floats(0.0, 1.0), st.sampled_from([1e-7, 1e-3, 1.0]), st.sampled_from([1.0, 1e6]))
def test_the_program_is_optimal(
    table: list[list[tuple[int, int]]], share: float, kl_unit: float, cost_unit: float
) -> None:
    options = options_of([[(kl * kl_unit, cost * cost_unit) for kl, cost in row] for row in table])
    costs = [[cost * cost_unit for _, cost in row] for row in table]
    low, high = (float(sum(of(row) for row in costs)) for of in (min, max))
    budget = low + share * (high - low)
    made = allocate(options, budget)
    kl, cost = best_by_trying(options, budget)
    assert made.kl == pytest.approx(kl, rel=1e-9, abs=1e-15)
    assert made.cost == pytest.approx(cost)
    assert made.cost <= budget * (1 + 1e-9)
    assert [option.unit for option in made.options] == [f"layers.{unit}" for unit in range(len(table))]


def test_divergences_of_very_different_size_are_all_seen() -> None:
    """A small divergence decides where the large ones are equal."""
    table = [[(5.0, 2.0), (5.0, 1.0)], [(1e-7, 2.0), (2e-7, 1.0)]]
    made = allocate(options_of(table), 3.0)
    assert made.widths == {"layers.0": "w4a8", "layers.1": "w8a8"}


def test_ties_have_one_winner() -> None:
    table = [[(1.0, 8.0), (2.0, 4.0)]] * 5
    made = allocate(options_of(table), 8 * 2 + 4 * 3)
    assert list(made.widths.values()) == ["w8a8", "w8a8", "w4a8", "w4a8", "w4a8"]
    shuffled = options_of(table)
    for seed in range(3):
        random.Random(seed).shuffle(shuffled)
        ordered = sorted(shuffled, key=lambda option: (option.unit, WORDS.index(option.widths[option.unit])))
        assert allocate(ordered, 28.0) == made


def test_a_budget_below_the_cheapest_choice_is_refused() -> None:
    options = options_of([[(1.0, 8.0), (2.0, 4.25)], [(1.0, 8.0), (2.0, 4.25)]])
    with pytest.raises(ConfigError, match=r"task\.budget\.bits=8: allowed is at least 8\.5, the cheapest"):
        allocate(options, 8.0, "task.budget.bits")
    assert allocate(options, 8.5).cost == 8.5
    odd = options_of([[(1.0, 8.0), (2.0, 100001.00012)]] * 2)[1::2]
    with pytest.raises(ConfigError, match=r"at least 200002\.001, the cheapest"):
        allocate(odd, 1.0)
    assert len(allocate(odd, 200002.001).options) == 2


def test_nothing_to_lose_costs_least() -> None:
    assert allocate(options_of([[(0.0, 8.0), (0.0, 4.0)]] * 3), 100.0).cost == 12.0
