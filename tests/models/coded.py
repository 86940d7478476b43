"""Codes for the sites of a model, wide enough for what the model computes."""

from __future__ import annotations

import torch

from dualscale_mamba.formats.base import Code, knee_code, table_code
from dualscale_mamba.models.language_model import MambaLM

IDS = torch.randint(0, 4096, (2, 21), generator=torch.Generator().manual_seed(1))


def plain_code(step: float, ratio: float = 1.0, zero: float = 0.0, knee: float = 127.0) -> Code:
    values = (torch.tensor([value], dtype=torch.float64) for value in (step, zero, knee, ratio))
    return knee_code(*values, has_knee=ratio > 1.0)


def channel_code(limit: float, channels: int) -> Code:
    """A symmetric code a channel, no two alike."""
    steps = torch.linspace(1.0, 2.0, channels, dtype=torch.float64) * (limit / 127)
    none = torch.zeros_like(steps)
    return knee_code(steps, none, none + 127, none + 1, has_knee=False)


def even_table(limit: float) -> Code:
    """255 levels, evenly spaced: what a symmetric code has, written as a table."""
    return table_code(torch.arange(-127, 128, dtype=torch.float64)[None] * (limit / 127))


def channel_table(limit: float, channels: int) -> Code:
    """An even table a channel, no two alike."""
    limits = torch.linspace(1.0, 2.0, channels, dtype=torch.float64)[:, None] * (limit / 127)
    return table_code(torch.arange(-127, 128, dtype=torch.float64) * limits)


def observed_maxima(model: MambaLM) -> dict[str, float]:
    """Largest magnitude at each site of an unquantized run."""
    maxima: dict[str, float] = {}

    class Largest:
        def __init__(self, name: str) -> None:
            self.name = name

        def update(self, values: torch.Tensor) -> None:
            maxima[self.name] = max(maxima.get(self.name, 0.0), float(values.abs().max()))

    for name, site in model.sites().items():
        site.statistic = Largest(name)
    model(IDS)
    for site in model.sites().values():
        site.statistic = None
    return maxima


def turn_on(model: MambaLM, *names: str) -> MambaLM:
    """Symmetric int8 codes at the named kinds of site."""
    maxima = observed_maxima(model)
    for name, site in model.sites().items():
        if name.rsplit(".", 1)[1] in names:
            site.set_code(plain_code(max(maxima[name], 1e-6) / 127))
    return model
