"""How outliers and errors change along a sequence: a table of every octave of positions, and a picture."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dualscale_mamba.quantization.positions import PERCENTILES, Stretch
from dualscale_mamba.report.drawing import MARKERS, clean, colour_of, new_figure, save_figure
from dualscale_mamba.sites import short_name
from dualscale_mamba.study.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, PICTURE = "drift.csv", "drift.png"
# Shares below this are drawn as this.
SMALLEST = 1e-6


def write_drift(
    folder: Path, stretches: Sequence[Stretch], percentile: float, labels: Mapping[str, str], title: str
) -> Path:
    """Write ``drift.csv`` and ``drift.png``.

    Args:
        folder: Of the run.
        stretches: Every octave of every site.
        percentile: Of the thresholds beyond which values are outliers.
        labels: What to call each format.
        title: Of the picture.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    formats = list(stretches[0].sqnr_db)
    heads = [f"percentile_{percent:g}" for percent in PERCENTILES]
    writer.writerow(
        ["site", "first", "last", *heads, "absmax", "outlier_share", *(f"sqnr_db_{f}" for f in formats)]
    )
    for one in stretches:
        numbers = [*one.percentiles, one.absmax, one.outlier_share, *one.sqnr_db.values()]
        writer.writerow([one.site, one.first, one.last, *numbers])
    write_text(folder / TABLE, text.getvalue())
    kinds: dict[str, list[Stretch]] = {}
    for one in stretches:
        kinds.setdefault(short_name(one.site), []).append(one)
    figure = new_figure(14, 3.6 * len(kinds) + 0.8, title)
    rows = figure.subplots(len(kinds), 3, squeeze=False)
    for axes, (site, own) in zip(rows, kinds.items(), strict=True):
        _draw_shares(axes[0], own, f"{site}: share beyond the {percentile:g} % threshold")
        _draw_reach(axes[1], own, f"{site}: 99.9 %, over the last octave's")
        _draw_errors(axes[2], own, labels, f"{site}: signal to noise, mean of layers")
    save_figure(figure, folder / PICTURE)
    return folder / PICTURE


def _layers(stretches: Sequence[Stretch]) -> dict[str, list[Stretch]]:
    found: dict[str, list[Stretch]] = {}
    for one in stretches:
        layer = re.search(r"\d+", one.site)
        found.setdefault(layer[0] if layer else one.site, []).append(one)
    return found


def _draw_shares(axes: Axes, stretches: Sequence[Stretch], title: str) -> None:
    """A row a layer, a column an octave."""
    from matplotlib.colors import LogNorm

    layers = _layers(stretches)
    shown = axes.imshow(
        [[max(one.outlier_share, SMALLEST) for one in own] for own in layers.values()],
        aspect="auto", norm=LogNorm(1e-4, 0.1), cmap="magma", interpolation="nearest",
    )  # fmt: skip
    axes.set_yticks(range(len(layers)), list(layers))
    axes.set_ylabel("layer", fontsize=9)
    _position_axis(axes, next(iter(layers.values())))
    axes.figure.colorbar(shown, ax=axes, pad=0.01, fraction=0.05)
    clean(axes, title)


def _draw_reach(axes: Axes, stretches: Sequence[Stretch], title: str) -> None:
    """A line a layer."""
    from matplotlib import colormaps

    layers = _layers(stretches)
    for index, (layer, own) in enumerate(layers.items()):
        last = max(own[-1].percentiles[-1], 1e-30)
        colour = colormaps["viridis"](index / max(1, len(layers) - 1))
        heights = [one.percentiles[-1] / last for one in own]
        axes.plot(range(len(own)), heights, marker="o", markersize=3, color=colour, label=layer)
    _position_axis(axes, next(iter(layers.values())))
    axes.legend(title="layer", fontsize=7, title_fontsize=7, frameon=False, ncols=2)
    axes.grid(alpha=0.25)
    clean(axes, title)


def _draw_errors(axes: Axes, stretches: Sequence[Stretch], labels: Mapping[str, str], title: str) -> None:
    """A line a format."""
    layers = list(_layers(stretches).values())
    for index, name in enumerate(stretches[0].sqnr_db):
        means = [
            sum(own[place].sqnr_db[name] for own in layers) / len(layers) for place in range(len(layers[0]))
        ]
        axes.plot(
            range(len(means)), means, color=colour_of(name), marker=MARKERS[index % len(MARKERS)], markersize=4,
            label=labels.get(name, name), linewidth=2.4 if name == "dual" else 1.2,
        )  # fmt: skip
    _position_axis(axes, layers[0])
    axes.set_ylabel("dB", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    clean(axes, title)


def _position_axis(axes: Axes, own: Sequence[Stretch]) -> None:
    """Octaves by their first position."""
    axes.set_xticks(range(len(own)), [str(one.first) for one in own])
    axes.set_xlabel("position in the sequence, from", fontsize=9)
