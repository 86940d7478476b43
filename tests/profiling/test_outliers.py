"""The dense map and the sparse list hold the same, and take what the formulas say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.profiling import outliers


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200_000), st.floats(0.0005, 0.3))
def test_formulas_are_the_tensors(values: int, density: float) -> None:
    made = outliers.synthesize(values, density)
    count = int(made.mask.sum())
    assert count == round(density * values)
    assert made.packed.nbytes == outliers.map_bytes(values)
    assert made.entries.nbytes == outliers.list_bytes(values, count)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200_000), st.floats(0.0005, 0.3), st.integers(0, 5))
def test_both_name_the_outliers(values: int, density: float, seed: int) -> None:
    made = outliers.synthesize(values, density, seed)
    assert torch.equal(made.entries.indices(), made.mask.nonzero()[:, 0])
    bits = (made.packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    assert torch.equal(bits.reshape(-1)[:values].bool(), made.mask)


def test_a_list_of_one_in_a_thousand_saves_97_percent() -> None:
    values = 2048 * 1536
    assert outliers.map_bytes(values) == values / 8
    assert outliers.saved(values, values // 1000) == pytest.approx(0.975, abs=0.001)
    # Four bytes an outlier, an index and nothing else, as in the founding note.
    assert 1 - 4 * (values // 1000) / outliers.map_bytes(values) == pytest.approx(0.97, abs=0.003)


def test_a_list_of_many_is_longer_than_the_map() -> None:
    values = 2**20
    assert outliers.saved(values, values // 20) < 0 < outliers.saved(values, values // 30)
