"""The comparison of a study: one row a job, on the console, as Markdown and as CSV, and a picture."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dualscale_mamba.report import tables
from dualscale_mamba.report.collect import Job, collect, differences
from dualscale_mamba.report.paired import winners
from dualscale_mamba.report.picture import write_study_figure
from dualscale_mamba.report.tables import key_metrics, number

MARKDOWN, CSV, PICTURE = "comparison.md", "comparison.csv", "comparison.png"
ERROR_WIDTH = 160
# Facts in which two arms differ by design: the very thing that is compared.
BY_DESIGN = ("bits_per_value", "sites")

logger = logging.getLogger(__name__)


def write_comparison(folder: Path, console: Console | None = None) -> bool:
    """Compare all runs below ``folder``: print a table, write ``comparison.md``, ``.csv`` and ``.png`` there.

    Args:
        folder: Of a multirun; jobs that failed or never ended are shown with their error.
        console: Where to print.

    Returns:
        Whether there was anything to compare.
    """
    jobs = collect(folder)
    if not jobs:
        return False
    console = console or tables.console()
    heads = key_metrics(dict.fromkeys(name for job in jobs for name in job.metrics))
    console.print()
    console.print(_console_table(jobs, key_metrics(heads, tables.KINDS_ON_CONSOLE), folder))
    notes = [*((sentence, "green") for sentence in winners(jobs)), *_notes(jobs)]
    for note, style in notes:
        console.print(note, style=style, highlight=False, markup=False)
    (folder / MARKDOWN).write_text(
        _markdown(jobs, heads, [note for note, _ in notes], folder), encoding="utf-8"
    )
    _write_csv(folder / CSV, jobs)
    written = [MARKDOWN, CSV]
    if any(job.is_done for job in jobs):
        write_study_figure(folder / PICTURE, jobs, title=_title(jobs, folder))
        written.append(PICTURE)
    console.print(f"{folder}/{{{','.join(written)}}}", style="dim", highlight=False, soft_wrap=True)
    return True


def _title(jobs: Sequence[Job], folder: Path) -> str:
    groups = {str(job.status.get("group")) for job in jobs if job.status.get("group")}
    return groups.pop() if len(groups) == 1 else folder.parent.name


def _best(jobs: Sequence[Job], name: str) -> float | None:
    """The best value of a metric, where one direction is better and the values differ."""
    metrics = [
        job.result["metrics"][name]
        for job in jobs
        if job.is_done and job.result and name in job.result["metrics"]
    ]
    better = {metric["better"] for metric in metrics}
    values = {metric["value"] for metric in metrics}
    if len(values) < 2 or not better <= {"lower", "higher"} or len(better) != 1:
        return None
    return float(min(values) if better == {"lower"} else max(values))


def _console_table(jobs: Sequence[Job], heads: dict[str, str], folder: Path) -> Table:
    table = Table(title=_title(jobs, folder), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    if any(job.arm for job in jobs):
        table.add_column("arm")
    table.add_column("job", no_wrap=True)
    for head in heads.values():
        table.add_column(head, justify="right")
    best = {name: _best(jobs, name) for name in heads}
    for job in jobs:
        style = None if job.is_done else "red"
        cells = [job.arm] if any(other.arm for other in jobs) else []
        cells.append(job.label if job.is_done else f"{job.label}: {job.status.get('state')}")
        for name in heads:
            value = job.metrics.get(name)
            shown = number(value, name)
            cells.append(f"[bold green]{shown}[/]" if value is not None and value == best[name] else shown)
        table.add_row(*cells, style=style)
    return table


def _notes(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """Lines under the table and their styles: failures, then what is not equal between the arms."""
    notes = []
    for job in jobs:
        if not job.is_done:
            error = str(job.status.get("error") or "it has not ended").splitlines()[0][:ERROR_WIDTH]
            notes.append((f"{job.status.get('state')}: {job.folder.name}: {error}", "red"))
    failed = sum(not job.is_done for job in jobs)
    if failed:
        notes.append((f"{failed} of {len(jobs)} jobs have no result", "bold red"))
    unequal = [d for d in differences(jobs) if d.key not in BY_DESIGN]
    for difference in unequal:
        parts = (f"{value} ({len(names)} jobs)" for value, names in difference.values.items())
        notes.append((f"not equal between jobs: {difference.key}: " + " / ".join(parts), "yellow"))
    if not unequal and sum(job.is_done for job in jobs) > 1:
        notes.append(
            (
                "equal in all jobs: kernels, weights, calibration and evaluation tokens, batch sizes, order",
                "dim",
            )
        )
    return notes


def _markdown(jobs: Sequence[Job], heads: dict[str, str], notes: Sequence[str], folder: Path) -> str:
    rows = [["arm", "job", *heads.values()], ["---", "---", *("---:" for _ in heads)]]
    for job in jobs:
        label = job.label if job.is_done else f"{job.label}: {job.status.get('state')}"
        rows.append([job.arm, label, *(number(job.metrics.get(name), name) for name in heads)])
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    lines = [f"# {_title(jobs, folder)}", "", table, "", *(f"- {note}" for note in notes), ""]
    lines += [f"Reproduce: `{command}`" for command in _commands(jobs)]
    machine = next((job.result["environment"] for job in jobs if job.result), None)
    if machine:
        sha = (machine["git"]["sha"] or "unknown")[:10] + (" (changed)" if machine["git"]["dirty"] else "")
        lines += [
            "",
            f"Measured with torch {machine['torch']} on {machine['gpu'] or machine['cpu']}, commit {sha}.",
        ]
    return "\n".join(lines) + "\n"


def _commands(jobs: Sequence[Job]) -> list[str]:
    found = (" ".join(job.result["environment"]["command"]) for job in jobs if job.result)
    return list(dict.fromkeys(f"python {command}" for command in found))


def _write_csv(path: Path, jobs: Sequence[Job]) -> None:
    """Every metric of every job and the settings in which jobs differ; empty where a job has none."""
    metrics = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    settings = [job.settings for job in jobs]
    keys = [
        key for key in dict.fromkeys(k for s in settings for k in s) if not key.startswith(("paths.", "name"))
    ]
    differing = [key for key in keys if len({str(s[key]) for s in settings if key in s}) > 1]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "arm", "job", "state", "folder", *differing, *metrics, "error"])
        for job, own in zip(jobs, settings, strict=True):
            facts: list[Any] = [job.number, job.arm, job.label, job.status.get("state"), job.folder.name]
            values = [own.get(key) for key in differing] + [job.metrics.get(name) for name in metrics]
            writer.writerow([*facts, *values, str(job.status.get("error") or "")])
