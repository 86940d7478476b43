"""Channels of similar size in one group: sort, cluster, and reorder the model so that groups are contiguous.

Sort-and-cluster of Quamba2 (Chiang et al. 2025, section 4) from its mathematics, with two choices of our own: profiles
are compared as logarithms, because the step of a code is in proportion to the size of its values, and the sorted
channels are cut by an exact one-dimensional partition in place of k-means.

In Mamba-2 every reordering stays inside an SSD group, whose heads share B and C and a group of the gated norm, so that
the model's function is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.granularity import PerGroup
from dualscale_mamba.models.config import Mamba2Config
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.mamba2 import Mamba2Mixer
from dualscale_mamba.quantization.observation import observe
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.sites import SSM_INPUT, short_name

# A longer row of channels is averaged in this many blocks before it is cut: the search is quadratic.
MAX_CUT_POINTS = 256
SMALLEST_SIZE = 1e-6


@dataclass
class Arrangement:
    """What sort-and-cluster found.

    Attributes:
        order: By layer index: int64 ``(E,)``, the former place of each channel of x (Mamba-2 only).
        clusters: By full site name: int64 ``(channels,)``, the group of each channel in its new place. A site that is
            absent is one group.
    """

    order: dict[int, Tensor] = field(default_factory=dict)
    clusters: dict[str, Tensor] = field(default_factory=dict)

    def state(self) -> dict[str, Tensor]:
        """Tensors that :meth:`from_state` takes."""
        tensors = {f"order/{layer}": order for layer, order in self.order.items()}
        return tensors | {f"clusters/{name}": found for name, found in self.clusters.items()}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Arrangement:
        """What :meth:`state` gave."""
        made = cls()
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "order":
                made.order[int(name)] = tensor
            else:
                made.clusters[name] = tensor
        return made


class ChannelSizes:
    """The size of each channel: its mean magnitude over a sequence, the largest over the sequences.

    Attributes:
        sizes: fp32 ``(channels,)``, empty before the first update.
    """

    def __init__(self) -> None:
        self.sizes = torch.zeros(0)

    def update(self, values: Tensor) -> None:
        """Take in values (B, L, channels)."""
        seen = values.detach().float().abs().mean(dim=1).amax(dim=0).cpu()
        self.sizes = torch.maximum(self.sizes, seen) if self.sizes.numel() else seen


def arrange(model: MambaLM, batches: Sequence[Tensor], recipe: Recipe) -> Arrangement | None:
    """Cluster the channels for ``granularity=per_group``; None for other granularities.

    Args:
        model: As loaded, before :func:`~dualscale_mamba.quantization.pipeline.prepare`.
        batches: Token ids, each (B, L).
        recipe: Says which sites are grouped and in how many groups.
    """
    granularity = recipe.granularity
    if not isinstance(granularity, PerGroup) or not recipe.grouped_sites:
        return None
    return _compute(model, batches, recipe, granularity)


def _compute(model: MambaLM, batches: Sequence[Tensor], recipe: Recipe, granularity: PerGroup) -> Arrangement:
    (name,) = SSM_INPUT[recipe.family]
    sizes = measure_sizes(model, batches, name)
    made = Arrangement()
    for index, block in enumerate(model.blocks()):
        site = f"layers.{index}.mixer.{name}"
        mixer = block.mixer
        if not isinstance(mixer, Mamba2Mixer):
            made.clusters[site] = cluster_channels(
                sizes[site], granularity.head_groups * granularity.channel_groups
            )
            continue
        config = model.config
        assert isinstance(config, Mamba2Config)
        shaped = sizes[site].reshape(config.n_groups, config.n_heads // config.n_groups, -1)
        found = sort_and_cluster(shaped, granularity.head_groups, granularity.channel_groups)
        made.order[index], made.clusters[site] = found
        if config.n_groups > 1:
            for other in ("B", "C"):
                groups = torch.arange(config.n_groups).repeat_interleave(config.d_state)
                made.clusters[f"layers.{index}.mixer.{other}"] = groups
    return made


def measure_sizes(model: MambaLM, batches: Sequence[Tensor], name: str) -> dict[str, Tensor]:
    """Size of each channel of the sites called ``name``, by full site name."""
    watched = {full: ChannelSizes() for full in model.sites() if short_name(full) == name}
    observe(model, batches, watched, "cluster")
    return {full: found.sizes for full, found in watched.items()}


def cut_points(values: NDArray[np.float64], parts: int) -> list[int]:
    """Where to cut a row of numbers into ``parts`` runs with the least sum of squares around their means.

    Args:
        values: ``(n,)``, in their order.
        parts: Number of runs; fewer where there are fewer numbers.

    Returns:
        The first index of every run but the first, ascending.
    """
    n = len(values)
    parts = min(parts, n)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    squares = np.concatenate([[0.0], np.cumsum(values**2)])
    first, last = np.arange(n)[:, None], np.arange(1, n + 1)[None]
    length = np.maximum(last - first, 1)
    cost = squares[last] - squares[first] - (sums[last] - sums[first]) ** 2 / length
    cost = np.where(last > first, np.maximum(cost, 0.0), np.inf)  # of the run [first, last)
    best = np.concatenate([[np.inf], cost[0]])  # of the numbers before each place, in one run
    origins = []
    for _ in range(parts - 1):
        total = best[:n, None] + cost
        origins.append(total.argmin(axis=0))
        best = np.concatenate([[np.inf], total.min(axis=0)])
    cuts: list[int] = []
    end = n
    for origin in reversed(origins):
        end = int(origin[end - 1])
        cuts.append(end)
    return cuts[::-1]


def _runs(sizes: Tensor, parts: int) -> Tensor:
    """The run of each place of a sorted row of sizes (n,), int64."""
    row = sizes.double().clamp_min(SMALLEST_SIZE).log().numpy()
    edges = np.linspace(0, len(row), min(len(row), MAX_CUT_POINTS) + 1).round().astype(int)
    blocks = np.array([row[a:b].mean() for a, b in pairwise(edges)])
    starts = torch.zeros(len(row), dtype=torch.int64)
    starts[[int(edges[cut]) for cut in cut_points(blocks, parts)]] = 1
    return starts.cumsum(0)


def cluster_channels(sizes: Tensor, groups: int) -> Tensor:
    """The group of each channel by size alone: sizes (channels,) -> int64 (channels,)."""
    order = sizes.argsort(stable=True)
    clusters = torch.empty_like(order)
    clusters[order] = _runs(sizes[order], groups)
    return clusters


def sort_and_cluster(sizes: Tensor, head_groups: int, channel_groups: int) -> tuple[Tensor, Tensor]:
    """Order heads and channels by size and cut them into groups.

    Args:
        sizes: ``(SSD groups, heads of a group, P)``.
        head_groups: Clusters of heads in an SSD group.
        channel_groups: Cuts of the sorted channels of a head, at the same places for the heads of a cluster.

    Returns:
        Former place of each channel and its group, both int64 ``(E,)``.
    """
    _, heads, width = sizes.shape
    order, groups = [], []
    for number, group in enumerate(sizes):
        inside = group.argsort(dim=1, stable=True)  # channels of each head by size
        profiles = group.gather(1, inside)
        labels = _cluster_heads(profiles, head_groups)
        for label in range(int(labels.max()) + 1):
            members = torch.nonzero(labels == label).flatten()
            runs = _runs(profiles[members].clamp_min(SMALLEST_SIZE).log().mean(0).exp(), channel_groups)
            for head in members.tolist():
                order.append((number * heads + head) * width + inside[head])
                groups.append((number * head_groups + label) * channel_groups + runs)
    return torch.cat(order), torch.unique(torch.cat(groups), return_inverse=True)[1]


def _cluster_heads(profiles: Tensor, clusters: int) -> Tensor:
    """Ward clusters of the heads' sorted profiles (heads, P), numbered by size: int64 (heads,)."""
    if len(profiles) == 1:
        return torch.zeros(1, dtype=torch.int64)
    rows = profiles.double().clamp_min(SMALLEST_SIZE).log()
    found = torch.from_numpy(fcluster(linkage(rows.numpy(), "ward"), clusters, "maxclust")).long()
    names = torch.arange(1, int(found.max()) + 1)  # fcluster counts from 1
    by_size = torch.stack([rows[found == name].mean() for name in names]).argsort().argsort()
    return by_size[found - 1]


