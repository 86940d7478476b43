"""What a picture shows of a code: how often values occur, and where the levels lie."""

from __future__ import annotations

from typing import Any

import torch

from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.quantization.calibration import Calibration
from dualscale_mamba.sites import is_ssm_input

BINS = 160
# Below this magnitude the bins are even, above it they widen with the value.
EVEN_BELOW = 0.05


def distribution(model: Any, calibration: Calibration | None) -> dict[str, Any] | None:
    """Histogram and levels of the SSM input in the layer that reaches furthest; None where nothing was counted.

    Args:
        model: Converted.
        calibration: The statistics from which it was converted.

    Returns:
        ``site``, bin ``centres`` and the ``share`` of values in each, and ``levels`` (of the group that
        reaches furthest; empty where the site is floating point).
    """
    found = {
        name: h for name, h in (calibration.histograms if calibration else {}).items() if is_ssm_input(name)
    }
    if not found:
        return None
    name = max(found, key=lambda key: float(found[key].absmax.max()))
    histogram, code = found[name], model.sites()[name].code
    channel = 0  # one of the group that reaches furthest
    if histogram.assignment is not None:
        channel = int(torch.nonzero(histogram.assignment == histogram.absmax.argmax())[0])
    levels = [] if code is None else torch.unique(code.levels()[channel].cpu().double()).tolist()
    centres, share = rebinned(histogram)
    return {"site": name, "centres": centres, "share": share, "levels": levels}


def rebinned(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Centres and shares of ``BINS`` bins over all groups together."""
    values, weights = histogram.points(inside=4)
    place = torch.asinh(values.double() / EVEN_BELOW)
    total = weights.sum(0)
    low, high = float(place.min()), float(place.max())
    index = ((place - low) / max(high - low, 1e-12) * BINS).long().clamp_max(BINS - 1)
    share = torch.zeros(BINS, dtype=torch.float64).index_add_(0, index, total) / total.sum().clamp_min(1.0)
    centres = (
        torch.sinh(low + (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS * (high - low)) * EVEN_BELOW
    )
    return centres.tolist(), share.tolist()
