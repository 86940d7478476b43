"""The codes of neighbouring sites as one operator's output code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
Codes = Sequence[Tensor | None]


class MadeOfCodes(Generic[Made]):
    """Keeps what was made of some codes until one of them is another tensor, as it is when a site gets a new code."""

    def __init__(self) -> None:
        self._kept: tuple[tuple[Tensor | None, ...], Made] | None = None

    def __call__(self, codes: Codes, make: Callable[[], Made]) -> Made:
        """What ``make`` has made of these codes, or makes of them now."""
        if self._kept is None or not _are_same(self._kept[0], codes):
            self._kept = tuple(codes), make()
        return self._kept[1]


def _are_same(kept: Codes, codes: Codes) -> bool:
    return len(kept) == len(codes) and all(a is b for a, b in zip(kept, codes, strict=True))


def join_rows(codes: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """Code rows of neighbouring columns as one tensor.

    Args:
        codes: fp32 (1 or widths[i], 8 | 512) each, of one family.
        widths: Columns of each.

    Returns:
        fp32 (sum(widths), 8 | 512), or the only code itself.
    """
    if len(codes) == 1:
        return codes[0]
    return torch.cat([rows.expand(n, -1) for rows, n in zip(codes, widths, strict=True)]).contiguous()
