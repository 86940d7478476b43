"""A site's values as a histogram, with the levels of every format drawn below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualscale_mamba.report.drawing import draw_histogram, draw_levels, new_figure, save_figure

PICTURE = "levels.png"


def write_levels(
    folder: Path, found: Mapping[str, Any], levels: Mapping[str, tuple[str, Sequence[float]]], title: str
) -> Path:
    """Write ``levels.png``.

    Args:
        folder: Of the run.
        found: The site's name, and ``centres`` and ``share`` of the bins of its histogram.
        levels: By format: what to call it, and its levels.
        title: Of the picture.
    """
    figure = new_figure(11, 3.6 + 0.34 * len(levels), title)
    axes = figure.subplots(2, 1, height_ratios=[2.6, 0.5 + 0.34 * len(levels)])
    draw_histogram(axes[0], found)
    draw_levels(axes[1], [(label, name, own) for name, (label, own) in levels.items()], found)
    save_figure(figure, folder / PICTURE)
    return folder / PICTURE
