"""A site's values as a histogram, with the levels of every format drawn below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualscale_mamba.report.picture import _draw_histogram, _draw_levels, _figure, _save

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
    figure = _figure(11, 3.6 + 0.34 * len(levels), title)
    axes = figure.subplots(2, 1, height_ratios=[2.6, 0.5 + 0.34 * len(levels)])
    _draw_histogram(axes[0], found)
    _draw_levels(axes[1], [(label, name, own) for name, (label, own) in levels.items()], found)
    _save(figure, folder / PICTURE)
    return folder / PICTURE
