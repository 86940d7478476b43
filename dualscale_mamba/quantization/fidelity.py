"""How well every format codes what was counted, without running the model; and which settings suit each layer best.

The bound is Lloyd's: his 256 levels are fitted to the counted values themselves (:mod:`formats.lloyd_max`). A proposal
takes, layer by layer, the percentile and the split of the codes with the least error: of the values themselves
(``mse``), of what the mixer makes of them (``output``), or of the next-token distribution when that site alone is
quantized (``kl``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch

from dualscale_mamba.formats.base import ScaleMode, Searchable
from dualscale_mamba.formats.lloyd_max import LloydMax
from dualscale_mamba.observers.base import Fitted
from dualscale_mamba.observers.histogram import FEW_GROUPS, Histogram
from dualscale_mamba.observers.per_layer import PERCENTILE, Chosen
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.progress import bar
from dualscale_mamba.quantization.sensitivity import Bench, restored
from dualscale_mamba.quantization.site import Site

OBJECTIVES = ("mse", "output", "kl")


@dataclass(frozen=True)
class Line:
    """How one format at one percentile codes one site.

    Attributes:
        site: Full name.
        granularity: Which channels share a code.
        format: File of the group ``scale_mode``.
        percentile: Of the threshold.
        sqnr_db: Signal to quantization noise.
        below_bound_db: How much less that is than with Lloyd's levels in the same granularity.
        squared_error: Mean, over all values.
        codes_used: Different levels that the values reach, mean over groups.
        clipped_share: Of the values, beyond the first or last level.
        bits_per_value: Side data included.
    """

    site: str
    granularity: str
    format: str
    percentile: float
    sqnr_db: float
    below_bound_db: float
    squared_error: float
    codes_used: float
    clipped_share: float
    bits_per_value: float


COLUMNS = tuple(each.name for each in fields(Line))


def compare(
    granularity: str,
    counted: Mapping[str, tuple[Histogram, float | None]],
    modes: Mapping[str, ScaleMode],
    percentiles: Sequence[float],
) -> Iterator[Line]:
    """Every format at every percentile, site by site; a format that needs a floor is left out where there is none,
    one that chooses a scale for each channel where all have one.

    Args:
        granularity: By name, for the lines.
        counted: Histogram and analytic floor of each site by full name.
        modes: By name.
        percentiles: Of the thresholds.
    """
    for site, (histogram, floor) in bar(list(counted.items()), f"formats, {granularity}", "site"):
        bound, _ = histogram.quality(Percentile(100.0).fit(histogram, floor, LloydMax()).code)
        # Many groups have many bins together: fewer points in each say as much, in half the time.
        inside = 4 if histogram.groups <= FEW_GROUPS else 2
        for name, mode in modes.items():
            if mode.needs_floor and floor is None:
                continue
            if getattr(mode, "needs_channels", False) and histogram.groups == 1:
                continue
            for percent in percentiles:
                code = Percentile(percent).fit(histogram, floor, mode).code
                found = histogram.coding(code, inside)
                yield Line(
                    site, granularity, name, percent, found.sqnr_db, bound - found.sqnr_db, found.squared_error,
                    found.codes_used, found.clipped_share, code.bits_per_value,
                )  # fmt: skip


@dataclass(frozen=True)
class Proposal:
    """What suits one site.

    Attributes:
        site: Full name.
        settings: ``percentile`` and settings of the scale mode.
        error: By the objective.
        configured: Error of the settings that the configuration has.
        tried: Candidates that were measured by the objective.
    """

    site: str
    settings: Mapping[str, Any]
    error: float
    configured: float
    tried: int


def candidates(
    histogram: Histogram, floor: float | None, mode: ScaleMode, percentiles: Sequence[float], most: int
) -> list[Chosen]:
    """The settings with the least squared error on the histogram, best first, at most so many.

    Args:
        histogram: Of the site.
        floor: Of the site.
        mode: The configured scale mode; its variants are tried where it has some.
        percentiles: Of the thresholds.
        most: How many are wanted.
    """
    variants = mode.variants() if isinstance(mode, Searchable) else [mode]
    every = [Chosen(percent, _settings(variant, mode)) for percent in percentiles for variant in variants]
    errors = [histogram.coding(one.fit(histogram, floor, mode).code).squared_error for one in every]
    order = sorted(range(len(every)), key=lambda index: errors[index])
    return [every[index] for index in order[:most]]


def _settings(variant: ScaleMode, mode: ScaleMode) -> dict[str, Any]:
    """In what a variant differs, or may differ, from the configured mode."""
    if not isinstance(mode, Searchable) or not is_dataclass(variant) or isinstance(variant, type):
        return {}
    varied = [asdict(each) for each in mode.variants() if is_dataclass(each) and not isinstance(each, type)]
    return {
        key: value for key, value in asdict(variant).items() if len({str(each[key]) for each in varied}) > 1
    }


def propose(
    bench: Bench, objective: str, percentiles: Sequence[float], most: int, percentile: float
) -> list[Proposal]:
    """The best settings of every site that carries the scale mode.

    Args:
        bench: The prepared model, its calibration, and text for the objectives that run it.
        objective: One of ``OBJECTIVES``.
        percentiles: Of the thresholds that are tried.
        most: Candidates of a site, by squared error, that are measured by an objective that runs the model.
        percentile: What the configuration has; it is always measured.
    """
    sites = {name: site for name, site in bench.model.sites().items() if bench.recipe.carries(name)}
    found = []
    with restored(bench.model), torch.no_grad():
        for name, site in bar(list(sites.items()), f"proposals by {objective}", "site"):
            histogram, mode = bench.calibration.histograms[name], bench.recipe.mode_of(name)
            assert mode is not None, "a study of formats has one to propose settings of"
            best = candidates(histogram, site.floor, mode, percentiles, most)
            trials = [Chosen(percentile), *best]
            errors = [
                error_of(bench, objective, name, site, one.fit(histogram, site.floor, mode)) for one in trials
            ]
            index = min(range(len(trials)), key=lambda i: errors[i])
            chosen = {PERCENTILE: trials[index].percentile, **trials[index].settings}
            found.append(Proposal(name, chosen, errors[index], errors[0], len(trials)))
    return found


def error_of(bench: Bench, objective: str, name: str, site: Site, fitted: Fitted) -> float:
    """The error of one site's code, all other sites off.

    Args:
        bench: As in :func:`propose`.
        objective: One of ``OBJECTIVES``.
        name: Of the site.
        site: It; off before and after.
        fitted: Its code.
    """
    histogram = bench.calibration.histograms[name]
    if objective == "mse":
        return histogram.coding(fitted.code).squared_error
    index = bench.first(name)
    site.set_code(fitted.code.expanded(histogram.assignment).to(bench.model.device))
    try:
        return bench.divergence(index) if objective == "kl" else _output_error(bench, index)
    finally:
        site.set_code(None)


def _output_error(bench: Bench, index: int) -> float:
    """Mean squared error of a block's output, relative to its mean square."""
    error, size = 0.0, 0.0
    for text in bench.texts:
        output, _ = bench.model.blocks()[index](*text.hidden[index], None)
        reference = text.hidden[index + 1][0].double()
        error += float((output.double() - reference).square().sum())
        size += float(reference.square().sum())
    return error / max(size, 1e-300)
