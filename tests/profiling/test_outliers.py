"""The dense map and the lists name the same outliers, and take what the formulas say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.ops import reference_pair
from dualscale_mamba.profiling import outliers

shapes = st.tuples(st.integers(1, 2), st.integers(1, 100), st.integers(1, 300))


@settings(deadline=None, max_examples=25)
@given(shapes, st.floats(0.0005, 0.3), st.integers(0, 5))
def test_formulas_are_the_tensors(shape: outliers.Shape, density: float, seed: int) -> None:
    made = outliers.write(shape, density, seed)
    assert int(made.is_outlier.sum()) == round(density * made.is_outlier.numel())
    assert made.mask.nbytes == outliers.map_bytes(shape)
    if shape[1] >= 32:  # the lists of a shorter sequence have less room
        assert made.outliers.nbytes == outliers.lists_bytes(shape, density)


@settings(deadline=None, max_examples=25)
@given(shapes, st.floats(0.0005, 0.3), st.integers(0, 5))
def test_both_name_the_outliers(shape: outliers.Shape, density: float, seed: int) -> None:
    made = outliers.write(shape, density, seed)
    dense = reference_pair.read_selectors(made.mask, None, shape[2])
    sparse = reference_pair.read_selectors(made.beside_lists, made.outliers, shape[2])
    assert torch.equal(dense, made.is_outlier)
    assert torch.equal(sparse, made.is_outlier)
    assert 0 <= made.full_share <= 1


def test_what_lists_of_one_in_a_thousand_save() -> None:
    shape = (1, 2048, 1536)
    assert outliers.map_bytes(shape) == 2048 * 1536 / 8
    assert outliers.saved(shape, 0.001) == 0.9375
    made = outliers.write(shape, 0.001)
    assert made.full_share < 0.005
    assert 0.93 < 1 - made.used_bytes / made.mask.nbytes <= 0.9375
    # Four bytes an outlier, an index and nothing else, as in the founding note.
    assert 1 - 4 * (2048 * 1536 // 1000) / outliers.map_bytes(shape) == pytest.approx(0.97, abs=0.003)


def test_no_list_is_longer_than_the_map() -> None:
    shape = (1, 1024, 1024)
    assert outliers.saved(shape, 0.05) == 0 < outliers.saved(shape, 0.04)
