"""Random inputs for exercise_kernels.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dualscale_mamba.formats import knee_code, table_code

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Case = tuple[str, Callable[..., object], tuple[object, ...]]


class Inputs:
    """Random inputs of one device, the same in every run."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(0)

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=self.generator) * scale).to(dtype).to(self.device)

    def codes(self, *shape: int) -> Tensor:
        return torch.randint(-128, 128, shape, generator=self.generator, dtype=torch.int8).to(self.device)

    def knee(self, rows: int = 1, *, ratio: float = 6.0, knee: float = 31.0, scale: float = 0.01) -> Tensor:
        scales = scale * (1 + torch.rand(rows, generator=self.generator, dtype=torch.float64))
        full = torch.ones_like(scales)
        return knee_code(scales, -100.0 * full, knee * full, ratio * full).rows.to(self.device)

    def table(self, rows: int = 1) -> Tensor:
        levels = torch.randn(rows, 255, generator=self.generator, dtype=torch.float64)
        zero = torch.zeros(rows, 1, dtype=torch.float64)
        return table_code(torch.cat([levels, zero], dim=1).sort(dim=1).values).rows.to(self.device)

    def any_code(self, channels: int) -> Iterator[Tensor]:
        yield from (self.knee(), self.knee(channels), self.table(), self.table(channels))
