"""Two scales with a selector beside each code: more than 256 levels, and side data that says which scale a code has.

The rows of such a code are fp32 ``(groups, 5)``, ``[inner, 1 / inner, outer, 1 / outer, limit]``;
``csrc/code.h`` is the same text in C++. A value of magnitude ``limit`` or more is an outlier, and
``decode(q) = (outlier ? outer : inner) * q`` with q in [-127, 127].

Which values are outliers is told in one of two ways, whose sizes ``csrc/pairs.h`` repeats:

mask
    uint8 ``(batch, length, ceil(channels / 8))``: bit i of byte j is that of channel ``8 j + i``.
outliers
    int16 ``(batch, ceil(length / 32), ceil(channels / 64), 1 + capacity)``, a list for each tile of 32 tokens and 64
    channels: how many outliers it has, then their indices ``64 token + channel`` within it, ascending. Where there are
    more than the capacity, the tile's bits stand in the mask; the mask's other bits are neither written nor read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Code, FormatError, Range, SideData, check_headroom

PAIR_WIDTH = 5
SYMMETRIC_MAX = 127
TILE_TOKENS, TILE_CHANNELS = 32, 64
TILE = TILE_TOKENS * TILE_CHANNELS
ENTRY_BYTES = 2


def mask_bytes(batch: int, length: int, channels: int) -> int:
    """The mask: a bit a value, channels padded to whole bytes."""
    return batch * length * math.ceil(channels / 8)


def list_bytes(batch: int, length: int, channels: int, capacity: int) -> int:
    """The lists: two bytes for each entry that a tile has room for, and two for their number."""
    return batch * tiles(length, channels) * (1 + capacity) * ENTRY_BYTES


def tiles(length: int, channels: int) -> int:
    """Tiles of one sequence."""
    return math.ceil(length / TILE_TOKENS) * math.ceil(channels / TILE_CHANNELS)


@dataclass(frozen=True)
class PairCode(Code):
    """Codes of two scales and a selector each.

    Attributes:
        rows: fp32 ``(groups, 5)``.
        bits_per_value: 8, and the mask's one or what the lists have room for.
        has_knee: False.
        capacity: Entries of the list of a full tile; None where a mask holds all selectors.
    """

    capacity: int | None = None

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or self.rows.shape[1] != PAIR_WIDTH:
            raise FormatError(f"pair rows must be (groups, {PAIR_WIDTH}), got {tuple(self.rows.shape)}")
        if self.rows.dtype != torch.float32:
            raise FormatError(f"code rows must be float32, got {self.rows.dtype}")
        if self.capacity is not None and not 0 <= self.capacity <= TILE:
            raise FormatError(f"a list has 0 to {TILE} entries, this one {self.capacity}")

    def levels(self) -> Tensor:
        """All values that occur, ascending, fp32 ``(groups, 509)``; outer ones that no value goes to are repeated."""
        inner, _, outer, inv_outer, limit = self.rows[:, :, None].unbind(1)
        steps = torch.arange(1, SYMMETRIC_MAX + 1, dtype=torch.float32, device=self.rows.device)
        first = torch.round(limit * inv_outer).clamp(1, SYMMETRIC_MAX)  # the first outer code in use
        side = torch.where(torch.isinf(limit), SYMMETRIC_MAX * inner, outer * torch.maximum(steps, first))
        middle = inner * torch.arange(-SYMMETRIC_MAX, SYMMETRIC_MAX + 1, device=self.rows.device)
        return torch.cat([-side.flip(1), middle, side], dim=1)

    def rounded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Code.rounded`; ranks are places in :meth:`levels`."""
        from dualscale_mamba.ops import reference_pair  # the operators read this module

        rows = self.rows.to(values.device)
        codes, is_outlier = reference_pair.encode_bits(values, rows)
        place = codes.long() + 2 * SYMMETRIC_MAX
        outside = torch.where(codes > 0, place + SYMMETRIC_MAX, place - SYMMETRIC_MAX)
        return torch.where(is_outlier, outside, place), reference_pair.decode_bits(
            codes, rows, is_outlier, values.dtype
        )

    def prove(self) -> PairCode:
        """See :meth:`Code.prove`."""
        super().prove()
        scales = self.rows[:, :4]
        if not ((scales > 0) & torch.isfinite(scales)).all() or not (self.rows[:, 4] > 0).all():
            raise FormatError("a scale or a limit is not positive and finite")
        return self

    def room(self, length: int) -> int | None:
        """Entries of the list of a tile in a sequence of that length; None without lists."""
        if self.capacity is None:
            return None
        return math.ceil(self.capacity * min(length, TILE_TOKENS) / TILE_TOKENS)

    def side_data(self, batch: int, length: int, channels: int) -> SideData:
        """Empty mask and lists for a tensor of these codes, on the device of the rows."""
        room, device = self.room(length), self.rows.device
        shape = (batch, length, math.ceil(channels / 8))
        mask = torch.empty(shape, dtype=torch.uint8, device=device)
        if room is None:
            return SideData(mask)
        places = (batch, math.ceil(length / TILE_TOKENS), math.ceil(channels / TILE_CHANNELS), 1 + room)
        return SideData(mask, torch.empty(places, dtype=torch.int16, device=device))

    def side_bytes(self, batch: int, length: int, channels: int) -> float:
        """Bytes of the mask, or of the lists; the mask beside lists is written and read where one is full."""
        room = self.room(length)
        if room is None:
            return mask_bytes(batch, length, channels)
        return list_bytes(batch, length, channels, room)

    def facts(self) -> dict[str, float | int | bool]:
        """See :meth:`Code.facts`."""
        own = {} if self.capacity is None else {"capacity": self.capacity}
        return super().facts() | own


def pair_rows(range_: Range, headroom: float) -> Tensor:
    """Rows of a proved pair: the threshold at 127 inner steps, ``headroom`` times the largest value at 127 outer ones.

    An outlier is what lies nearer to the first outer level beyond the threshold than to the threshold itself. Where the
    outer scale would not be the larger one, there are no outliers.

    Raises:
        ConfigError: The headroom is not allowed.
    """
    check_headroom(headroom)
    range_ = range_.clamped()
    inner, outer = ((size / SYMMETRIC_MAX).float() for size in (range_.inner, range_.outer * headroom))
    inner = inner.clamp_min(torch.finfo(torch.float32).tiny * 2**24)
    outer = torch.maximum(outer, inner)
    last = SYMMETRIC_MAX * inner.double()
    beyond = torch.ceil(last / outer.double()) * outer.double()
    limit = torch.where(outer > inner, (last + beyond) / 2, torch.inf).float()
    return torch.stack([inner, 1.0 / inner, outer, 1.0 / outer, limit], dim=1)


def pair_code(rows: Tensor, capacity: int | None = None) -> PairCode:
    """Prove a pair and count its bits: a mask's, or those of lists with so many entries for a full tile."""
    bits = 1.0 if capacity is None else 8.0 * list_bytes(1, TILE_TOKENS, TILE_CHANNELS, capacity) / TILE
    return PairCode(rows, 8.0 + bits, False, capacity).prove()
