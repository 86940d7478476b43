"""The result of ``task=stress``: which format holds where, and in what way the others break."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dualscale_mamba.report.drawing import FIGURE, clean, new_figure, save_figure
from dualscale_mamba.report.tables import console, near

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

TABLE = "stress.csv"
# Beyond these the colour says no more.
DARKEST_DB, LIGHTEST_DB = 0.0, 50.0
EXACT_DB = 200.0
MARKS = {"coarse": "c", "clips": "k", "loses a channel": "x", "moves zero": "z", "refused": "-"}
LEGEND = "c below 20 dB, k clips more than 1 in 1,000, x noise is half a channel, z zero moves, - refused"
POINTS = 300


def show_stress(result: Mapping[str, Any], folder: Path) -> None:
    """Print a table for each granularity and calibration: signal to noise of each format in each regime.

    Args:
        result: Content of ``result.json``.
        folder: Where it lies.
    """
    out = console()
    found = result["stress"]["best"]
    for calibrated, granularity in _panels(found):
        own = [one for one in found if (one["calibrated"], one["granularity"]) == (calibrated, granularity)]
        out.print(_table(own, _title(calibrated, granularity)), "")
    out.print(LEGEND, style="dim")
    out.print(f"{near(folder)}/{TABLE}, {FIGURE}", style="dim", soft_wrap=True)


def _panels(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one["calibrated"], one["granularity"]) for one in found))


def _title(calibrated: str, granularity: str) -> str:
    on = "another draw of the same" if calibrated == "same" else calibrated
    return f"{granularity}, calibrated on {on}: dB at the best threshold"


def _marks(one: Mapping[str, Any]) -> str:
    return "".join(MARKS[word] for word in one["breaks"])


def _number(one: Mapping[str, Any]) -> str:
    return "" if one["refused"] else "exact" if one["sqnr_db"] >= EXACT_DB else f"{one['sqnr_db']:.0f}"


def _table(found: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    table.add_column("regime", no_wrap=True)
    formats = list(dict.fromkeys(one["format"] for one in found))
    for name in formats:
        table.add_column(name.rpartition("/")[2].replace("_", " "), justify="right", overflow="fold")
    by_place = {(one["regime"], one["format"]): one for one in found}
    for regime in dict.fromkeys(one["regime"] for one in found):
        cells = [by_place[regime, name] for name in formats]
        table.add_row(regime, *(f"{_number(one)} [red]{_marks(one)}[/]".strip() for one in cells))
    return table


def write_stress_figure(folder: Path, result: Mapping[str, Any], values: Mapping[str, Tensor]) -> Path:
    """Tails of the regimes, and a map of formats and regimes for each granularity and calibration.

    Args:
        folder: Of the run.
        result: Content of ``result.json``.
        values: A draw of each regime, (tokens, channels).
    """
    found = result["stress"]["best"]
    panels = _panels(found)
    formats = list(dict.fromkeys(one["format"] for one in found))
    regimes = list(dict.fromkeys(one["regime"] for one in found))
    height, columns = 1.6 + 0.34 * len(formats), min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(7.2 * columns + 0.5, 3.6 + height * rows, "What formats make of made SSM inputs")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[3.4, *([height] * rows)])
    _draw_tails(figure.add_subplot(grid[0, :]), values)
    for index, (calibrated, granularity) in enumerate(panels):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns])
        own = [one for one in found if (one["calibrated"], one["granularity"]) == (calibrated, granularity)]
        _draw_map(axes, own, formats, regimes, _title(calibrated, granularity))
    figure.supxlabel(LEGEND, fontsize=9)
    save_figure(figure, folder / FIGURE)
    return folder / FIGURE


def _draw_tails(axes: Axes, values: Mapping[str, Tensor]) -> None:
    """The share of values that are larger, over the magnitude; a regime without values but zero has no line."""
    from matplotlib import colormaps

    colours = colormaps["tab20"]
    for index, (name, found) in enumerate(values.items()):
        ordered = found.abs().flatten().sort(descending=True).values
        count = len(ordered)
        places = sorted({round(count ** (i / POINTS)) - 1 for i in range(POINTS + 1)})
        heights = ordered[places].tolist()
        if heights[0] > 0:
            shares = [100 * (place + 1) / count for place in places]
            axes.plot(heights, shares, label=name, color=colours(index % 20), linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left=1e-2)
    axes.set_xlabel("magnitude", fontsize=9)
    axes.set_ylabel("% of the values beyond", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    clean(axes, "Tails of the made values")


def _draw_map(
    axes: Axes, found: Sequence[Mapping[str, Any]], formats: Sequence[str], regimes: Sequence[str], title: str
) -> None:
    """A cell for each format and regime: dB, and letters where it breaks."""
    by_place = {(one["format"], one["regime"]): one for one in found}
    heights = [
        [min(max(by_place[name, regime]["sqnr_db"], DARKEST_DB), LIGHTEST_DB) for regime in regimes]
        for name in formats
    ]
    axes.imshow(heights, aspect="auto", cmap="viridis", vmin=DARKEST_DB, vmax=LIGHTEST_DB)
    for row, name in enumerate(formats):
        for column, regime in enumerate(regimes):
            one = by_place[name, regime]
            light = heights[row][column] > 0.6 * LIGHTEST_DB
            axes.text(
                column, row, f"{_number(one)} {_marks(one)}".strip(), ha="center", va="center", fontsize=7,
                color="black" if light else "white", fontweight="bold" if one["breaks"] else "normal",
            )  # fmt: skip
    axes.set_yticks(range(len(formats)), [name.rpartition("/")[2] for name in formats])
    axes.set_xticks(range(len(regimes)), [name.replace("_", "\n") for name in regimes])
    clean(axes, title)
    axes.tick_params(axis="x", labelsize=6)
