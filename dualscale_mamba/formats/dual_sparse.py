"""Two scales and a list of the values that have the outer one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Range, check_headroom
from dualscale_mamba.formats.pair import TILE, PairCode, pair_code, pair_rows
from dualscale_mamba.observers.histogram import Histogram

DEFAULT_SHARE = 0.01


@dataclass(frozen=True)
class DualSparse:
    """The values of `dual_mask`, with a list of the outliers' places in the stead of the mask.

    A list has room for ``slack`` times the outliers that calibration saw in a tile of 32 tokens and 64 channels, an odd
    number so that its entries and their count are whole words. A tile with more of them uses its part of a mask; the
    values are the same in any case.

    Args:
        headroom: The outer scale reaches so many times the largest value seen, in [1, 16].
        slack: In [0, 100].
    """

    headroom: float = 1.25
    slack: float = 1.25
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
    """Entries of a full tile's list for a share of outliers: odd, at most what fills a tile."""
    wanted = math.ceil(slack * share * TILE)
    return min(wanted + (wanted + 1) % 2, TILE)
