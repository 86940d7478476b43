"""The picture of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualscale_mamba.report.collect import DISTRIBUTION
from dualscale_mamba.report.drawing import (
    COLOURS,
    FIGURE,
    MARKERS,
    clean,
    draw_histogram,
    draw_levels,
    new_figure,
    save_figure,
)
from dualscale_mamba.sites import is_ssm_input

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def furthest(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a run's distributions that of the site which reaches furthest, with its name as ``site``.

    Args:
        found: Content of ``distribution.json``; early ones hold a single site.
    """
    if found is None or "sites" not in found:
        return found
    return {**found["sites"][found["site"]], "site": found["site"]}


def write_figure(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """Picture of one run: how well each site is coded in each layer, and the levels of one SSM input.

    Args:
        folder: Of the run; ``distribution.json`` is read there.
        result: Content of ``result.json``.

    Returns:
        The file, or None where nothing is quantized.
    """
    path = folder / DISTRIBUTION
    found = furthest(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)
    signal = [site for site in result["sites"] if isinstance(site.get("sqnr_db"), (int, float))]
    if not signal and found is None:
        return None
    figure = new_figure(9, 7.5 if signal and found else 4.5, str(result["name"]))
    mode = str(result.get("choices", {}).get("scale_mode", ""))
    parts = int(bool(signal)) + (2 if found else 0)
    axes = figure.subplots(
        parts, 1, height_ratios=[3] * int(bool(signal)) + [3, 0.8] * int(found is not None), squeeze=False
    )
    rows = [row[0] for row in axes]
    if signal:
        _draw_signal(rows.pop(0), signal)
    if found:
        draw_histogram(rows[0], found)
        draw_levels(rows[1], [(mode or "levels", mode, found["levels"])], found)
    save_figure(figure, folder / FIGURE)
    return folder / FIGURE


def _draw_signal(axes: Axes, sites: Iterable[Mapping[str, Any]]) -> None:
    """Signal-to-noise ratio of each kind of site over the layers."""
    from matplotlib.ticker import MaxNLocator

    kinds: dict[str, list[tuple[int, float]]] = {}
    for site in sites:
        layer = re.search(r"\d+", str(site["name"]))
        kinds.setdefault(str(site["name"]).rpartition(".")[2], []).append(
            (int(layer[0]) if layer else 0, site["sqnr_db"])
        )
    palette = [c for c in COLOURS.values() if c not in ("#000000", "#D55E00")]
    for index, (kind, points) in enumerate(kinds.items()):
        chosen = is_ssm_input(kind)
        colour = COLOURS["dual"] if chosen else palette[index % len(palette)]
        layers, values = zip(*sorted(points), strict=True)
        width, marker = (2.5, "o") if chosen else (1.2, MARKERS[index % len(MARKERS)])
        axes.plot(layers, values, marker=marker, markersize=5, color=colour, linewidth=width, label=kind)
    clean(axes, "How well the codes fit the calibration values")
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("signal to noise, dB", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
