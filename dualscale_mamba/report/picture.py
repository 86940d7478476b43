"""Pictures: one of each run, one of each study."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dualscale_mamba.report.collect import DISTRIBUTION, Job
from dualscale_mamba.sites import is_ssm_input

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FIGURE = "figure.png"
# Okabe & Ito's palette: told apart with any kind of colour vision.
COLOURS = {
    "single": "#0072B2",
    "control": "#56B4E9",
    "affine": "#009E73",
    "dual": "#D55E00",
    "dual_symmetric": "#E69F00",
    "soft_edge": "#CC79A7",
    "fp8_e4m3": "#999999",
    "fp8_e5m2": "#666666",
    "lloyd_max": "#B8A800",
    "fp16": "#000000",
}
MARKERS = "sDv^PX<>*"
OTHER_COLOUR = "#7F7F7F"
# Below this magnitude an axis of values is linear, above it logarithmic.
LINEAR_BELOW = 0.1
SMALLEST_KL = 1e-7
MAX_ROWS = 48
DPI = 150


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Write the whole file or none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=DPI, format="png")
    partial.replace(path)


def _clean(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def colour_of(scale_mode: str) -> str:
    """The colour of a scale mode in every picture."""
    return COLOURS.get(scale_mode, OTHER_COLOUR)


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
    figure = _figure(9, 7.5 if signal and found else 4.5, str(result["name"]))
    mode = str(result.get("choices", {}).get("scale_mode", ""))
    parts = int(bool(signal)) + (2 if found else 0)
    axes = figure.subplots(
        parts, 1, height_ratios=[3] * int(bool(signal)) + [3, 0.8] * int(found is not None), squeeze=False
    )
    rows = [row[0] for row in axes]
    if signal:
        _draw_signal(rows.pop(0), signal)
    if found:
        _draw_histogram(rows[0], found)
        _draw_levels(rows[1], [(mode or "levels", mode, found["levels"])], found)
    _save(figure, folder / FIGURE)
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
    _clean(axes, "How well the codes fit the calibration values")
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("signal to noise, dB", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_histogram(axes: Axes, found: Mapping[str, Any]) -> None:
    centres, share = found["centres"], found["share"]
    seen = [(x, y) for x, y in zip(centres, share, strict=True) if y > 0]
    places, heights = zip(*seen, strict=True)
    axes.fill_between(places, heights, step="mid", color="#CFCFCF", linewidth=0)
    axes.set_yscale("log")
    axes.set_ylabel("share of values", fontsize=9)
    _value_axis(axes, [x for x, _ in seen])
    axes.tick_params(labelbottom=False)
    site = str(found["site"]).replace(".mixer", "")
    _clean(axes, f"Values of {site} while calibrating, and the levels of each code")


def _value_axis(axes: Axes, values: Sequence[float]) -> None:
    """A scale that is linear around zero and logarithmic outside, with ticks to match."""
    low, high = min(values), max(values)
    axes.set_xscale("asinh", linear_width=LINEAR_BELOW)
    ticks = [-10.0, -1.0, -0.25, 0.0, 0.25, 1.0, 3.0, 10.0, 30.0, 100.0]
    axes.set_xticks([tick for tick in ticks if low * 1.3 <= tick <= high * 1.3])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks([], minor=True)
    axes.set_xlim(low * 1.15 if low < 0 else low - 0.05, high * 1.15)


def _draw_levels(
    axes: Axes, rows: Sequence[tuple[str, str, Sequence[float]]], found: Mapping[str, Any]
) -> None:
    """One row of ticks for each code: label, scale mode, levels."""
    shown = [row for row in rows if row[2]]
    for index, (_, mode, levels) in enumerate(reversed(shown)):
        axes.eventplot(levels, lineoffsets=index, linelengths=0.72, linewidths=0.7, colors=colour_of(mode))
    axes.set_yticks(range(len(shown)), [label for label, _, _ in reversed(shown)], fontsize=9)
    seen = [x for x, y in zip(found["centres"], found["share"], strict=True) if y > 0]
    _value_axis(axes, seen)
    _clean(axes, "")
    axes.set_xlabel("value (linear around zero, logarithmic outside)", fontsize=9)


def write_study_figure(path: Path, jobs: Sequence[Job], title: str) -> None:
    """Picture of a study: divergence, then accuracy and perplexity of each job, and the levels of each code.

    Args:
        path: PNG to write.
        jobs: All of them; those without a result are left out and counted in the title.
        title: Of the picture.
    """
    done = [job for job in jobs if job.is_done][:MAX_ROWS]
    missing = len(jobs) - len(done)
    panels = [panel for panel in _panels(done) if panel is not None]
    coded = _coded(done)
    height = 1.6 + 0.34 * len(done) + (2.2 + 0.3 * len(coded) if coded else 0)
    figure = _figure(
        12, max(height, 4.5), title + (f"   ({missing} of {len(jobs)} jobs not shown)" if missing else "")
    )
    upper: Figure | SubFigure = figure
    if coded:
        ratios = [1.2 + 0.34 * len(done), 2.2 + 0.3 * len(coded)]
        upper, lower = cast("Sequence[SubFigure]", figure.subfigures(2, 1, height_ratios=ratios))
    if panels:
        row = upper.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, head, log) in zip(row, panels, strict=True):
            _draw_metric(axes, done, name, head, log)
    if coded:
        low = lower.subplots(2, 1, height_ratios=[2, 0.6 + 0.5 * len(coded)], squeeze=False)
        found = coded[0][1]
        _draw_histogram(low[0][0], found)
        _draw_levels(low[1][0], [(job.label, job.scale_mode, own["levels"]) for job, own in coded], found)
    _save(figure, path)


def _panels(jobs: Sequence[Job]) -> list[tuple[str, str, bool] | None]:
    """Up to three metrics that every study is judged by: name, title of the panel, logarithmic or not."""
    names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    wanted = (
        (r"divergence/(.+)/kl", "KL from the unquantized model, nats/token\n(lower is better)", True),
        (r"(?!divergence)(.+)/perplexity", "Perplexity\n(lower is better)", False),
        (r"([^/]+)/acc", "Accuracy, %\n(higher is better)", False),
    )
    panels: list[tuple[str, str, bool] | None] = []
    for pattern, head, log in wanted:
        name = next((name for name in names if re.fullmatch(pattern, name)), None)
        panels.append(None if name is None else (name, head.replace("\n", f"\non {_source(name)} "), log))
    return panels


def _source(name: str) -> str:
    parts = name.split("/")
    return (parts[1] if len(parts) > 2 else parts[0]).replace("_", " ")


def _draw_metric(axes: Axes, jobs: Sequence[Job], name: str, head: str, log: bool) -> None:
    """One dot a job with its number beside it, first job on top."""
    scale = 100.0 if name.endswith("/acc") else 1.0
    values = [job.metrics.get(name, math.nan) * scale for job in jobs]
    places = list(range(len(jobs)))[::-1]
    colours = [colour_of(job.scale_mode) for job in jobs]
    if log:
        shown = [value if value > SMALLEST_KL else math.nan for value in values]
        _log_axis(axes, shown)
    else:
        shown = values
    axes.scatter(shown, places, c=colours, s=46, zorder=3)
    for value, place, dot in zip(values, places, shown, strict=True):
        text = f"{value:.3g}" if log else f"{value:.2f}"
        if math.isnan(dot):
            text = "not measured" if math.isnan(value) else "0"
            axes.text(0.02, place, text, transform=axes.get_yaxis_transform(), fontsize=8, va="center")
        else:
            axes.annotate(text, (dot, place), (7, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_yticks(places, [f"{job.arm}: {job.label}" if job.arm else job.label for job in jobs], fontsize=9)
    axes.set_ylim(-0.6, len(jobs) - 0.4)
    axes.margins(x=0.28)
    axes.grid(axis="both", alpha=0.25)
    _clean(axes, head)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic, with few round ticks however short the axis is."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    seen = [value for value in values if value > 0]
    if not seen:
        return
    low, high = math.log10(min(seen)), math.log10(max(seen))
    steps = (1.0,) if high - low > 3 else (1.0, 3.0) if high - low > 1 else (1.0, 2.0, 3.0, 5.0)
    ticks = [
        step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 2) for step in steps
    ]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _coded(jobs: Sequence[Job]) -> list[tuple[Job, dict[str, Any]]]:
    """Of each scale mode the job with the least divergence, with its levels; all of the same site."""
    best: dict[str, tuple[float, Job, dict[str, Any]]] = {}
    for job in jobs:
        own = furthest(job.distribution())
        if own is None or not own["levels"]:
            continue
        divergence = next((v for k, v in job.metrics.items() if k.endswith("/kl")), math.inf)
        if job.scale_mode not in best or divergence < best[job.scale_mode][0]:
            best[job.scale_mode] = (divergence, job, own)
    return [(job, own) for _, job, own in best.values()]
