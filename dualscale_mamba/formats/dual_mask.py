"""Two scales and a bit beside every code: nine bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dualscale_mamba.formats.base import Range, check_headroom
from dualscale_mamba.formats.pair import PairCode, pair_code, pair_rows
from dualscale_mamba.observers.histogram import Histogram


@dataclass(frozen=True)
class DualMask:
    """``(outlier ? outer : inner) * q``, q in [-127, 127]: the founding note's dense map.

    The inner scale is that of `single`, the outer one reaches ``headroom`` times the largest value seen. The bits lie
    beside the codes, eight channels a byte, and are charged for.

    Args:
        headroom: In [1, 16].
    """

    headroom: float = 1.25
    needs_floor: ClassVar[bool] = False
    has_side_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_headroom(self.headroom)

    def fit(self, range_: Range, histogram: Histogram | None = None) -> PairCode:
        """See :class:`~dualscale_mamba.formats.base.ScaleMode`."""
        return pair_code(pair_rows(range_, self.headroom))
