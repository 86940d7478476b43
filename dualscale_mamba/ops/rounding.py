"""The one rounding rule of this project."""

from __future__ import annotations

import torch
from torch import Tensor


def round_half_away(t: Tensor) -> Tensor:
    """Round half away from zero, exactly."""
    whole = torch.trunc(t)
    return torch.where((t - whole).abs() >= 0.5, whole + torch.sign(t), whole)
