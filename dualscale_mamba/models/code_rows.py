"""The codes of neighbouring sites as one operator's output code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class JoinedRows:
    """Code rows of neighbouring columns as one tensor, a row a column; made anew only when one of them changes."""

    def __init__(self) -> None:
        self._made: tuple[tuple[Tensor, ...], Tensor] | None = None

    def __call__(self, rows: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
        """Join codes of one family.

        Args:
            rows: fp32 (1 or widths[i], 8 | 512) each.
            widths: Columns of each.

        Returns:
            fp32 (sum(widths), 8 | 512), or the rows themselves where there is only one code.
        """
        if len(rows) == 1:
            return rows[0]
        if self._made is None or not self._is_made_of(rows):
            joined = torch.cat([r.expand(n, -1) for r, n in zip(rows, widths, strict=True)])
            self._made = (tuple(rows), joined.contiguous())
        return self._made[1]

    def _is_made_of(self, rows: Sequence[Tensor]) -> bool:
        """By identity: a site that gets another code gets another tensor."""
        assert self._made is not None
        made_of = self._made[0]
        return len(made_of) == len(rows) and all(a is b for a, b in zip(made_of, rows, strict=True))
