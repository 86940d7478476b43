"""Rules of the keys that name sites; the names themselves are the recipe's to check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.sites import ALL_SITES


def problems(plain: dict[str, Any]) -> Iterator[ConfigError]:
    """Lists where lists are meant, numbers where layers are.

    Args:
        plain: A resolved configuration.
    """
    quantize, active = plain["quantize"], plain["precision"]["activations"]["sites"]
    chosen, layers, formats = quantize["sites"], quantize.get("layers"), quantize.get("formats")
    if not (chosen is None or chosen == ALL_SITES or isinstance(chosen, list)):
        yield ConfigError("quantize.sites", chosen, "a list, as in quantize.sites=[x,B,C], or null")
    if not (active is None or active == ALL_SITES or isinstance(active, list)):
        allowed = "all, a list, or null for quantize.sites alone"
        yield ConfigError("precision.activations.sites", active, allowed)
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if layers == [] or not all(type(number) is int and number >= 0 for number in numbers):
        yield ConfigError("quantize.layers", layers, "the number of a layer, a list of them, or null for all")
    if not (formats is None or isinstance(formats, dict)):
        allowed = "a map of sites to files of scale_mode, as in {z: affine}, or null"
        yield ConfigError("quantize.formats", formats, allowed)
        return
    for name, value in (formats or {}).items():
        if isinstance(value, dict) and "scale_mode" not in value:
            allowed = "settings with a scale_mode, as in {scale_mode: single, percentile: 99.9}"
            yield ConfigError(f"quantize.formats.{name}", value, allowed)
