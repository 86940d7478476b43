"""Two scales and a list of the values that have the outer one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Range, check_headroom
from dualscale_mamba.formats.pair import ENTRY_BYTES, TILE, PairCode, pair_code, pair_rows
from dualscale_mamba.observers.histogram import Histogram

DEFAULT_SHARE = 0.01
SPREAD = 3.0  # standard deviations
LONGEST = TILE // 8 // ENTRY_BYTES - 1  # entries and their number take what the tile's mask takes


@dataclass(frozen=True)
class DualSparse:
    """The values of `dual_mask`, with a list of the outliers' places in the stead of the mask.

    The lists have the room that :func:`capacity_for` gives the outliers that calibration saw. A tile with more of them
    uses its part of a mask; the values are the same in any case.

    Args:
        headroom: The outer scale reaches so many times the largest value seen, in [1, 16].
        slack: Factor of the room, in [0, 100].
    """

    headroom: float = 1.25
    slack: float = 1.0
    needs_floor: ClassVar[bool] = False
    has_side_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_headroom(self.headroom)
        if not 0.0 <= self.slack <= 100.0:
            raise ConfigError("scale_mode.slack", self.slack, "a number in [0, 100]")

    def fit(self, range_: Range, histogram: Histogram | None = None) -> PairCode:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`; without a histogram 1 % are taken for outliers."""
        rows = pair_rows(range_, self.headroom)
        share = DEFAULT_SHARE if histogram is None else float(histogram.share_above(rows[:, 4]).mean())
        return pair_code(rows, capacity_for(share, self.slack))


def capacity_for(share: float, slack: float = DualSparse.slack) -> int:
    """Entries of a full tile's list for a share of outliers.

    A tile of 32 tokens and 64 channels has so many on average; room for the average alone would leave a third of the
    lists full, each of which costs its tile's mask. So there is room for three standard deviations more, as evenly
    spread outliers have them. The number is odd, so that entries and their count are whole words, and no list is longer
    than the mask that it replaces.

    Args:
        share: Of the values, in [0, 1].
        slack: Factor of that room.
    """
    mean = share * TILE
    wanted = math.ceil(slack * (mean + SPREAD * math.sqrt(mean)))
    return min(wanted + (wanted + 1) % 2, LONGEST)
