"""What a picture shows of a code: how often values occur, and where the levels lie, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from dualscale_mamba.formats.base import Code
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.quantization.calibration import Calibration
from dualscale_mamba.sites import is_ssm_input, short_name

BINS = 160
# Below this magnitude the bins are even, above it they widen with the value.
EVEN_BELOW = 0.05
DIGITS = 5


def distribution(
    model: Any, calibration: Calibration | None, carriers: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Histograms and levels of every layer of the sites that carry the scale mode; None where nothing was counted.

    Args:
        model: Converted.
        calibration: The statistics from which it was converted.
        carriers: Short names of the sites to show; the SSM input is shown always.
        rows: Of the quantization report: each site's threshold.

    Returns:
        ``site``, the SSM input of the layer that reaches furthest, and ``sites`` by full name, each with bin
        ``centres`` and the ``share`` of values in each; where the site is int8 also the ``levels`` (of the group that
        reaches furthest), the ``threshold`` (mean over groups) and, for a code with a knee, the ``knee`` as a value.
    """
    found = {
        name: histogram
        for name, histogram in (calibration.histograms if calibration else {}).items()
        if is_ssm_input(name) or short_name(name) in carriers
    }
    inputs = [name for name in found if is_ssm_input(name)]
    if not inputs:
        return None
    thresholds = {row["name"]: row.get("threshold") for row in rows}
    sites = model.sites()
    return {
        "site": max(inputs, key=lambda name: float(found[name].absmax.max())),
        "sites": {name: _shown(h, sites[name].code, thresholds.get(name)) for name, h in found.items()},
    }


def _shown(histogram: Histogram, code: Code | None, threshold: float | None) -> dict[str, Any]:
    centres, share = rebinned(histogram)
    shown: dict[str, Any] = {"centres": _short(centres), "share": _short(share), "levels": []}
    if code is None:
        return shown
    channel = 0  # one of the group that reaches furthest
    if histogram.assignment is not None:
        channel = int(torch.nonzero(histogram.assignment == histogram.absmax.argmax())[0])
    shown["levels"] = _short(torch.unique(code.levels()[channel].cpu().double()).tolist())
    if threshold is not None:
        shown["threshold"] = _short([threshold])[0]
    if code.is_knee and code.has_knee:
        scale, _, zero, knee, gain, _, _, _ = code.rows[channel].cpu().double().tolist()
        if gain > 0:
            shown["knee"] = _short([scale * (knee - zero)])[0]
    return shown


def _short(values: Iterable[float]) -> list[float]:
    """Few digits: a picture needs no more, and a study has many layers."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


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
