"""Sort-and-cluster: groups of similar channels, and a reordered model that computes the same function."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.granularity import PerChannel, PerGroup, PerTensor
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.quantization.clusters import (
    Arrangement,
    arrange,
    cluster_channels,
    cut_points,
    reorder,
    sort_and_cluster,
)
from dualscale_mamba.quantization.recipe import Recipe

MODELS = ["embedded:mamba2-tiny", "random:mamba2-tiny"]  # one SSD group, two SSD groups


def tokens_for(model: MambaLM) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (2, 96), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> MambaLM:
    loaded = load_pretrained(request.param).model
    assert isinstance(loaded, MambaLM)
    return loaded


def within(values: np.ndarray, cuts: list[int]) -> float:
    return sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(values, cuts))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.integers(1, 4))
def test_cuts_are_the_best_of_all(values: list[float], parts: int) -> None:
    row = np.array(sorted(values))
    found = cut_points(row, parts)
    assert len(found) == min(parts, len(row)) - 1
    assert found == sorted(set(found))
    assert all(0 < cut < len(row) for cut in found)
    options = itertools.combinations(range(1, len(row)), len(found))
    best = min(within(row, list(cuts)) for cuts in options)
    assert within(row, found) <= best + 1e-9


@settings(max_examples=30, deadline=None)
@given(
    ssd_groups=st.sampled_from([1, 2]),
    heads=st.integers(1, 6),
    width=st.sampled_from([1, 3, 16]),
    head_groups=st.integers(1, 4),
    channel_groups=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_heads_stay_in_their_group_and_channels_in_their_head(
    ssd_groups: int, heads: int, width: int, head_groups: int, channel_groups: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(ssd_groups, heads, width, generator=generator) ** 3
    order, groups = sort_and_cluster(sizes, head_groups, channel_groups)
    channels = ssd_groups * heads * width
    assert torch.equal(order.sort().values, torch.arange(channels))
    former = order.reshape(ssd_groups, heads, width)
    assert torch.equal(former // (heads * width), torch.arange(ssd_groups)[:, None, None].expand_as(former))
    assert (former // width == former[..., :1] // width).all()  # whole heads move
    sorted_sizes = sizes.flatten()[order].reshape(ssd_groups, heads, width)
    assert (sorted_sizes.diff(dim=-1) >= 0).all()
    assert torch.equal(groups.unique(), torch.arange(int(groups.max()) + 1))
    assert groups.max() < ssd_groups * head_groups * channel_groups
    in_heads = groups.reshape(ssd_groups, heads, width)
    assert (in_heads.diff(dim=-1) >= 0).all()
    assert (
        len(set(in_heads[0].unique().tolist()) & set(in_heads[-1].unique().tolist())) == 0 or ssd_groups == 1
    )


def test_sizes_far_apart_are_told_apart() -> None:
    sizes = torch.tensor([[[1.0, 1.1, 9.0, 10.0], [50.0, 55.0, 400.0, 440.0], [1.05, 1.0, 9.5, 9.0]]])
    order, groups = sort_and_cluster(sizes, 2, 2)
    assert order.tolist() == [0, 1, 2, 3, 9, 8, 11, 10, 4, 5, 6, 7]
    assert groups.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3]
    assert cluster_channels(torch.tensor([5.0, 0.1, 5.1, 0.11, 60.0]), 3).tolist() == [1, 0, 1, 0, 2]


def test_reordering_keeps_the_function(model: MambaLM) -> None:
    tokens = tokens_for(model)
    before = model(tokens)
    recipe = Recipe(family="mamba2", granularity=PerGroup(2, 3))
    arrangement = arrange(model, [tokens], recipe)
    assert arrangement is not None
    assert all(site.statistic is None for site in model.sites().values())
    assert any(not torch.equal(o, torch.arange(o.numel())) for o in arrangement.order.values())
    reorder(model, arrangement)
    torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-5)
    cache = model.allocate_cache(2)
    model(tokens[:, :40], cache)
    torch.testing.assert_close(model.step(tokens[:, 40], cache), before[:, 40], rtol=1e-4, atol=1e-4)


def test_groups_are_those_of_the_reordered_channels(model: MambaLM) -> None:
    """Measured again in the new places, sizes rise inside every head and groups are contiguous."""
    tokens = tokens_for(model)
    recipe = Recipe(family="mamba2", granularity=PerGroup(2, 2))
    arrangement = arrange(model, [tokens], recipe)
    assert arrangement is not None
    moved = copy.deepcopy(model)
    reorder(moved, arrangement)
    again = arrange(moved, [tokens], recipe)
    assert again is not None
    for name, clusters in arrangement.clusters.items():
        assert torch.equal(again.clusters[name], clusters), name
    for order in again.order.values():
        channels = torch.arange(order.numel())
        assert (order == channels).double().mean() > 0.98  # ties in size may change places


def test_arrangement_survives_its_state(model: MambaLM) -> None:
    recipe = Recipe(family="mamba2", granularity=PerGroup(), scale_mode_sites=("x", "B", "C"))
    first = arrange(model, [tokens_for(model)], recipe)
    assert first is not None
    second = Arrangement.from_state(first.state())
    for part in ("order", "clusters"):
        one, other = getattr(first, part), getattr(second, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel()])
def test_other_granularities_need_no_arrangement(model: MambaLM, granularity: PerTensor) -> None:
    assert arrange(model, [], Recipe(family="mamba2", granularity=granularity)) is None
