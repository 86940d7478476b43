"""Positions in bins that double, and how a quantity grows from one to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A slope is fitted from here on: before it a text has hardly begun.
SETTLED = 16


class Octaves:
    """Positions 1 to ``length``, counted in tokens read: 1, 2, 3 to 4, 5 to 8 and so on.

    Args:
        length: The last position; its bin ends there, wherever the octave would.
        looks: At most so many positions of a bin are looked at closely: the last always, the others evenly.

    Attributes:
        ends: Last position of each bin.
        looks: Positions that are looked at, from 0, and their number in order.
    """

    def __init__(self, length: int, looks: int) -> None:
        count = math.ceil(math.log2(length)) + 1
        self.ends = [min(2**octave, length) for octave in range(count)]
        self.sizes = [end - start for start, end in zip([0, *self.ends[:-1]], self.ends, strict=True)]
        chosen = []
        for end, size in zip(self.ends, self.sizes, strict=True):
            number = min(looks, size)
            chosen.append([end - 1 - size * back // number for back in reversed(range(number))])
        self._looks = [len(own) for own in chosen]
        self.looks = {at: number for number, at in enumerate(at for own in chosen for at in own)}

    def of_positions(self, values: Tensor) -> Tensor:
        """Means of values (positions, ...) over each bin: (bins, ...)."""
        return torch.stack([part.mean(0) for part in torch.split(values, self.sizes)])

    def of_looks(self, values: Tensor) -> Tensor:
        """Means of values (looks, ...) over each bin: (bins, ...)."""
        return torch.stack([part.mean(0) for part in torch.split(values, self._looks)])

    def slope(self, means: Sequence[float]) -> float:
        """Doublings of a quantity a doubling of the position, by least squares from position 17 on; 0 where it is 0.

        Args:
            means: One a bin.
        """
        pairs = [
            (math.log2(end), math.log2(mean))
            for end, mean in zip(self.ends, means, strict=True)
            if end > SETTLED and mean > 0
        ]
        if len(pairs) < 2:
            return 0.0
        x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
        x = x - x.mean()
        return float((x * (y - y.mean())).sum() / (x * x).sum())
