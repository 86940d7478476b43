"""What all pictures share: figures written whole, colours of scale modes, axes of values and percentiles."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualscale_mamba.study.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The picture of a run.
FIGURE = "figure.png"
# Okabe & Ito's palette: told apart with any kind of colour vision.
COLOURS = {
    "single": "#0072B2",
    "control": "#56B4E9",
    "affine": "#009E73",
    "dual": "#D55E00",
    "dual_symmetric": "#E69F00",
    "soft_edge": "#CC79A7",
    "dual_channel": "#332288",
    "dual_mask": "#882255",
    "dual_sparse": "#AA4499",
    "fp8_e4m3": "#999999",
    "fp8_e5m2": "#666666",
    "lloyd_max": "#B8A800",
    "fp16": "#000000",
}
MARKERS = "sDv^PX<>*"
OTHER_COLOUR = "#7F7F7F"
# Below this magnitude an axis of values is linear, above it logarithmic.
LINEAR_BELOW = 0.1
# A percentile is drawn by how far it is from 100; 100 itself has its place beyond the last one.
NEAREST_TO_ALL = 0.002
DPI = 150


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches, with a title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the whole file or none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    write_bytes(path, drawn.getvalue())


def clean(axes: Axes, title: str) -> None:
    """Give axes their title and take away what says nothing."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def colour_of(scale_mode: str) -> str:
    """The colour of a scale mode in every picture."""
    return COLOURS.get(scale_mode, OTHER_COLOUR)


def draw_histogram(axes: Axes, found: Mapping[str, Any]) -> None:
    """Shares of the values of a site, as ``distribution.json`` has them."""
    centres, share = found["centres"], found["share"]
    seen = [(x, y) for x, y in zip(centres, share, strict=True) if y > 0]
    places, heights = zip(*seen, strict=True)
    axes.fill_between(places, heights, step="mid", color="#CFCFCF", linewidth=0)
    axes.set_yscale("log")
    axes.set_ylabel("share of values", fontsize=9)
    value_axis(axes, [x for x, _ in seen])
    axes.tick_params(labelbottom=False)
    site = str(found["site"]).replace(".mixer", "")
    clean(axes, f"Values of {site} while calibrating, and the levels of each code")


def value_axis(axes: Axes, values: Sequence[float]) -> None:
    """A scale that is linear around zero and logarithmic outside, with ticks to match."""
    low, high = min(values), max(values)
    axes.set_xscale("asinh", linear_width=LINEAR_BELOW)
    ticks = [-10.0, -1.0, -0.25, 0.0, 0.25, 1.0, 3.0, 10.0, 30.0, 100.0]
    axes.set_xticks([tick for tick in ticks if low * 1.3 <= tick <= high * 1.3])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks([], minor=True)
    axes.set_xlim(low * 1.15 if low < 0 else low - 0.05, high * 1.15)


def draw_levels(
    axes: Axes, rows: Sequence[tuple[str, str, Sequence[float]]], found: Mapping[str, Any]
) -> None:
    """One row of ticks for each code: label, scale mode, levels."""
    shown = [row for row in rows if row[2]]
    for index, (_, mode, levels) in enumerate(reversed(shown)):
        axes.eventplot(levels, lineoffsets=index, linelengths=0.72, linewidths=0.7, colors=colour_of(mode))
    axes.set_yticks(range(len(shown)), [label for label, _, _ in reversed(shown)], fontsize=9)
    seen = [x for x, y in zip(found["centres"], found["share"], strict=True) if y > 0]
    value_axis(axes, seen)
    clean(axes, "")
    axes.set_xlabel("value (linear around zero, logarithmic outside)", fontsize=9)


def log_axis(axes: Axes, values: Sequence[float], vertical: bool = False) -> None:
    """Logarithmic, with few round ticks however short the axis is."""
    from matplotlib.ticker import FixedLocator, NullLocator

    (axes.set_yscale if vertical else axes.set_xscale)("log")
    seen = [value for value in values if value > 0]
    if not seen:
        return
    low, high = math.log10(min(seen)), math.log10(max(seen))
    steps = (1.0,) if high - low > 3 else (1.0, 3.0) if high - low > 1 else (1.0, 2.0, 3.0, 5.0)
    ticks = [
        step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 2) for step in steps
    ]
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axis.set_minor_locator(NullLocator())


def percentile_place(percentile: float) -> float:
    """Where a percentile lies on its axis: the share of values beyond it."""
    return max(100.0 - percentile, NEAREST_TO_ALL)


def percentile_axis(axes: Axes, percentiles: Sequence[float]) -> None:
    """Logarithmic in the share of values beyond the threshold, with the percentiles as ticks."""
    axes.set_xscale("log")
    shown = [
        p for p in sorted(set(percentiles)) if re.fullmatch(r"9+0?(\.0|\.9+)?|100\.0|95\.0", str(float(p)))
    ]
    axes.set_xticks([percentile_place(p) for p in shown], [f"{p:g}" for p in shown])
    axes.set_xticks([], minor=True)
    axes.invert_xaxis()
    axes.set_xlabel("percentile of the threshold", fontsize=9)
