"""What a search has found: the settings that no other one beats in every objective, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dualscale_mamba.report.collect import Job, labels
from dualscale_mamba.report.drawing import MARKERS, clean, colour_of, new_figure, save_figure
from dualscale_mamba.report.tables import console, key_metrics, number
from dualscale_mamba.study.search import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARETO = "pareto.png"
LOG_FROM_RATIO = 20.0  # values that differ by more are drawn on a logarithmic axis
MAX_NAMED = 20


@dataclass(frozen=True)
class Objective:
    """One metric that a search wants low or high.

    Attributes:
        metric: Its name in ``result.json``.
        unit: Its unit.
        better: ``lower`` or ``higher``.
    """

    metric: str
    unit: str
    better: str

    @property
    def head(self) -> str:
        """Its short name."""
        return key_metrics([self.metric]).get(self.metric, self.metric)

    @property
    def title(self) -> str:
        """For an axis: short name, where it was measured, unit and direction."""
        unit = f", {self.unit}" if self.unit else ""
        place = "" if self.head == self.metric else f" ({self.metric})"
        return f"{self.head}{place}{unit}: {self.better} is better"


@dataclass(frozen=True)
class Found:
    """The finished jobs of a search.

    Attributes:
        jobs: In the order in which they ran.
        objectives: What was searched.
        best: Places in ``jobs`` that no other job beats.
    """

    jobs: tuple[Job, ...]
    objectives: tuple[Objective, ...]
    best: tuple[int, ...]

    @classmethod
    def of(cls, jobs: Sequence[Job], wanted: Mapping[str, str | None]) -> Found:
        """Keep the jobs that have every objective.

        Args:
            jobs: Of one search.
            wanted: Metric to ``lower`` or ``higher``; None takes what the results say.
        """
        done = tuple(job for job in jobs if all(math.isfinite(job.metrics.get(m, math.nan)) for m in wanted))
        if not done:
            return cls((), (), ())
        known = (done[0].result or {})["metrics"]
        objectives = tuple(
            Objective(name, str(known[name].get("unit", "")), better or str(known[name].get("better")))
            for name, better in wanted.items()
        )
        losses = [
            [job.metrics[o.metric] * (1 if o.better == "lower" else -1) for o in objectives] for job in done
        ]
        return cls(done, objectives, tuple(front(losses)))

    def ranked(self) -> list[int]:
        """``best`` from the lowest first objective to the highest."""
        return sorted(self.best, key=lambda place: self.jobs[place].metrics[self.objectives[0].metric])


def show_front(found: Found) -> None:
    """Print the jobs that no other one beats."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    total = len(found.jobs)
    title = (
        f"Beaten by none of {total} settings" if len(found.objectives) > 1 else f"Best of {total} settings"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("id", no_wrap=True, style="dim")
    table.add_column("job")
    for objective in found.objectives:
        table.add_column(objective.head, justify="right", no_wrap=True)
    names = labels(found.jobs)
    for rank, place in enumerate(found.ranked(), 1):
        job = found.jobs[place]
        cells = [number(job.metrics[o.metric], o.metric) for o in found.objectives]
        table.add_row(str(rank), job.id[:8], names[place], *cells)
    out = console()
    out.print()
    out.print(table)


def write_front(path: Path, found: Found, title: str) -> None:
    """Draw a search: its first objective over each other one, or over the jobs where there is one objective.

    Args:
        path: PNG file.
        found: At least one job.
        title: Of the picture.
    """
    others = found.objectives[1:]
    figure = new_figure(11.0, 5.5 * max(len(others), 1), title)
    rows = figure.subplots(max(len(others), 1), 1, squeeze=False)
    for row, other in zip(rows, others or (None,), strict=True):
        _draw(row[0], found, other)
    save_figure(figure, path)


def _draw(axes: Axes, found: Found, other: Objective | None) -> None:
    first = found.objectives[0]
    ys = [job.metrics[first.metric] for job in found.jobs]
    xs = [job.metrics[other.metric] for job in found.jobs] if other else list(range(1, len(ys) + 1))
    modes = list(dict.fromkeys(job.scale_mode for job in found.jobs))
    for index, mode in enumerate(modes):
        own = [place for place, job in enumerate(found.jobs) if job.scale_mode == mode]
        look: dict[str, Any] = {"color": colour_of(mode), "marker": MARKERS[index % len(MARKERS)]}
        for places, size, edge in (
            ([place for place in own if place not in found.best], 40, "none"),
            ([place for place in own if place in found.best], 130, "black"),
        ):
            points = [xs[place] for place in places], [ys[place] for place in places]
            axes.scatter(*points, s=size, edgecolors=edge, linewidths=1.3, zorder=3, alpha=0.9, **look)
        axes.scatter([], [], s=60, label=mode, **look)  # the legend's own
    _scale(axes, xs if other else [], ys)
    if other is not None and len(found.objectives) == 2:
        _stairs(axes, found, xs, ys, other)
    _name_best(axes, found, xs, ys)
    axes.set_xlabel(other.title if other else "setting, in the order of the search", fontsize=9)
    axes.set_ylabel(first.title, fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, title="scale mode", title_fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    clean(axes, f"Beaten by none: {len(found.best)} of {len(found.jobs)} settings (large, with an edge)")


def _scale(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    for values, scale in ((xs, axes.set_xscale), (ys, axes.set_yscale)):
        if values and min(values) > 0 and max(values) > LOG_FROM_RATIO * min(values):
            scale("log")


def _stairs(axes: Axes, found: Found, xs: Sequence[float], ys: Sequence[float], other: Objective) -> None:
    """The border of what was reached: from one best setting to the next only by steps."""
    ranked = sorted(found.best, key=lambda place: xs[place])
    # Between two neighbours the one that is worse in x is as good as it gets in y.
    where: Literal["post", "pre"] = "post" if other.better == "lower" else "pre"
    line = [xs[place] for place in ranked], [ys[place] for place in ranked]
    axes.step(*line, where=where, color="black", linewidth=1, alpha=0.5, zorder=2)


def _name_best(axes: Axes, found: Found, xs: Sequence[float], ys: Sequence[float]) -> None:
    """A number in each of the best, as in the table, and what it stands for beside the picture."""
    names = labels(found.jobs)
    for rank, place in enumerate(found.ranked(), 1):
        axes.text(
            xs[place], ys[place], str(rank), color="white", fontsize=7, fontweight="bold", ha="center",
            va="center_baseline", zorder=4,
        )  # fmt: skip
    ranked = list(enumerate(found.ranked(), 1))
    rows = [f"{rank}  {names[place]}" for rank, place in ranked[:MAX_NAMED]]
    rows += ["..."] * (len(ranked) > MAX_NAMED)
    axes.text(1.015, 0.0, "\n".join(rows), transform=axes.transAxes, fontsize=8, va="bottom", linespacing=1.5)
