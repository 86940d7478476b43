"""The picture of a study: what each run came to, and the levels of the codes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.drawing import (
    MARKERS,
    clean,
    colour_of,
    draw_histogram,
    draw_levels,
    log_axis,
    new_figure,
    percentile_axis,
    percentile_place,
    save_figure,
)
from dualscale_mamba.report.items import interval
from dualscale_mamba.report.picture import furthest
from dualscale_mamba.report.places import Row, curves_of, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SMALLEST_KL = 1e-7
MAX_JOBS = 96
MAX_PANELS = 3
DOT, SMALL_DOT = 46, 30
ROW_HEIGHT, DOT_HEIGHT = 0.2, 0.14
CURVE_HEIGHT = 4.2
# Dots of one row lie between these parts of its height.
SPREAD = 0.56
ABOVE = (3, 4)  # points, from a dot to its number
FORMS = "o" + MARKERS


@dataclass(frozen=True)
class Panel:
    """One metric: its name, its title, whether it is drawn over a logarithmic axis."""

    name: str
    title: str
    log: bool

    def value(self, job: Job) -> float:
        """As it is drawn; NaN where it was not measured."""
        return job.metrics.get(self.name, math.nan) * self._factor

    def ends(self, job: Job) -> tuple[float, float] | None:
        """Of the 95 % interval. None where it is that of the texts: arms share them, and differ by much less."""
        found = interval(job, self.name) if self.log else None
        return None if found is None else (found[0] * self._factor, found[1] * self._factor)

    @property
    def more_is_better(self) -> bool:
        """Whether it counts right answers."""
        return self.name.endswith("/acc")

    @property
    def _factor(self) -> float:
        return 100.0 if self.more_is_better else 1.0

    def text(self, value: float) -> str:
        """A number beside a dot."""
        return f"{value:.3g}" if self.log else f"{value:.2f}"


def write_study_figure(path: Path, jobs: Sequence[Job], title: str) -> None:
    """Picture of a study: divergence with 95 % intervals, perplexity, accuracy, and the levels of each code.

    A study of percentiles has curves over them. One of several settings, as sites or layers, has a row for each,
    and in it a mark for each arm. Any other has a row a run.

    Args:
        path: PNG to write.
        jobs: All of them; those without a result are left out and counted in the title.
        title: Of the picture.
    """
    done = [job for job in jobs if job.is_done][:MAX_JOBS]
    missing = len(jobs) - len(done)
    panels, coded, curves = _panels(done), _coded(done), curves_of(done)
    named, rows = rows_of(done)
    above = CURVE_HEIGHT if curves else 1.2 + sum(ROW_HEIGHT + DOT_HEIGHT * len(row.dots) for row in rows)
    below = 2.2 + 0.3 * len(coded) if coded else 0.0
    shown = f"   ({missing} of {len(jobs)} jobs not shown)" if missing else ""
    figure = new_figure(12, max(0.4 + above + below, 4.5), title + shown)
    upper: Figure | SubFigure = figure
    if coded:
        upper, lower = cast("Sequence[SubFigure]", figure.subfigures(2, 1, height_ratios=[above, below]))
    if panels:
        cells = upper.subplots(1, len(panels), sharey=not curves, squeeze=False)[0]
        for axes, panel in zip(cells, panels, strict=True):
            _draw_curves(axes, curves, panel) if curves else _draw_rows(axes, rows, panel)
        if not curves:
            cells[0].set_ylabel(named, fontsize=9)
        _add_legend(upper, cells[-1])
    if coded:
        marks = {job.id: mark for row in rows for mark, job in row.dots}
        _draw_codes(lower, coded, marks)
    save_figure(figure, path)


def _panels(jobs: Sequence[Job]) -> list[Panel]:
    """The metrics that every study is judged by."""
    names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    wanted = (
        (r"divergence/(.+)/kl", "KL from unquantized, nats/token", "lower", True, 2),
        (r"(?!divergence)(.+)/perplexity", "Perplexity", "lower", False, 1),
        (r"([^/]+)/acc", "Accuracy, %", "higher", False, 1),
    )
    found = [
        Panel(name, f"{head}\non {_source(name)} ({better} is better)", log)
        for pattern, head, better, log, most in wanted
        for name in [name for name in names if re.fullmatch(pattern, name)][:most]
    ]
    return found[:MAX_PANELS]


def _source(name: str) -> str:
    parts = name.split("/")
    return (parts[1] if len(parts) > 2 else parts[0]).replace("_", " ")


def _draw_rows(axes: Axes, rows: Sequence[Row], panel: Panel) -> None:
    """The first row on top. A number stands beside the only dot of a row, or beside its best."""
    forms = _forms(rows)
    drawn = []
    for place, row in zip(range(len(rows))[::-1], rows, strict=True):
        if place % 2 and len(row.dots) > 1:
            axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
        values = [panel.value(job) for _, job in row.dots]
        seen = [value for value in values if _is_drawn(value, panel)]
        best = (max if panel.more_is_better else min)(seen, default=math.nan)
        for (mark, job), height, value in zip(row.dots, _heights(place, len(row.dots)), values, strict=True):
            if not _is_drawn(value, panel):
                _say_missing(axes, height, value)
                continue
            drawn += _draw_dot(axes, panel, job, (value, height), forms[mark], mark, small=bool(mark))
            if value == best:
                _write_number(axes, panel, job, (value, height), beside=bool(mark))
    if panel.log:
        log_axis(axes, drawn)
    axes.set_yticks(list(range(len(rows)))[::-1], [row.label for row in rows], fontsize=9)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.margins(x=0.2)
    axes.grid(axis="both", alpha=0.25)
    clean(axes, panel.title)


def _write_number(axes: Axes, panel: Panel, job: Job, at: tuple[float, float], beside: bool) -> None:
    """Above the only dot of a row; beside the best of several on the side where no other lies."""
    if not beside:
        axes.annotate(panel.text(at[0]), at, ABOVE, textcoords="offset points", fontsize=8)
        return
    low, high = panel.ends(job) or (at[0], at[0])
    end, offset, side = (high, 6, "left") if panel.more_is_better else (low, -6, "right")
    axes.annotate(panel.text(at[0]), (end, at[1]), (offset, 0), textcoords="offset points",
                  fontsize=8, ha=side, va="center")  # fmt: skip


def _heights(place: int, count: int) -> list[float]:
    if count == 1:
        return [float(place)]
    return [place + SPREAD * (0.5 - index / (count - 1)) for index in range(count)]


def _forms(rows: Sequence[Row]) -> dict[str, tuple[str, bool]]:
    """Of each mark the form, and whether it is filled: the second mark of a scale mode is hollow, and so on."""
    found: dict[str, tuple[str, bool]] = {}
    seen: dict[str, int] = {}
    for mark, job in (dot for row in rows for dot in row.dots):
        if mark not in found:
            number = seen.get(job.scale_mode, 0)
            seen[job.scale_mode] = number + 1
            found[mark] = (FORMS[number // 2 % len(FORMS)], number % 2 == 0)
    return found


def _is_drawn(value: float, panel: Panel) -> bool:
    return value > SMALLEST_KL if panel.log else not math.isnan(value)


def _say_missing(axes: Axes, height: float, value: float) -> None:
    text = "not measured" if math.isnan(value) else "0"
    axes.text(0.02, height, text, transform=axes.get_yaxis_transform(), fontsize=8, va="center")


def _draw_dot(
    axes: Axes,
    panel: Panel,
    job: Job,
    at: tuple[float, float],
    form: tuple[str, bool],
    mark: str,
    small: bool,
) -> list[float]:
    """A dot with its interval; returns the values that the axis must show."""
    colour, ends = colour_of(job.scale_mode), panel.ends(job)
    marker, is_filled = form
    axes.scatter(
        [at[0]], [at[1]], s=SMALL_DOT if small else DOT, marker=marker, zorder=3, linewidths=1.4,
        facecolors=colour if is_filled else "white", edgecolors=colour, label=mark or None,
    )  # fmt: skip
    if ends is not None and _is_drawn(ends[0], panel):
        axes.plot(ends, [at[1], at[1]], color=colour, linewidth=1.4, alpha=0.6, zorder=2)
        return [at[0], *ends]
    return [at[0]]


def _draw_curves(axes: Axes, curves: Mapping[str, Sequence[tuple[float, Job]]], panel: Panel) -> None:
    """A metric over the percentile, one line a scale mode, its interval as a band."""
    drawn = []
    for mode, points in curves.items():
        seen = [(place, job) for place, job in points if _is_drawn(panel.value(job), panel)]
        places, values = (
            [percentile_place(place) for place, _ in seen],
            [panel.value(job) for _, job in seen],
        )
        wide = 2.4 if mode == "dual" else 1.4
        axes.plot(places, values, marker="o", markersize=4, linewidth=wide, color=colour_of(mode), label=mode)
        ends = [panel.ends(job) or (value, value) for (_, job), value in zip(seen, values, strict=True)]
        if seen:
            low, high = zip(*ends, strict=True)
            axes.fill_between(places, low, high, color=colour_of(mode), alpha=0.15, linewidth=0)
        drawn += values
    if panel.log:
        log_axis(axes, drawn, vertical=True)
    percentile_axis(axes, [place for points in curves.values() for place, _ in points])
    axes.grid(alpha=0.25)
    clean(axes, panel.title)


def _add_legend(figure: Figure | SubFigure, axes: Axes) -> None:
    """What marks or lines stand for, once, below all panels."""
    handles, names = axes.get_legend_handles_labels()
    known = {name: handle for handle, name in zip(handles, names, strict=True) if name}
    if known:
        figure.legend(
            list(known.values()), list(known), loc="outside lower center", ncols=4, fontsize=9, frameon=False
        )


def _draw_codes(
    figure: SubFigure, coded: Sequence[tuple[Job, dict[str, Any]]], marks: Mapping[str, str]
) -> None:
    low = figure.subplots(2, 1, height_ratios=[2, 0.6 + 0.5 * len(coded)], squeeze=False)
    found = coded[0][1]
    draw_histogram(low[0][0], found)
    draw_levels(
        low[1][0], [(marks[job.id] or job.label, job.scale_mode, own["levels"]) for job, own in coded], found
    )


def _coded(jobs: Sequence[Job]) -> list[tuple[Job, dict[str, Any]]]:
    """Of each scale mode the job with the least divergence, with its levels; all of the same site."""
    best: dict[str, tuple[float, Job, dict[str, Any]]] = {}
    for job, own in _with_levels(jobs):
        divergence = next((v for k, v in job.metrics.items() if k.endswith("/kl")), math.inf)
        if job.scale_mode not in best or divergence < best[job.scale_mode][0]:
            best[job.scale_mode] = (divergence, job, own)
    return [(job, own) for _, job, own in best.values()]


def _with_levels(jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Runs with the levels of one site: the one that reaches furthest in the first run."""
    name = None
    for job in jobs:
        own = furthest(job.distribution())
        if own is None or not own["levels"]:
            continue
        name = name or str(own.get("site", ""))
        if str(own.get("site", "")) == name:
            yield job, own
