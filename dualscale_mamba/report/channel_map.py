"""Which channels the outliers are in: a picture of every layer, and a table of every channel."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dualscale_mamba.report.drawing import clean, new_figure, save_figure
from dualscale_mamba.sites import short_name
from dualscale_mamba.study.files import write_text

TABLE, PICTURE = "channels.csv", "channels.png"
# Shares below this are drawn as this.
SMALLEST = 1e-6


def write_channels(
    folder: Path, channels: Mapping[str, Sequence[tuple[float, float]]], percentile: float, title: str
) -> Path:
    """Write ``channels.csv`` and ``channels.png``.

    Args:
        folder: Of the run.
        channels: By full site name, of each channel the share of its values beyond the site's threshold, and its
            largest magnitude.
        percentile: Of the thresholds.
        title: Of the picture.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["site", "channel", "outlier_share", "absmax"])
    for site, own in channels.items():
        writer.writerows([site, index, *pair] for index, pair in enumerate(own))
    write_text(folder / TABLE, text.getvalue())
    _draw(folder / PICTURE, channels, percentile, title)
    return folder / PICTURE


def _draw(
    path: Path, channels: Mapping[str, Sequence[tuple[float, float]]], percentile: float, title: str
) -> None:
    """A row a layer, its channels in the order of their outliers; a panel for each kind of site."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    panels: dict[str, list[tuple[str, list[float]]]] = {}
    for site, own in channels.items():
        layer = re.search(r"\d+", site)
        shares = sorted((max(share, SMALLEST) for share, _ in own), reverse=True)
        panels.setdefault(short_name(site), []).append((layer[0] if layer else site, shares))
    norm = LogNorm(SMALLEST, 1.0)
    heights = [0.24 * len(rows) + 0.9 for rows in panels.values()]
    figure = new_figure(11, sum(heights) + 1.2, title)
    every = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (site, rows) in zip(every, panels.items(), strict=True):
        axes.imshow(
            [shares for _, shares in rows], aspect="auto", norm=norm, cmap="magma", interpolation="nearest"
        )
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylabel("layer", fontsize=9)
        axes.set_xlabel("channel, in the order of its outliers", fontsize=9)
        clean(axes, f"{site}: share of a channel's values beyond the {percentile:g} % threshold of its layer")
    bar = figure.colorbar(ScalarMappable(norm, "magma"), ax=list(every), pad=0.01, fraction=0.03)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)
