"""The result of ``task=fidelity``: tables of formats, curves over the percentile, proposals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dualscale_mamba.report.drawing import (
    FIGURE,
    MARKERS,
    clean,
    colour_of,
    new_figure,
    percentile_axis,
    percentile_place,
    save_figure,
)
from dualscale_mamba.report.tables import console, near, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show_fidelity(result: Mapping[str, Any], folder: Path) -> None:
    """Print each format's best percentile and, where there are some, the proposals.

    Args:
        result: Content of ``result.json``.
        folder: Where it lies.
    """
    out, fidelity = console(), result["fidelity"]
    for site, granularity in _panels(fidelity["means"]):
        out.print(_formats(fidelity["means"], site, granularity), "")
    where = near(folder)
    if "proposals" in fidelity:
        objective = result["config"]["task"]["objective"]
        out.print(_proposals(fidelity, objective), "")
        for name, kl in fidelity.get("checked", {}).items():
            words = (
                "as proposed"
                if name == "proposed"
                else f"at percentile {fidelity['percentile']:g} everywhere"
            )
            out.print(f"KL with these sites alone quantized, {words}: {number(kl, '/kl')}", soft_wrap=True)
        out.print(
            f"python run.py --config-dir {where} observer=proposed ...",
            style="dim",
            soft_wrap=True,
            markup=False,
        )
    names = ("fidelity.csv", FIGURE, "levels.png", "channels.csv", "channels.png", "drift.csv", "drift.png")
    made = [name for name in names if (folder / name).is_file()]
    out.print(f"{where}/{', '.join(made)}", style="dim", soft_wrap=True)


def _panels(means: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one["site"], one["granularity"]) for one in means))


def _of(
    means: Sequence[Mapping[str, Any]], site: str, granularity: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Entries by format, best first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in means:
        if (one["site"], one["granularity"]) == (site, granularity):
            found.setdefault(one["format"], []).append(one)
    return dict(sorted(found.items(), key=lambda item: -max(one["sqnr_db"] for one in item[1])))


def _formats(means: Sequence[Mapping[str, Any]], site: str, granularity: str) -> Table:
    title = f"{site}, {granularity}: each format at its best percentile, means over the layers"
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    table.add_column("format")
    heads = ("percentile", "SQNR dB", "below the bound, dB", "codes used", "clipped", "bits")
    for head in heads:
        table.add_column(head, justify="right")
    for name, entries in _of(means, site, granularity).items():
        best = max(entries, key=lambda one: one["sqnr_db"])
        table.add_row(
            name, f"{best['percentile']:g}", f"{best['sqnr_db']:.2f}", f"{best['below_bound_db']:.2f}",
            f"{best['codes_used']:.0f}", f"{100 * best['clipped_share']:.3f} %", f"{best['bits_per_value']:g}",
        )  # fmt: skip
    return table


def _proposals(fidelity: Mapping[str, Any], objective: str) -> Table:
    title = f"proposals, by {objective} of that site alone"
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    table.add_column("site", no_wrap=True)
    keys = list(dict.fromkeys(key for one in fidelity["proposals"] for key in one["settings"]))
    for head in (*keys, objective, f"at {fidelity['percentile']:g}"):
        table.add_column(head.replace("_", " "), justify="right")
    for one in fidelity["proposals"]:
        chosen = (f"{one['settings'][key]:g}" if key in one["settings"] else "" for key in keys)
        errors = (f"{one[key]:.3g}" for key in ("error", "configured"))
        table.add_row(str(one["site"]).replace(".mixer", ""), *chosen, *errors)
    return table


def write_fidelity_figure(folder: Path, result: Mapping[str, Any]) -> Path:
    """Curves of every format over the percentile, a panel for each site and granularity; below them the proposals.

    Args:
        folder: Of the run.
        result: Content of ``result.json``.
    """
    fidelity = result["fidelity"]
    panels, proposals = _panels(fidelity["means"]), fidelity.get("proposals", [])
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(6.5 * columns + 1.5, 4.2 * rows + (2.8 if proposals else 0), str(result["name"]))
    grid = figure.add_gridspec(
        rows + bool(proposals), columns, height_ratios=[4.2] * rows + [2.4] * bool(proposals)
    )
    for index, (site, granularity) in enumerate(panels):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        _draw_curves(axes, _of(fidelity["means"], site, granularity), f"{site}, {granularity}")
        if index == columns - 1:
            axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if proposals:
        _draw_proposals(figure.add_subplot(grid[rows, :]), proposals, fidelity["percentile"])
    save_figure(figure, folder / FIGURE)
    return folder / FIGURE


def _draw_curves(axes: Axes, formats: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> None:
    """How far below the bound each format stays, over the share of values that are outliers."""
    for index, (name, entries) in enumerate(formats.items()):
        ordered = sorted(entries, key=lambda one: one["percentile"])
        axes.plot(
            [percentile_place(one["percentile"]) for one in ordered], [one["below_bound_db"] for one in ordered],
            color=colour_of(name), marker=MARKERS[index % len(MARKERS)], markersize=4, label=name,
            linewidth=2.4 if name == "dual" else 1.2,
        )  # fmt: skip
    percentile_axis(axes, [one["percentile"] for entries in formats.values() for one in entries])
    axes.invert_yaxis()
    axes.set_ylabel("dB below the bound of 256 levels", fontsize=9)
    axes.grid(alpha=0.25)
    clean(axes, title)


def _draw_proposals(axes: Axes, proposals: Sequence[Mapping[str, Any]], configured: float) -> None:
    """The proposed percentile of each layer; a line is the configured one."""
    layers: dict[str, list[tuple[int, float]]] = {}
    for one in proposals:
        layer = re.search(r"\d+", str(one["site"]))
        short = str(one["site"]).rpartition(".")[2]
        layers.setdefault(short, []).append((int(layer[0]) if layer else 0, one["settings"]["percentile"]))
    for index, (site, points) in enumerate(layers.items()):
        axes.plot(
            [x for x, _ in points],
            [percentile_place(y) for _, y in points],
            "-",
            marker=MARKERS[index],
            label=site,
        )
    axes.axhline(
        percentile_place(configured),
        color="#888888",
        linewidth=1,
        linestyle="--",
        label=f"configured, {configured:g}",
    )
    axes.set_yscale("log")
    every = sorted({one["settings"]["percentile"] for one in proposals} | {configured})
    axes.set_yticks([percentile_place(p) for p in every], [f"{p:g}" for p in every])
    axes.set_yticks([], minor=True)
    axes.invert_yaxis()
    axes.set_xlabel("layer", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    clean(axes, "Proposed percentile")
