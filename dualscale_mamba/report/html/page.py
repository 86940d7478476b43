"""The page of a study: everything in one file, made from the jobs' files alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.drawing import COLOURS, OTHER_COLOUR
from dualscale_mamba.report.html.evidence import Evidence, gather
from dualscale_mamba.report.html.layers import layers, least
from dualscale_mamba.report.html.provenance import files_of, provenance, short
from dualscale_mamba.report.html.quantities import Quantity, finite, quantities
from dualscale_mamba.report.html.settings import compact, matrix, series, series_keys
from dualscale_mamba.report.html.wording import LIGHTS, SHOWN_VERDICTS, TRACEBACK, effect_table, significance
from dualscale_mamba.report.tables import key_metrics
from dualscale_mamba.study.files import write_text
from dualscale_mamba.study.folder import Line

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"
ONE_CODE = "per_tensor"
SCRIPTS = ("report.js", "table.js", "charts.js", "layers.js", "differences.js")


def write_page(
    path: Path, jobs: Sequence[Job], title: str, line: Line | None = None, reference: str | None = None
) -> Path:
    """Write the page of a study.

    Args:
        path: File to write; links to the runs' files are relative to its folder.
        jobs: All of them, whatever became of them.
        title: Of the study.
        line: What was typed, if known.
        reference: What the others are compared with; see :func:`~dualscale_mamba.report.arms.settings`.

    Returns:
        ``path``.

    Raises:
        OSError: The page cannot be written; an older one stays.
    """
    heads = key_metrics(dict.fromkeys(name for job in jobs for name in job.metrics))
    write_text(path, rendered(path, jobs, title, gather(jobs, heads, reference), line))
    return path


def rendered(
    path: Path, jobs: Sequence[Job], title: str, evidence: Evidence, line: Line | None = None
) -> str:
    """The page as text, from the jobs and what the statistics say of them."""
    from plotly.offline import get_plotlyjs

    heads = key_metrics(dict.fromkeys(name for job in jobs for name in job.metrics))
    known = quantities(jobs, heads)
    columns = [quantity for quantity in known if quantity.name in heads]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            head=provenance(jobs, title, line),
            columns=columns,
            rows=[_row(path, place, job, columns, evidence) for place, job in enumerate(jobs)],
            has_arms=any(job.arm for job in jobs),
            evidence=evidence,
            significance=significance,
            shown_verdicts=SHOWN_VERDICTS,
            effect_table=effect_table,
            light_kinds=LIGHTS,
            differing=matrix(jobs),
            several_codes=any(job.settings.get("granularity", ONE_CODE) != ONE_CODE for job in jobs),
            jobs=jobs,
            failed=[(job, _traceback(job)) for job in jobs if not job.is_done and job.state != "waiting"],
            data=embedded(_data(jobs, known, columns, evidence)),
            scripts=SCRIPTS,
            plotly=get_plotlyjs(),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("dualscale_mamba.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None

    def verbatim(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    environment.globals["verbatim"] = verbatim
    environment.filters["code"] = lambda text: Markup(text.replace("</script", "<\\/script"))
    return environment


def embedded(content: Any) -> Any:
    """JSON that no HTML parser can take for the end of its script, whatever a run has written into it."""
    from markupsafe import Markup

    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _row(path: Path, place: int, job: Job, columns: Sequence[Quantity], evidence: Evidence) -> dict[str, Any]:
    """One line of the comparison table."""
    cells = []
    for quantity in columns:
        value = job.metrics.get(quantity.name)
        interval = evidence.intervals.get((place, quantity.name))
        cells.append(
            {
                "text": quantity.text(value),
                "sort": quantity.embedded(value),
                "interval": "" if interval is None else " to ".join(quantity.text(end) for end in interval),
                "best": evidence.standing_out.get(quantity.name) == place,
            }
        )
    return {
        "job": job,
        "cells": cells,
        "links": [(short(file), _relative(file, path.parent)) for file in files_of(job)],
    }


def _relative(file: Path, folder: Path) -> str:
    target = os.path.relpath(file.absolute(), folder.absolute())
    return quote(Path(target).as_posix()) + ("/" if file.is_dir() else "")


def _traceback(job: Job) -> str:
    lines = str(job.status.get("traceback") or "").rstrip().splitlines()
    return "\n".join(lines[-TRACEBACK:])


def _data(
    jobs: Sequence[Job], known: Sequence[Quantity], columns: Sequence[Quantity], evidence: Evidence
) -> dict[str, Any]:
    """What the page's script draws from."""
    keys = series_keys(jobs)
    judge = next((quantity for quantity in columns if quantity.better), None)
    values = [finite(job.metrics.get(judge.name)) if judge else None for job in jobs]
    places = {id(job): place for place, job in enumerate(jobs)}
    judged = [places.get(id(job)) for v in evidence.verdicts for job in (v.reference, v.candidate)]
    return {
        "palette": COLOURS,
        "otherColour": OTHER_COLOUR,
        "metrics": [quantity.described() for quantity in known],
        "runs": [_run(place, job, known, evidence, keys) for place, job in enumerate(jobs)],
        "keys": {key: values for key, values in matrix(jobs).items() if len(set(values)) <= 12},
        "settings": compact(jobs),
        "layers": layers(
            jobs,
            least(values, judge.better if judge else ""),
            [place for place in dict.fromkeys(judged) if place is not None],
        ),
    }


def _run(
    place: int, job: Job, known: Sequence[Quantity], evidence: Evidence, keys: Sequence[str]
) -> dict[str, Any]:
    ends: list[Mapping[int, float | None]] = []
    for quantity in known:
        found = evidence.intervals.get((place, quantity.name))
        ends.append({} if found is None else dict(enumerate(map(quantity.embedded, found))))
    percentile = job.settings.get("observer.percentile")
    return {
        "label": job.label,
        "arm": job.arm,
        "mode": job.scale_mode,
        "state": job.state,
        "series": series(job, keys),
        "percentile": finite(percentile),
        "values": [quantity.embedded(job.metrics.get(quantity.name)) for quantity in known],
        "intervals": [[end[0], end[1]] if end else None for end in ends],
    }
