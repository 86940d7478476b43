"""Divergence and error of the state over the position in the text: a picture, and a page to explore it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.drawing import COLOURS, MARKERS, clean, new_figure, save_figure
from dualscale_mamba.study.files import read_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES, PICTURE, PAGE = "curves.json", "state_drift.png", "state_drift.html"
PANELS = {"kl": "KL from the unquantized model, nats/token", "state_error": "relative error of the state"}
AXIS = "tokens read (end of each bin)"
PALETTE = tuple(COLOURS.values())
DASHES, LINES = ("solid", "dash", "dot"), ("-", "--", ":")

Series = tuple[str, Mapping[str, Sequence[float]]]


def write_run_curves(folder: Path, name: str, curves: Mapping[str, Any]) -> None:
    """Picture and page of one run; in the page also the error of each layer's state.

    Args:
        folder: Of the run.
        name: Of the run.
        curves: Of one evaluation: lists ``position``, ``kl``, ``state_error`` and, for each layer, ``layers``.
    """
    by_layer = [
        (f"layer {layer}", {"position": curves["position"], "state_error": own})
        for layer, own in enumerate(curves.get("layers", []))
    ]
    _write_picture(folder / PICTURE, [(name, curves)], name)
    _write_page(folder / PAGE, [(name, curves), *by_layer], name)


def write_study_curves(folder: Path, jobs: Sequence[Job], title: str) -> list[str]:
    """Picture and page of a study, a line a run.

    Args:
        folder: Of the study.
        jobs: All of them; those that have measured nothing by steps, or no difference, are left out.
        title: Of the study.

    Returns:
        Names of the files that were written; none where nothing was measured.
    """
    series = [(job.label, own) for job in jobs for own in _curves_of(job)]
    if not series:
        return []
    _write_picture(folder / PICTURE, series, title)
    _write_page(folder / PAGE, series, title)
    return [PICTURE, PAGE]


def _curves_of(job: Job) -> list[Mapping[str, Any]]:
    found = (read_json(job.folder / CURVES) or {}) if job.is_done else {}
    return [own for own in found.values() if any(value > 0 for value in own["kl"])]


def _write_picture(path: Path, series: Sequence[Series], title: str) -> None:
    figure = new_figure(14, 5.2, title)
    panels = figure.subplots(1, len(PANELS), squeeze=False)[0]
    for axes, (key, head) in zip(panels, PANELS.items(), strict=True):
        _draw(axes, series, key, head)
    panels[-1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save_figure(figure, path)


def _draw(axes: Axes, series: Sequence[Series], key: str, head: str) -> None:
    for index, (label, curves) in enumerate(series):
        shown = [(x, y) for x, y in zip(curves["position"], curves[key], strict=True) if y > 0]
        axes.plot(
            [x for x, _ in shown], [y for _, y in shown], label=label, linewidth=1.6, markersize=4,
            color=PALETTE[index % len(PALETTE)], marker=MARKERS[index % len(MARKERS)],
            linestyle=LINES[index // len(PALETTE) % len(LINES)],
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(AXIS, fontsize=9)
    axes.grid(alpha=0.25)
    clean(axes, head)


def _write_page(path: Path, series: Sequence[Series], title: str) -> None:
    """One file that needs no network."""
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    figure: Figure = make_subplots(rows=1, cols=len(PANELS), subplot_titles=list(PANELS.values()))
    for index, (label, curves) in enumerate(series):
        drawn = {
            "color": PALETTE[index % len(PALETTE)],
            "dash": DASHES[index // len(PALETTE) % len(DASHES)],
        }
        for column, key in enumerate(PANELS, 1):
            if key in curves:
                line = Scatter(
                    x=list(curves["position"]), y=[y if y > 0 else None for y in curves[key]], name=label,
                    legendgroup=label, showlegend=key == "state_error", mode="lines+markers", line=drawn,
                )  # fmt: skip
                figure.add_trace(line, row=1, col=column)
    figure.update_xaxes(type="log", title_text=AXIS)
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_layout(title_text=title, template="simple_white")
    write_text(path, figure.to_html(include_plotlyjs=True, full_html=True))