def reorder(model: MambaLM, arrangement: Arrangement) -> None:
    """Move heads and channels of every Mamba-2 mixer to their new places, in place.

    Raises:
        ConfigError: The gated norm's groups are not those of B and C, so that channels may not move.
    """
    for index, order in arrangement.order.items():
        mixer, config = model.blocks()[index].mixer, model.config
        if not isinstance(mixer, Mamba2Mixer) or not isinstance(config, Mamba2Config):
            raise TypeError(f"layer {index} has no heads to reorder")
        channels, heads = order.numel(), config.n_heads
        if mixer.norm.group_size % (channels // config.n_groups):
            raise ConfigError(
                "granularity", "per_group", "per_tensor or per_channel for this model",
                f"Its norm has groups of {mixer.norm.group_size} channels, smaller than an SSD group.",
            )  # fmt: skip
        order = order.to(model.device)
        head_order = order[:: channels // heads] // (channels // heads)
        _reorder_mixer(mixer, order, head_order)


def _reorder_mixer(mixer: Mamba2Mixer, order: Tensor, head_order: Tensor) -> None:
    channels = order.numel()
    states = mixer.conv1d.weight.shape[0] - channels  # rows of B and C, which stay
    kept = torch.arange(states, device=order.device)
    conv = torch.cat([order, channels + kept])
    rows = torch.cat([order, channels + conv, 2 * channels + states + head_order])
    in_proj, out_proj = mixer.in_proj, mixer.out_proj
    in_proj.weight.data = in_proj.weight.data[rows].contiguous()
    if in_proj.bias is not None:
        in_proj.bias.data = in_proj.bias.data[rows].contiguous()
    mixer.conv1d.weight.data = mixer.conv1d.weight.data[conv].contiguous()
    if mixer.conv1d.bias is not None:
        mixer.conv1d.bias.data = mixer.conv1d.bias.data[conv].contiguous()
    for parameter in (mixer.A_log, mixer.D, mixer.dt_bias):
        parameter.data = parameter.data[head_order].contiguous()
    mixer.state_matrix = None  # made of the former A_log
    mixer.norm.weight.data = mixer.norm.weight.data[order].contiguous()
    out_proj.weight.data = out_proj.weight.data[:, order].contiguous()
