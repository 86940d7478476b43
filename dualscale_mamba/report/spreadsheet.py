"""The comparison as CSV: everything, for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.items import interval
from dualscale_mamba.study.files import plain

UNTOLD = ("paths.", "name")


def spreadsheet(jobs: Sequence[Job]) -> str:
    """A row a run: the settings in which runs differ and every metric, empty where a run has none.

    A metric with items has the ends of its 95 % interval in ``<metric>_low`` and ``<metric>_high`` beside it.
    """
    settings = [job.settings for job in jobs]
    keys = [key for key in dict.fromkeys(k for s in settings for k in s) if not key.startswith(UNTOLD)]
    differing = [key for key in keys if len({str(s[key]) for s in settings if key in s}) > 1]
    metrics = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    ends = {name: [interval(job, name) if job.is_done else None for job in jobs] for name in metrics}
    heads = [head for name in metrics for head in _heads(name, any(ends[name]))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["number", "arm", "job", "id", "state", "folder", *differing, *heads, "error"])
    for index, (job, own) in enumerate(zip(jobs, settings, strict=True)):
        known = job.metrics
        cells: list[Any] = [job.number, job.arm, job.label, job.id, job.state, job.folder.name]
        cells += [plain(own.get(key)) for key in differing]
        for name in metrics:
            cells.append(known.get(name))
            if any(ends[name]):
                cells += ends[name][index] or (None, None)
        writer.writerow([*cells, job.error])
    return out.getvalue()


def _heads(name: str, has_ends: bool) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"] if has_ends else [name]
