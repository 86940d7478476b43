"""What every profiler takes and gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dualscale_mamba.evaluation.base import Metric


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    Attributes:
        model: A :class:`~dualscale_mamba.models.mamba.MambaLM`, or another that has its methods.
        device: Where it lives.
        bits_per_value: Mean stored bits of an activation value at the quantized sites, or None.
    """

    model: Any
    device: torch.device
    bits_per_value: float | None = None


class Profiler(Protocol):
    """A callable with settings; ``conf/profiling`` names the implementations."""

    def __call__(self, subject: Subject) -> dict[str, Metric]:
        """Measure."""
        ...
