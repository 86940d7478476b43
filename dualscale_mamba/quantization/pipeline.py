"""prepare -> calibrate -> convert: from a floating-point model to an int8 one, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Code
from dualscale_mamba.formats.single import Single
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.mamba import MambaMixer
from dualscale_mamba.observers.base import Fitted, Observer
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.per_layer import Chosen
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import Calibration, calibration_key, run_calibration
from dualscale_mamba.quantization.clusters import Arrangement, arrange, reorder
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.rotation import base_for, rotate_columns, rotate_residual
from dualscale_mamba.quantization.site import Site
from dualscale_mamba.quantization.storage import stored
from dualscale_mamba.quantization.weight_pass import bits_per_weight, plan_of, quantize_weights, rounding_key
from dualscale_mamba.sites import short_name

__all__ = [
    "QuantizationReport",
    "arrange",
    "calibration_key",
    "convert",
    "plan_of",
    "prepare",
    "prepare_and_calibrate",
    "quantize_weights",
    "rounding_key",
    "summary_of",
    "turn_on",
]

SiteRow = dict[str, str | float]


@dataclass
class QuantizationReport:
    """What was chosen at every site that became int8.

    Attributes:
        sites: One row a site; see :func:`describe`.
        summary: Means over the layers by site, e.g. ``ssm_input/threshold``.
        widths: The width of every layer by its name, e.g. ``w4a8``.
        weights_bits: Bits of a weight of those layers, its share of the scales included, on average.
    """

    sites: list[SiteRow] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    widths: dict[str, str] = field(default_factory=dict)
    weights_bits: float | None = None


def prepare(model: MambaLM, recipe: Recipe, arrangement: Arrangement | None = None) -> MambaLM:
    """Reorder channels, then rotate what the recipe rotates, in place; the model's function stays the same.

    Args:
        model: As loaded.
        recipe: What is rotated.
        arrangement: From :func:`~dualscale_mamba.quantization.clusters.arrange`; None leaves all in place.

    Raises:
        ConfigError: The dimension has no Hadamard transform here, or the channels may not move.
    """
    if arrangement is not None:
        reorder(model, arrangement)
    if recipe.rotate_residual:
        rotate_residual(model)
    if not recipe.rotate:
        return model
    for block in model.blocks():
        mixer = block.mixer
        base = base_for(mixer.out_proj.in_features).to(model.device)
        mixer.out_proj.weight.data = rotate_columns(mixer.out_proj.weight, base)
        mixer.rotation = base
    return model


def prepare_and_calibrate(
    model: MambaLM, batches: Sequence[Tensor], recipe: Recipe, cache_dir: Path | None = None, key: str = ""
) -> Calibration:
    """Arrange and prepare the model in place, and count every site; or do as an equal run did.

    The order of channels and the counts are kept in one file: counts would be wrong in another order.

    Args:
        model: As loaded.
        batches: Token ids, each (B, L).
        recipe: What is rotated, and the granularity of each site.
        cache_dir: Where statistics are kept, or None to compute them always.
        key: From :func:`~dualscale_mamba.quantization.calibration.calibration_key`; required with ``cache_dir``.

    Raises:
        ConfigError: As :func:`prepare`.
    """

    def compute() -> Calibration:
        arrangement = arrange(model, batches, recipe)
        prepare(model, recipe, arrangement)
        return replace(run_calibration(model, batches, recipe, arrangement), key=key)

    if cache_dir is None:
        return compute()
    path = cache_dir / "calibration" / f"{key}.safetensors"
    calibration = stored(path, Calibration, compute)
    if calibration.reused:
        prepare(model, recipe, calibration.arrangement)
    return replace(calibration, path=path if path.is_file() else None)


def convert(
    model: MambaLM, calibration: Calibration, recipe: Recipe, batches: Sequence[Tensor] = ()
) -> QuantizationReport:
    """Put the weights on their grids and give every active site its code, in place.

    The weights come first, so that a rounding that reads inputs reads them as the values that they stand for, and finds
    the same weights whatever the codes of the activations are.

    Args:
        model: Prepared with the same recipe.
        calibration: Statistics of that model.
        recipe: What becomes int8 or int4.
        batches: Token ids, each (B, L), for a rounding that reads the inputs of layers.

    Raises:
        ConfigError: The recipe does not fit the model.
    """
    quantize_weights(model, recipe, batches)
    return turn_on(model, calibration, recipe)


def turn_on(model: MambaLM, calibration: Calibration, recipe: Recipe) -> QuantizationReport:
    """Give every active site its code, in place; the weights have been quantized."""
    report = QuantizationReport(weights_bits=bits_per_weight(model))
    report.widths = {name: recipe.width_of(name) for name in model.weight_layers()}
    for name, layer in model.weight_layers().items():
        if isinstance(layer, Linear):
            layer.decodes = recipe.width(name).activations is None
    for name, site in model.sites().items():
        if recipe.is_active(name):
            report.sites.append(_set_code(name, site, calibration, recipe, model.device))
    for block in model.blocks():
        if isinstance(block.mixer, MambaMixer):
            block.mixer.x_proj_reads = recipe.x_proj_reads
    report.summary = summary_of(report.sites)
    return report


def _set_code(
    name: str, site: Site, calibration: Calibration, recipe: Recipe, device: torch.device
) -> SiteRow:
    """Give a site its code, and describe it."""
    short = short_name(name)
    if recipe.is_per_token(short):
        site.set_code(_unit_code(device), per_token=True)
        return {"name": name, "format": "single", "observer": "per_token", "bits_per_value": 8.0}
    histogram, mode = calibration.histograms[name], recipe.mode_of(name)
    assert mode is not None
    if histogram.groups > 1 and not recipe.carries(name):  # counted for a layer that has a code a channel
        histogram = histogram.merged()
    observer = recipe.observer_of(name)
    fitted = observer.fit(histogram, site.floor, mode)
    site.set_code(fitted.code.expanded(histogram.assignment).to(device))
    return describe(name, histogram, fitted, observer, site.floor)


def _unit_code(device: torch.device) -> Code:
    """The code of a site whose rows carry their own scales."""
    rows = torch.tensor([[1.0, 1.0, 0.0, 127.0, 0.0, 0.0, -127.0, 127.0]], device=device)
    return Code(rows)


def describe(
    name: str, histogram: Histogram, fitted: Fitted, observer: Observer, floor: float | None
) -> SiteRow:
    """The facts of one site's code; where a site has several codes, means over them.

    Args:
        name: Of the site.
        histogram: Its counted values.
        fitted: Its code and how that was found.
        observer: What found it.
        floor: Analytic lower bound of the site, or None.

    Returns:
        ``inner_scale`` and ``outer_scale`` (steps next to zero and at the top), ``threshold`` (the value where the
        coarse part begins), ``knee`` (its code) and ``ratio`` (knee codes only), ``outlier_share`` of the counted
        values above the threshold, ``codes_used`` (levels that occur), ``range_max`` seen, ``sqnr_db``, ``percentile``,
        and ``sqnr_single_db``, what `single` would give with the same observer.
    """
    levels = fitted.code.levels().cpu().double()
    sqnr, codes_used = histogram.quality(fitted.code)
    single = sqnr
    if not isinstance(fitted.mode, Single):
        plain = Percentile(observer.percentile) if isinstance(observer, Chosen) else observer
        single, _ = histogram.quality(plain.fit(histogram, floor, Single()).code)
    above = torch.where(levels > 0, levels, torch.inf).amin(1)
    row: SiteRow = {
        "name": name,
        "format": type(fitted.mode).__name__.lower(),
        "observer": type(observer).__name__,
        "percentile": fitted.percentile,
        "inner_scale": float(above.mean()),
        "outer_scale": float(_last_step(levels).mean()),
        "threshold": float(fitted.range.inner.mean()),
        "level_min": float(levels[:, 0].mean()),
        "level_max": float(levels[:, -1].mean()),
        "outlier_share": float(histogram.share_above(fitted.range.inner).mean()),
        "range_min": float(histogram.minimum.min()),
        "range_max": float(histogram.maximum.max()),
        "codes_used": codes_used,
        "sqnr_db": sqnr,
        "sqnr_single_db": single,
        "bits_per_value": fitted.code.bits_per_value,
        "skipped": float(histogram.skipped),
    }
    if fitted.code.is_knee:
        _, _, zero, knee, gain, _, _, _ = fitted.code.rows.cpu().double().mean(0)
        row |= {"zero": float(zero), "knee": float(knee), "ratio": float(gain) + 1.0}
    return row


def _last_step(levels: torch.Tensor) -> torch.Tensor:
    """Distance between the two highest different levels of each group."""
    top = levels[:, -1:]
    below = torch.where(levels < top, levels, -torch.inf).amax(1)
    return top[:, 0] - below


def summary_of(sites: list[SiteRow]) -> dict[str, float]:
    """Means over the layers of every number, by short site name."""
    collected: dict[str, list[float]] = {}
    for row in sites:
        short = short_name(str(row["name"]))
        for key, value in row.items():
            if isinstance(value, float):
                collected.setdefault(f"{short}/{key}", []).append(value)
    return {key: sum(values) / len(values) for key, values in collected.items()}
