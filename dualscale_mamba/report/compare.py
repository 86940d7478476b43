"""The comparison of a study: tables, verdicts and what is not equal, on the console and as files."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dualscale_mamba.report import tables
from dualscale_mamba.report.collect import Job, collect, line_of
from dualscale_mamba.report.fairness import BY_DESIGN, DIFFERENT, EQUAL, UNKNOWN, Light, lights
from dualscale_mamba.report.grid import Grid
from dualscale_mamba.report.latex import latex
from dualscale_mamba.report.markdown import commands, markdown
from dualscale_mamba.report.spreadsheet import spreadsheet
from dualscale_mamba.report.state_curves import write_study_curves
from dualscale_mamba.report.study_picture import write_study_figure
from dualscale_mamba.report.verdicts import Verdict, verdicts, warnings
from dualscale_mamba.study.files import write_text
from dualscale_mamba.study.folder import Line

MARKDOWN, CSV, LATEX, PICTURE = "comparison.md", "comparison.csv", "comparison.tex", "comparison.png"
PAGE, PAGE_MODULE = "report.html", "dualscale_mamba.report.html.page"
ERROR_WIDTH = 160
VERDICTS_ON_CONSOLE = 12
NAMED = 4  # jobs that one line names
FEW = 2  # jobs that stand behind each of several values
STYLES = {
    "waiting": "dim",
    "running": "cyan",
    "interrupted": "yellow",
    "failed": "red",
    "killed": "red",
}

logger = logging.getLogger(__name__)
Note = tuple[str, str]


def write_comparison(
    folder: Path,
    console: Console | None = None,
    line: str | None = None,
    everything: bool = False,
    reference: str | None = None,
) -> bool:
    """Compare the runs of ``folder`` from their files: print it, write ``comparison.*`` and ``report.html`` there.

    Args:
        folder: Of a multirun, or any folder with runs below it; jobs without a result are named with the reason.
        console: Where to print.
        line: First characters of the id of a line that was typed; by default the latest.
        everything: All jobs of the folder, whatever line they belong to.
        reference: What the others are compared with; see :func:`~dualscale_mamba.report.arms.settings`.

    Returns:
        Whether there was anything to compare.

    Raises:
        ConfigError: There is no such line, or no finished run is what ``reference`` names.
    """
    jobs = collect(folder, line, everything)
    if not jobs:
        return False
    chosen = line_of(folder, line, everything)
    title, grid = _title(jobs, folder, chosen), Grid.of(jobs)
    told = verdicts(jobs, reference)
    said = _said(jobs, told)
    fair = [*_boldness(grid), *_fairness(lights(jobs), told)]
    notes = [*_missing(jobs), *said, *fair]
    out = console or tables.console()
    out.print()
    out.print(_table(grid, title, grid.on_console(out.width)))
    hidden = len(said) - VERDICTS_ON_CONSOLE
    shown = [*_missing(jobs), *said[:VERDICTS_ON_CONSOLE]]
    shown += [(f"{hidden} more in {MARKDOWN}", "dim")] if hidden > 0 else []
    for text, style in [*shown, *fair]:
        out.print(text, style=style, highlight=False, markup=False)
    texts = [text for text, _ in notes]
    typed = commands(jobs, chosen)
    write_text(folder / MARKDOWN, markdown(grid, title, texts, chosen))
    write_text(folder / CSV, spreadsheet(jobs))
    write_text(folder / LATEX, latex(grid, title, texts, typed[0] if typed else title))
    written = [MARKDOWN, CSV, LATEX, *_pictures(folder, jobs, title, chosen, reference)]
    out.print(f"{tables.near(folder)}/{{{','.join(written)}}}", style="dim", highlight=False, soft_wrap=True)
    return True


def _pictures(
    folder: Path, jobs: Sequence[Job], title: str, line: Line | None, reference: str | None
) -> Iterator[str]:
    """The picture and the page, where something has been measured; what fails must not cost the tables."""
    if any(job.is_done for job in jobs):
        try:
            write_study_figure(folder / PICTURE, jobs, title=title)
            yield PICTURE
        except Exception:
            logger.exception("%s could not be drawn", folder / PICTURE)
        try:
            yield from write_study_curves(folder, jobs, title)
        except Exception:
            logger.exception("the drift over the position could not be drawn in %s", folder)
    try:
        importlib.import_module(PAGE_MODULE).write_page(folder / PAGE, jobs, title, line, reference)
        yield PAGE
    except Exception:
        logger.exception("%s could not be written", folder / PAGE)


def _title(jobs: Sequence[Job], folder: Path, line: Line | None) -> str:
    groups = {str(job.status.get("group")) for job in jobs if job.status.get("group")}
    if len(groups) == 1:
        return groups.pop()
    return line.name if line is not None else folder.parent.name


def _table(grid: Grid, title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    if grid.has_arms:
        table.add_column("arm")
    table.add_column("job", no_wrap=True)
    for name in names:
        table.add_column(grid.title(name), justify="right", no_wrap=True)
    for job in grid.jobs:
        cells = [job.arm] if grid.has_arms else []
        cells.append(grid.row_name(job))
        for name in names:
            text = grid.cell(job, name)
            cells.append(f"[bold green]{text}[/]" if grid.is_bold(job, name) else text)
        table.add_row(*cells, style=None if job.is_done else STYLES.get(job.state, "red"))
    return table


def _missing(jobs: Sequence[Job]) -> Iterator[Note]:
    """The jobs without a result, those of one fate together."""
    fates: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if not job.is_done:
            fates.setdefault((job.state, job.error[:ERROR_WIDTH]), []).append(job)
    for (state, error), own in fates.items():
        yield f"{state}: {_named([job.label for job in own])}: {error}", STYLES.get(state, "red")
    missing = sum(map(len, fates.values()))
    if missing:
        yield f"{missing} of {len(jobs)} jobs have no result", "bold red"


def _said(jobs: Sequence[Job], told: Sequence[Verdict]) -> list[Note]:
    """Warnings, then verdicts."""
    said = [(f"warning: {text}", "yellow") for text in warnings(jobs)]
    for verdict in told:
        first = next((effect for effect in verdict.effects if effect.p_value is not None), None)
        said.append((verdict.sentence, "green" if first is not None and first.significant else "default"))
    return said


def _boldness(grid: Grid) -> Iterator[Note]:
    if sum(job.is_done for job in grid.jobs) > 1 and not grid.bold:
        yield "no value is bold: none is better than the next by more than the noise", "dim"


def _fairness(found: Sequence[Light], told: Sequence[Verdict]) -> Iterator[Note]:
    """What is not equal: within a comparison with its values, else by name; then what is not known; then the rest.

    What a study varies between its settings, such as the model, is not unfair: arms are compared within a setting.
    """
    differing = (DIFFERENT, BY_DESIGN)
    unfair = {light.name for verdict in told for light in verdict.lights if light.state in differing}
    varied = []
    for light in found:
        if light.state == DIFFERENT and told and light.name not in unfair:
            varied.append(light.name)
        elif light.state in differing:
            values: dict[str, list[str]] = {}
            for label, value in light.values.items():
                values.setdefault(value, []).append(label)
            parts = [f"{value} ({_counted(labels)})" for value, labels in values.items()]
            by_design = light.state == BY_DESIGN
            head = "different by design" if by_design else "not equal between jobs"
            yield f"{head}: {light.name}: " + " / ".join(parts), "dim" if by_design else "yellow"
    if varied:
        yield "varied between settings, equal within each comparison: " + ", ".join(varied), "dim"
    unknown = [light.name for light in found if light.state == UNKNOWN]
    if unknown and found[0].values:
        yield "not recorded by every job: " + ", ".join(unknown), "yellow"
    equal = [light.name for light in found if light.state == EQUAL]
    if equal and len(found[0].values) > 1:
        yield "equal in all jobs: " + ", ".join(equal), "dim"


def _counted(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= FEW else f"{len(labels)} jobs"


def _named(labels: Sequence[str]) -> str:
    more = len(labels) - NAMED
    return ", ".join(labels[:NAMED]) + (f" and {more} more" if more > 0 else "")
