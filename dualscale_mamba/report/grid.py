"""The cells of a comparison, once for the console, Markdown, LaTeX and CSV: which columns, which values, which bold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.items import ACCURACY
from dualscale_mamba.report.tables import KEY_METRICS, KINDS_ON_CONSOLE, key_metrics, number
from dualscale_mamba.report.verdicts import average_metric, interval, stands_out, value_of

# So many tasks have a column each; of more only the average is shown, and the CSV has them all.
TASKS_SHOWN = 8
# With fewer telling metrics than this, all are shown.
FEWEST_TOLD = 3
SIDES = {"lower": "↓", "higher": "↑"}
# Between two columns of the console, and the ends of the table.
GAP, ENDS = 3, 4


@dataclass(frozen=True)
class Grid:
    """Rows and columns of a comparison.

    Attributes:
        jobs: A row each.
        heads: Metrics shown, with the head of each column.
        better: ``lower``, ``higher`` or nothing, by metric.
        bold: The run that stands out, by metric.
    """

    jobs: Sequence[Job]
    heads: Mapping[str, str]
    better: Mapping[str, str]
    bold: Mapping[str, Job]

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Grid:
        """Choose the columns, and find what stands out."""
        names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
        heads = key_metrics(names)
        average = average_metric(jobs)
        if average is not None:
            tasks = [name for name in heads if ACCURACY.fullmatch(name)]
            heads = {
                name: head for name, head in heads.items() if len(tasks) <= TASKS_SHOWN or name not in tasks
            }
            heads = {average: "accuracy", **heads}
        better = {name: _better(jobs, name) for name in heads}
        found = {name: stands_out(jobs, name) for name in heads}
        return cls(jobs, heads, better, {name: job for name, job in found.items() if job is not None})

    @property
    def has_arms(self) -> bool:
        """Whether any run is an arm by name."""
        return any(job.arm for job in self.jobs)

    def title(self, name: str, arrows: bool = True) -> str:
        """Head of a column, with an arrow to where it is better."""
        arrow = SIDES.get(self.better[name], "") if arrows else ""
        return f"{self.heads[name]} {arrow}".rstrip()

    def cell(self, job: Job, name: str) -> str:
        """A value as it is shown, empty where there is none."""
        value = value_of(job, name)
        return number(value, f"{name}/acc" if name not in job.metrics else name)

    def ends(self, job: Job, name: str) -> tuple[str, str] | None:
        """The ends of the value's 95 % interval, in its unit, without the unit."""
        found = interval(job, name) if job.is_done else None
        if found is None:
            return None
        shown_as = f"{name}/acc" if name not in job.metrics else name
        low, high = (number(end, shown_as).partition(" ")[0] for end in found)
        return low, high

    def is_bold(self, job: Job, name: str) -> bool:
        """Whether this value is better than all others by more than the noise."""
        return self.bold.get(name) is job

    def row_name(self, job: Job) -> str:
        """The run's label, and what became of it if it has no result."""
        return job.label if job.is_done else f"{job.label}: {job.state}"

    def telling(self) -> list[str]:
        """The most telling metrics; all of them where few are."""
        kinds = dict(KEY_METRICS[:KINDS_ON_CONSOLE])
        chosen = [
            name
            for name in self.heads
            if name not in key_metrics([name]) or any(re.fullmatch(pattern, name) for pattern in kinds)
        ]
        return chosen if len(chosen) >= FEWEST_TOLD else list(self.heads)

    def on_console(self, width: int) -> list[str]:
        """The most telling metrics that fit into ``width`` characters."""
        room = width - ENDS - max(len(self.row_name(job)) for job in self.jobs) - GAP
        room -= max(len(job.arm) for job in self.jobs) + GAP if self.has_arms else 0
        chosen: list[str] = []
        for name in self.telling():
            room -= max(len(self.title(name)), *(len(self.cell(job, name)) for job in self.jobs)) + GAP
            if room < 0 and chosen:
                break
            chosen.append(name)
        return chosen


def _better(jobs: Sequence[Job], name: str) -> str:
    if any(name in job.metrics for job in jobs):
        found = {(job.result or {})["metrics"][name].get("better") for job in jobs if name in job.metrics}
        return str(found.pop()) if len(found) == 1 else ""
    return "higher"
