"""The comparison as a LaTeX table, for a paper: booktabs, 95 % intervals, bold only beyond the noise."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.grid import Grid

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
ARROWS = {"↓": r"$\downarrow$", "↑": r"$\uparrow$"}
EXPONENT = re.compile(r"(-?[\d.]+)e([+-]\d+)")


def escaped(text: str) -> str:
    """Text as LaTeX shows it, on one line."""
    return "".join(ARROWS.get(c) or SPECIAL.get(c, c) for c in " ".join(text.split()))


def latex(grid: Grid, title: str, notes: Sequence[str], command: str) -> str:
    r"""A ``table`` that needs ``\usepackage{booktabs}`` and nothing else.

    Args:
        grid: Rows and columns.
        title: Of the study, for the caption.
        notes: Kept as comments, so that the file says what it shows.
        command: That makes the table again.
    """
    arms = ["arm"] if grid.has_arms else []
    heads = [*arms, "job", *(grid.title(name) for name in grid.telling())]
    rows = [
        [*([job.arm] if arms else []), *_row(grid, job)] if not arms else [escaped(job.arm), *_row(grid, job)]
        for job in grid.jobs
        if job.is_done
    ]
    caption = f"{escaped(title)}. In brackets 95\\,\\% intervals over items; bold: better than the next by more than"
    return "\n".join(
        [
            f"% {_comment(command)}",
            *(f"% {_comment(note)}" for note in notes),
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{caption} the noise of the items.}}",
            rf"\begin{{tabular}}{{{'l' * (len(arms) + 1)}{'r' * len(grid.telling())}}}",
            r"\toprule",
            " & ".join(escaped(head) for head in heads) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _comment(text: str) -> str:
    return " ".join(text.split())


def _row(grid: Grid, job: Job) -> list[str]:
    return [escaped(job.label), *(_cell(grid, job, name) for name in grid.telling())]


def _cell(grid: Grid, job: Job, name: str) -> str:
    value, ends = _number(grid.cell(job, name)), grid.ends(job, name)
    if grid.is_bold(job, name):
        value = rf"\textbf{{{value}}}"
    if ends is None:
        return value
    return rf"{value} {{\scriptsize[{_number(ends[0])}, {_number(ends[1])}]}}"


def _number(text: str) -> str:
    """A shown number: powers of ten and minus signs as mathematics."""
    found = EXPONENT.fullmatch(text)
    if found:
        return rf"${found[1]}\cdot10^{{{int(found[2])}}}$"
    return f"${text}$" if text.startswith("-") and text[1:].replace(".", "").isdigit() else escaped(text)
