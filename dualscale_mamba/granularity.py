"""How many codes a site has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError


class Granularity(Protocol):
    """Which channels of a site share a code."""

    @property
    def name(self) -> str:
        """As in ``conf/granularity``."""
        ...

    def assignment(self, channels: int, clusters: Tensor | None) -> Tensor | None:
        """The group of each channel.

        Args:
            channels: Number of channels of the site.
            clusters: int64 ``(channels,)``, what :mod:`dualscale_mamba.quantization.clusters` found for the
                site; None where it found one group or was not asked.

        Returns:
            int64 ``(channels,)``, or None where all channels share one code.
        """
        ...


@dataclass(frozen=True)
class PerTensor:
    """One code for the whole site."""

    name: ClassVar[str] = "per_tensor"

    def assignment(self, channels: int, clusters: Tensor | None) -> Tensor | None:
        """Always None."""
        return None


@dataclass(frozen=True)
class PerChannel:
    """One code a channel: free in a kernel whose threads own their channels."""

    name: ClassVar[str] = "per_channel"

    def assignment(self, channels: int, clusters: Tensor | None) -> Tensor | None:
        """Channel i has code i."""
        return torch.arange(channels)


@dataclass(frozen=True)
class PerGroup:
    """One code a group of similar channels.

    In Mamba-2 heads of similar size are clustered inside each SSD group, and the channels of such a cluster,
    sorted by size inside every head, are cut at the same places; B and C have one code an SSD group. In
    Mamba-1, without heads, the channels are clustered by size alone.

    Args:
        head_groups: Clusters of heads in an SSD group, at least 1.
        channel_groups: Cuts of the sorted channels of a head, at least 1.
    """

    head_groups: int = 4
    channel_groups: int = 4
    name: ClassVar[str] = "per_group"

    def __post_init__(self) -> None:
        for key in ("head_groups", "channel_groups"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"granularity.{key}", value, "a whole number above 0")

    def assignment(self, channels: int, clusters: Tensor | None) -> Tensor | None:
        """What the clustering found; None where it left the site as one group."""
        return clusters
