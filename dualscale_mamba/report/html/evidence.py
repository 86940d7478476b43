"""What the statistics say of a study, gathered once for a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.verdicts import Light, Verdict, interval, lights, stands_out, verdicts, warnings


@dataclass(frozen=True)
class Evidence:
    """Verdicts and what goes with them.

    Attributes:
        verdicts: Comparisons of two arms.
        warnings: What hints at a mistake in the study.
        lights: What is equal in all jobs and what is not.
        intervals: 95 % interval of a job's own metric, by the job's place and the metric's name.
        standing_out: Place of the job whose value is best beyond the noise, by metric.
    """

    verdicts: Sequence[Verdict] = ()
    warnings: Sequence[str] = ()
    lights: Sequence[Light] = ()
    intervals: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)
    standing_out: dict[str, int] = field(default_factory=dict)


def gather(jobs: Sequence[Job], metrics: Iterable[str], reference: str | None = None) -> Evidence:
    """Ask the statistics about every job.

    Args:
        jobs: Of the study.
        metrics: Those that are shown with an interval.
        reference: What the others are compared with.
    """
    intervals: dict[tuple[int, str], tuple[float, float]] = {}
    standing_out: dict[str, int] = {}
    places = {id(job): place for place, job in enumerate(jobs)}
    for metric in metrics:
        for place, job in enumerate(jobs):
            found = interval(job, metric) if job.is_done and metric in job.metrics else None
            if found is not None:
                intervals[place, metric] = found
        best = stands_out(jobs, metric)
        if best is not None:
            standing_out[metric] = places[id(best)]
    return Evidence(verdicts(jobs, reference), warnings(jobs), lights(jobs), intervals, standing_out)
