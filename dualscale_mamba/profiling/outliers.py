"""Side data of a second scale: a bit a value, a list of the outliers, or nothing at all.

A code with two scales must tell which one a value has. The dense map spends one bit on every value. The sparse list
names the outliers alone: values are cut into tiles of 65,536, so that an offset takes 16 bits; each outlier adds the
8 bits of its own code, each tile where its entries begin (32 bits). The `dual` mode reads it off the code and
stores nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 2**16
OFFSET_BYTES, CODE_BYTES, START_BYTES = 2, 1, 4


def map_bytes(values: int) -> int:
    """The dense map: one bit a value, packed."""
    return math.ceil(values / 8)


def list_bytes(values: int, outliers: int) -> int:
    """The sparse list: 3 bytes an outlier and the beginning of each tile's entries."""
    tiles = math.ceil(values / TILE)
    return outliers * (OFFSET_BYTES + CODE_BYTES) + (tiles + 1) * START_BYTES


def saved(values: int, outliers: int) -> float:
    """Share of the map's bytes that the list does without; negative where it is longer."""
    return 1.0 - list_bytes(values, outliers) / map_bytes(values)


class OutlierList(NamedTuple):
    """The sparse list as tensors.

    Attributes:
        offsets: uint16 (outliers,) within their tiles, ascending in each.
        codes: int8 (outliers,).
        starts: int32 (tiles + 1,), the first entry of each tile, and the number of all.
    """

    offsets: Tensor
    codes: Tensor
    starts: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the three."""
        return self.offsets.nbytes + self.codes.nbytes + self.starts.nbytes

    def indices(self) -> Tensor:
        """int64 (outliers,): the places in the flat tensor."""
        counts = self.starts.diff().long()
        tiles = torch.arange(counts.numel()).repeat_interleave(counts)
        return tiles * TILE + self.offsets.long()


@dataclass(frozen=True)
class Synthetic:
    """A made SSM input and both kinds of side data for it.

    Attributes:
        mask: bool (values,), true at outliers.
        packed: uint8 (values / 8,), the map.
        entries: The list.
    """

    mask: Tensor
    packed: Tensor
    entries: OutlierList


def synthesize(values: int, density: float, seed: int = 0) -> Synthetic:
    """Side data of normal values whose largest ``density * values`` are the outliers."""
    made = torch.randn(values, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(values, dtype=torch.bool)
    mask[made.topk(round(density * values)).indices] = True
    codes = (made / made.max() * 127).round().to(torch.int8)
    return Synthetic(mask, pack(mask), listed(mask, codes))


def pack(mask: Tensor) -> Tensor:
    """bool (values,) -> uint8 (ceil(values / 8),), the first value in the lowest bit."""
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def listed(mask: Tensor, codes: Tensor) -> OutlierList:
    """The list of a mask (values,) and the codes (values,) int8 of which it names some."""
    places = mask.nonzero()[:, 0]
    tiles = math.ceil(mask.numel() / TILE)
    starts = torch.searchsorted(places, torch.arange(tiles + 1) * TILE).to(torch.int32)
    return OutlierList((places % TILE).to(torch.uint16), codes[places], starts)
