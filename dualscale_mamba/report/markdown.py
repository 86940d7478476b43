"""The comparison as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.grid import Grid
from dualscale_mamba.study.folder import Line


def markdown(grid: Grid, title: str, notes: Sequence[str], line: Line | None = None) -> str:
    """A table, what is to be said of it, and how to make it again.

    Args:
        grid: Rows and columns.
        title: Of the study.
        notes: One a line.
        line: What was typed, where that is known.
    """
    rows = [["arm", "job", *(grid.title(name) for name in grid.heads)]]
    rows.append(["---", "---", *("---:" for _ in grid.heads)])
    rows += [
        [job.arm, grid.row_name(job), *(_cell(grid, job, name) for name in grid.heads)] for job in grid.jobs
    ]
    table = "\n".join("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)
    lines = [f"# {_escaped(title)}", "", table, "", *(f"- {note}" for note in notes), ""]
    lines += [f"Reproduce: `{command}`" for command in commands(grid.jobs, line)]
    measured = _measured(grid.jobs)
    return "\n".join([*lines, *(["", measured] if measured else [])]) + "\n"


def _cell(grid: Grid, job: Job, name: str) -> str:
    text = grid.cell(job, name)
    return f"**{text}**" if grid.is_bold(job, name) else text


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def commands(jobs: Sequence[Job], line: Line | None = None) -> list[str]:
    """What was typed: the line, or each command that left a result; quoted for a shell."""
    if line is not None:
        return [f"python {shlex.join(line.command)}"]
    found = (((job.result or {}).get("environment") or {}).get("command") for job in jobs)
    return list(dict.fromkeys(f"python {shlex.join(map(str, command))}" for command in found if command))


def _measured(jobs: Sequence[Job]) -> str:
    """Where the first finished run was measured; the lights say whether the others were elsewhere."""
    machine = next(
        (job.result["environment"] for job in jobs if job.result and "environment" in job.result), None
    )
    if not machine:
        return ""
    git = machine.get("git") or {}
    sha = str(git.get("sha") or "unknown")[:10] + (" (changed)" if git.get("dirty") else "")
    device = machine.get("gpu") or machine.get("cpu")
    return f"Measured with torch {machine.get('torch')} on {device}, commit {sha}."
