"""Side data of a second scale: a bit a value, a list of the outliers, or nothing at all.

A code with two scales must tell which one a value has. The dense map (`dual_mask`) spends one bit on every value. The
lists (`dual_sparse`) name the outliers alone, in two bytes each, with room for more than are expected; what they are is
in :mod:`dualscale_mamba.formats.pair`. The `dual` mode reads it off the code and stores nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.dual_sparse import capacity_for
from dualscale_mamba.formats.pair import (
    ENTRY_BYTES,
    TILE,
    PairCode,
    list_bytes,
    mask_bytes,
    pair_code,
    pair_rows,
    tiles,
)
from dualscale_mamba.ops import reference_pair

Shape = tuple[int, int, int]  # batch, length, channels


def map_bytes(shape: Shape) -> int:
    """The dense map: one bit a value, packed."""
    return mask_bytes(*shape)


def lists_bytes(shape: Shape, density: float) -> int:
    """The lists of a share of outliers, the room that stays empty included."""
    return list_bytes(*shape, capacity_for(density))


def entries_bytes(shape: Shape, density: float) -> int:
    """What lists without any room to spare would take: an entry each outlier, and their number each tile."""
    batch, length, channels = shape
    return ENTRY_BYTES * (round(density * math.prod(shape)) + batch * tiles(length, channels))


def saved(shape: Shape, density: float) -> float:
    """Share of the map's bytes that the lists do without."""
    return 1.0 - lists_bytes(shape, density) / map_bytes(shape)


@dataclass(frozen=True)
class Written:
    """Side data as the operators write them, for a made SSM input of one layer.

    Attributes:
        is_outlier: bool (batch, length, channels).
        mask: uint8, the dense map.
        outliers: int16, the lists.
        beside_lists: uint8, the mask of those tiles whose lists are full.
    """

    is_outlier: Tensor
    mask: Tensor
    outliers: Tensor
    beside_lists: Tensor

    @property
    def is_full(self) -> Tensor:
        """Which tiles have more outliers than room, bool, a tile each."""
        return self.outliers[..., 0] > self.outliers.shape[3] - 1

    @property
    def full_share(self) -> float:
        """Share of such tiles."""
        return float(self.is_full.double().mean()) if self.is_full.numel() else 0.0

    @property
    def used_bytes(self) -> int:
        """Of the lists, and of the part of the mask of tiles whose list is full, taken as whole tiles."""
        return self.outliers.nbytes + int(self.is_full.sum()) * TILE // 8


def write(shape: Shape, density: float, seed: int = 0) -> Written:
    """Encode normal values of which a share, spread evenly, are outliers."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    size = values.abs().flatten()
    count = round(density * size.numel())
    threshold = size.kthvalue(size.numel() - count).values.double()[None]
    rows = pair_rows(Range(-threshold, threshold, size.max().double()[None]), 1.25)
    limit = torch.nextafter(threshold.float(), threshold.float() + 1)  # beyond it is the very share
    factor = limit / rows[:, 4]
    rows = rows * torch.stack([factor, 1 / factor, factor, 1 / factor, factor], dim=1)
    rows[:, 4] = limit
    dense, sparse = pair_code(rows), pair_code(rows, capacity_for(density))
    mask, _ = _encoded(values, dense)
    beside, outliers = _encoded(values, sparse)
    assert outliers is not None
    return Written(values.abs() >= rows[0, 4], mask, outliers, beside)


def _encoded(values: Tensor, code: PairCode) -> tuple[Tensor, Tensor | None]:
    batch, length, channels = values.shape
    mask, outliers = code.side_data(batch, length, channels)
    assert mask is not None
    reference_pair.encode_pair(values, code.rows, mask, outliers)
    return mask, outliers
