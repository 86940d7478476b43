"""The result of ``task=profile``: where the time of each prefill and step goes, and how far that is from the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dualscale_mamba.report.drawing import FIGURE, clean, new_figure, save_figure
from dualscale_mamba.report.tables import console, key_metrics, near, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REST = "outside operators"
# Operators with less than this share of every phase are one bar, and one line of the table.
SMALL_SHARE = 0.02
SMALL = "smaller operators"
PALETTE = (
    "#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#B8A800", "#661100", "#332288", "#44AA99",
    "#882255", "#117733",
)  # fmt: skip
REST_COLOUR, SMALL_COLOUR = "#E3E3E3", "#9A9A9A"
PHASE_MARKERS = "oDsv^PX"
KINDS = {"int8": "int8 products", "values": "products of values"}


def title_of(phase: Mapping[str, Any]) -> str:
    """A phase as people call it."""
    if phase["phase"] == "decode":
        return f"one token, batch {phase['batch']}"
    return f"prefill, batch {phase['batch']}, {phase['length']} tokens"


def show_operators(result: Mapping[str, Any], folder: Path) -> None:
    """Print latencies and memory, then one table for each phase.

    Args:
        result: Content of ``result.json``.
        folder: Where it lies.
    """
    out = console()
    _show_metrics(result)
    rates = result["operators"]["ceilings"]
    for phase in result["operators"]["phases"]:
        out.print("", _table(phase))
    out.print(
        f"floors by what this device was seen to reach: copy {rates['bytes'] / 1e9:.0f} GB/s, int8 products "
        f"{rates['int8'] / 1e9:.0f} and others {rates['values'] / 1e9:.0f} G operations/s",
        style="dim",
        soft_wrap=True,
    )
    out.print(f"{near(folder)}/result.json, {FIGURE}", style="dim", soft_wrap=True)


def _show_metrics(result: Mapping[str, Any]) -> None:
    out = console()
    metrics = result["metrics"]
    telling = key_metrics(metrics)
    others = [
        name for name in metrics if name.startswith(("latency/ttlt", "throughput/", "energy/", "memory/"))
    ]
    own = [name for name in others if name not in telling and not name.endswith(("/p10", "/p90"))]
    table = Table(title=str(result["name"]), title_justify="left", title_style="bold", show_edge=False)
    table.add_column("metric")
    table.add_column("p50 or value", justify="right")
    table.add_column("p10, p90", justify="right", style="dim")
    for name in [*telling, *(name for name in own if name.count("/") == 1 or not name.startswith("memory/"))]:
        base = name.removesuffix("/p50")
        spread = [
            number(metrics[f"{base}/{p}"]["value"], base) for p in ("p10", "p90") if f"{base}/{p}" in metrics
        ]
        unit = metrics[name]["unit"]
        text = number(metrics[name]["value"], name)
        table.add_row(base, text if text.endswith(("ms", "MB", "%")) else f"{text} {unit}", ", ".join(spread))
    out.print(table)


def _table(phase: Mapping[str, Any]) -> Table:
    whole = phase["milliseconds"]
    table = Table(
        title=f"{title_of(phase)}: {whole:.3g} ms", title_justify="left", title_style="bold", show_edge=False
    )
    table.add_column("operator", no_wrap=True)
    for head in ("calls", "ms", "share", "GB/s", "floor ms", "of the roofline"):
        table.add_column(head, justify="right")
    table.add_column("bound by")
    shown, small = _split([phase], phase)
    for one in shown:
        time = one["milliseconds"]
        rate = f"{one['bytes'] / time / 1e6:.3g}" if time else ""
        share = f"{100 * one['floor'] / time:.0f} %" if time else ""
        table.add_row(
            one["name"], str(one["calls"]), f"{time:.3g}", f"{100 * time / whole:.1f} %", rate, f"{one['floor']:.3g}",
            share, KINDS.get(one["bound"], one["bound"]),
        )  # fmt: skip
    for name, time in ((SMALL, small), (REST, phase["rest"])):
        table.add_row(name, "", f"{time:.3g}", f"{100 * time / whole:.1f} %", style="dim")
    return table


def _split(
    phases: Sequence[Mapping[str, Any]], phase: Mapping[str, Any]
) -> tuple[list[Mapping[str, Any]], float]:
    """The operators of a phase that matter in any of ``phases``, and the milliseconds of all others."""
    names = {
        one["name"]
        for each in phases
        for one in each["operators"]
        if one["milliseconds"] >= SMALL_SHARE * each["milliseconds"]
    }
    shown = [one for one in phase["operators"] if one["name"] in names]
    return shown, sum(one["milliseconds"] for one in phase["operators"] if one["name"] not in names)


def write_operator_figure(folder: Path, result: Mapping[str, Any]) -> Path:
    """Stacked time of every phase, and the roofline with every operator on it.

    Args:
        folder: Of the run.
        result: Content of ``result.json``.
    """
    phases = result["operators"]["phases"]
    names = list(dict.fromkeys(one["name"] for phase in phases for one in _split(phases, phase)[0]))
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}
    figure = new_figure(13, 6.2 + 0.42 * len(phases), str(result["name"]))
    upper, lower = figure.subplots(2, 1, height_ratios=[1.2 + 0.42 * len(phases), 4.6])
    _draw_time(upper, phases, colours)
    _draw_roofline(lower, phases, colours, result["operators"]["ceilings"])
    every = {**colours, SMALL: SMALL_COLOUR, REST: REST_COLOUR}
    _legend(upper, [_patch(colour, name) for name, colour in every.items()], "operator")
    _legend(
        lower, [_dot(index, title_of(phase)) for index, phase in enumerate(phases)], "area: share of the time"
    )
    save_figure(figure, folder / FIGURE)
    return folder / FIGURE


def _legend(axes: Axes, handles: list[Any], title: str) -> None:
    axes.legend(
        handles=handles, title=title, fontsize=8, title_fontsize=9, frameon=False, loc="upper left",
        bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2,
    )  # fmt: skip


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _dot(index: int, label: str) -> Any:
    from matplotlib.lines import Line2D

    marker = PHASE_MARKERS[index % len(PHASE_MARKERS)]
    return Line2D([], [], linestyle="", marker=marker, color="#555555", label=label)


def _draw_time(axes: Axes, phases: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """One bar a phase, of length one; its milliseconds are written beside it."""
    for place, phase in enumerate(reversed(phases)):
        shown, small = _split(phases, phase)
        parts = [(one["name"], one["milliseconds"], colours[one["name"]]) for one in shown]
        parts += [(SMALL, small, SMALL_COLOUR), (REST, phase["rest"], REST_COLOUR)]
        whole, begin = sum(time for _, time, _ in parts), 0.0
        for _, time, colour in parts:
            axes.barh(place, 100 * time / whole, left=begin, color=colour, edgecolor="white", linewidth=0.6)
            begin += 100 * time / whole
        axes.text(101, place, f"{phase['milliseconds']:.3g} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(phases)), [title_of(phase) for phase in reversed(phases)], fontsize=9)
    axes.set_xlim(0, 112)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    clean(axes, "Where the time goes")


def _draw_roofline(
    axes: Axes, phases: Sequence[Mapping[str, Any]], colours: Mapping[str, str], rates: Mapping[str, float]
) -> None:
    """Operations a second over operations a byte; the area of a dot is its share of the phase's time."""
    points = []
    for index, phase in enumerate(phases):
        for one in _split(phases, phase)[0]:
            operations = one["products"] + one["others"] + one["exponentials"]
            if operations and one["bytes"] and one["milliseconds"]:
                size = 30 + 600 * one["milliseconds"] / phase["milliseconds"]
                place = (operations / one["bytes"], operations / one["milliseconds"] / 1e6)
                points.append(place)
                marker, colour = PHASE_MARKERS[index % len(PHASE_MARKERS)], colours[one["name"]]
                axes.scatter(*place, s=size, color=colour, marker=marker, alpha=0.8, edgecolor="white")
    low = min([x for x, _ in points], default=0.1) / 3
    high = max([x for x, _ in points] + [rates["int8"] / rates["bytes"]], default=1e3) * 3
    for kind, label in KINDS.items():
        if kind == "values" or any(one["is_int8"] for phase in phases for one in phase["operators"]):
            turn = rates[kind] / rates["bytes"]
            line = [(low, low * rates["bytes"]), (turn, rates[kind]), (high, rates[kind])]
            axes.plot([x for x, _ in line], [y / 1e9 for _, y in line], color="#333333", linewidth=1.1)
            axes.annotate(
                label, (high, rates[kind] / 1e9), (-2, 4), textcoords="offset points", fontsize=8, ha="right"
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.set_xlabel("operations a byte", fontsize=9)
    axes.set_ylabel("G operations a second", fontsize=9)
    clean(axes, "Roofline of this device, and the operators on it")
