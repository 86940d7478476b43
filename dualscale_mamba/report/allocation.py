"""What an allocation has found and chosen: a table on the console, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dualscale_mamba.report.drawing import FIGURE, clean, new_figure, save_figure
from dualscale_mamba.report.tables import console, near, number
from dualscale_mamba.sites import EMBEDDING, HEAD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

OUTER = (EMBEDDING, HEAD)
BLOCK = "block"
SMALLEST = 1e-9  # the least divergence that has a colour of its own
STYLES = {"w4": "bold yellow", "w8": "green", "w1": "dim"}
ORDER = ("in_proj", "x_proj", "dt_proj", "out_proj")


def place_of(unit: str) -> tuple[str, int]:
    """Row and column of a unit: its kind of layer, and its block (0 outside the blocks)."""
    if unit in OUTER:
        return unit, 0
    _, index, *rest = unit.split(".")
    return (rest[-1] if rest else BLOCK), int(index)


def widths_of_units(allocation: Mapping[str, Any]) -> dict[str, str]:
    """The chosen word of each unit: a block's is that of its in_proj."""
    widths = allocation["widths"]
    units = [unit for unit in allocation["sensitivity"] if unit in OUTER or "." in unit]
    return {unit: widths.get(unit, widths.get(f"{unit}.mixer.in_proj")) for unit in units}


def show_allocation(result: Mapping[str, Any], folder: Path) -> None:
    """Print the chosen width of each layer, and the whole beside every width throughout.

    Args:
        result: Content of ``result.json``.
        folder: Where it lies.
    """
    allocation, out = result["allocation"], console()
    out.print(_chosen(allocation))
    outer = [f"{name} {allocation['widths'][name]}" for name in OUTER if name in allocation["widths"]]
    if outer:
        out.print(", ".join(outer))
    out.print(
        f"predicted KL {number(allocation['predicted_kl'], '/kl')} nats/token (layers "
        f"{number(allocation['layers_kl'], '/kl')}, sites of no layer {number(allocation['sites_kl'], '/kl')}), "
        f"{allocation['bits']:.3f} bits a weight, {allocation['bytes'] / 1e6:.2f} MB",
        soft_wrap=True,
    )
    if "checked" in allocation:
        out.print("", _checked(allocation["checked"], allocation["predicted_kl"]))
    where = near(folder)
    out.print(f"{where}/precision/allocated.yaml, sensitivity.json, {FIGURE}", style="dim", soft_wrap=True)
    out.print(
        f"python run.py --config-dir {where} precision=allocated ...",
        style="dim",
        soft_wrap=True,
        markup=False,
    )


def _chosen(allocation: Mapping[str, Any]) -> Table:
    """One row a block, one column a kind of layer: the width, and the divergence that it brings."""
    found, chosen = allocation["sensitivity"], widths_of_units(allocation)
    kinds = _kinds(chosen)
    table = Table(
        title="width, and KL of that layer alone", title_justify="left", title_style="bold", show_edge=False
    )
    table.add_column("block", justify="right")
    for kind in kinds:
        table.add_column(kind, no_wrap=True)
    cells: dict[int, dict[str, str]] = {}
    for unit, word in chosen.items():
        kind, index = place_of(unit)
        if kind in kinds:
            kl = number(found[unit][word], "/kl")
            cells.setdefault(index, {})[kind] = f"[{STYLES[word[:2]]}]{word}[/] {kl}"
    for index, row in sorted(cells.items()):
        table.add_row(str(index), *(row.get(kind, "") for kind in kinds))
    return table


def _kinds(units: Sequence[str] | Mapping[str, Any]) -> list[str]:
    kinds = {place_of(unit)[0] for unit in units} - set(OUTER)
    return [kind for kind in (BLOCK, *ORDER) if kind in kinds]


def _checked(checked: Mapping[str, Any], predicted: float) -> Table:
    table = Table(title="the whole model", title_justify="left", title_style="bold", show_edge=False)
    names = list(next(iter(checked.values()))["kl"])
    for head in (
        "widths",
        "bits",
        "MB",
        "predicted KL",
        *(f"KL {name.removesuffix('/kl')}" for name in names),
    ):
        table.add_column(head, justify="left" if head == "widths" else "right")
    for name, of in checked.items():
        foretold = number(predicted, "/kl") if name == "allocated" else ""
        kl = (number(of["kl"][key], "/kl") for key in names)
        style = "bold" if name == "allocated" else None
        table.add_row(name, f"{of['bits']:.3f}", f"{of['bytes'] / 1e6:.2f}", foretold, *kl, style=style)
    return table


def write_allocation_figure(folder: Path, result: Mapping[str, Any]) -> Path:
    """Heat maps of the divergence, a panel for each kind of layer: blocks across, widths down, the chosen one framed.

    Args:
        folder: Of the run.
        result: Content of ``result.json``.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    allocation = result["allocation"]
    found, chosen = allocation["sensitivity"], widths_of_units(allocation)
    values = [max(kl, SMALLEST) for unit in chosen for kl in found[unit].values()]
    norm = LogNorm(min(values), max(max(values), min(values) * 1.01))
    panels = [[unit for unit in chosen if place_of(unit)[0] == kind] for kind in _kinds(chosen)]
    panels += [[unit for unit in chosen if unit in OUTER]]
    panels = [units for units in panels if units]
    heights = [max(len(found[unit]) for unit in units) + 0.9 for units in panels]
    blocks = max(len(units) for units in panels)
    figure = new_figure(
        min(max(0.42 * blocks + 3.5, 8.0), 22.0), 0.38 * sum(heights) + 1.2,
        f"{result['name']}: divergence of each layer alone\nframed: chosen, {allocation['bits']:.2f} bits a weight",
    )  # fmt: skip
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for one, units in zip(axes, panels, strict=True):
        _draw(one, units, found, chosen, norm)
    bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=list(axes), pad=0.01, fraction=0.04)
    bar.set_label("KL, nats/token", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, folder / FIGURE)
    return folder / FIGURE


def _draw(
    axes: Axes, units: Sequence[str], found: Mapping[str, Any], chosen: Mapping[str, str], norm: LogNorm
) -> None:
    from matplotlib.patches import Rectangle

    words = list(dict.fromkeys(word for unit in units for word in found[unit]))
    outside = units[0] in OUTER
    for column, unit in enumerate(units):
        for row, word in enumerate(words):
            if word not in found[unit]:
                continue
            colour = _colours()(norm(max(found[unit][word], SMALLEST)))
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
    for column, unit in enumerate(units):
        place = (column + 0.06, words.index(chosen[unit]) + 0.06)
        axes.add_patch(Rectangle(place, 0.88, 0.88, fill=False, edgecolor="#D55E00", linewidth=2.2))
    axes.set_xlim(0, max(len(units), 6 if outside else 1))
    axes.set_ylim(len(words), 0)
    axes.set_yticks([row + 0.5 for row in range(len(words))], words)
    labels = list(units) if outside else [str(place_of(unit)[1]) for unit in units]
    axes.set_xticks([column + 0.5 for column in range(len(units))], labels)
    axes.tick_params(length=0)
    kind = place_of(units[0])[0]
    clean(axes, "embedding and head" if outside else "blocks" if kind == BLOCK else f"{kind} of each block")
    axes.spines[["left", "bottom"]].set_visible(False)


def _colours() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"]
