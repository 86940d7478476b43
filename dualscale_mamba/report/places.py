"""Where the dots of a study's picture lie: settings from top to bottom, and in each of them the arms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dualscale_mamba.report.arms import told_apart
from dualscale_mamba.report.collect import SPEAKING, Job, called, counts, shown, words

# With fewer settings, or one run in each, every run has a row of its own.
FEWEST_SETTINGS = 3
MOST_MARKS = 8  # that a legend can explain
PERCENTILE = "observer.percentile"
FEWEST_POINTS = 3  # of a curve


@dataclass(frozen=True)
class Row:
    """A row of a picture.

    Attributes:
        label: To its left.
        dots: What lies in it: the mark, which the legend explains, and the run. Without a mark the label says it all.
    """

    label: str
    dots: tuple[tuple[str, Job], ...]


def rows_of(jobs: Sequence[Job]) -> tuple[str, list[Row]]:
    """A row for each setting with a mark for each arm, where several settings have several arms; else one a run.

    Returns:
        What the rows differ in, empty where each is a run, and the rows.
    """
    of_an_arm, of_a_setting = told_apart(jobs)
    settings: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        settings.setdefault(tuple(_value(job, key) for key in of_a_setting), []).append(job)
    marks = {_mark(job, of_an_arm) for job in jobs}
    if len(settings) < FEWEST_SETTINGS or len(jobs) < 2 * len(settings) - 1 or len(marks) > MOST_MARKS:
        return "", [Row(f"{job.arm}: {job.label}" if job.arm else job.label, (("", job),)) for job in jobs]
    usual = _usual(list(settings), of_a_setting)
    return ", ".join(called(key) for key in of_a_setting if key not in usual), [
        Row(_label(of_a_setting, values, usual), tuple((_mark(job, of_an_arm), job) for job in own))
        for values, own in settings.items()
    ]


def curves_of(jobs: Sequence[Job]) -> dict[str, list[tuple[float, Job]]]:
    """Scale modes with their runs by percentile, where a study is about percentiles; else nothing."""
    of_an_arm, of_a_setting = told_apart(jobs)
    if of_a_setting or set(of_an_arm) - {"scale_mode", "arm", "observer", PERCENTILE}:
        return {}
    found: dict[str, list[tuple[float, Job]]] = {}
    for job in jobs:
        place = job.settings.get(PERCENTILE)
        if isinstance(place, (int, float)):
            found.setdefault(job.scale_mode, []).append((float(place), job))
    curves = {mode: sorted(points, key=lambda point: point[0]) for mode, points in found.items()}
    enough = [mode for mode, points in curves.items() if len(points) >= FEWEST_POINTS]
    return curves if len(enough) > 1 else {}


def _value(job: Job, key: str) -> str:
    return shown(job.settings[key]) if counts(job.settings, key) else ""


def _usual(settings: Sequence[tuple[str, ...]], keys: Sequence[str]) -> dict[str, str]:
    """Of each key the value that most settings have; of the key with most values none, for it names the rows."""
    found = {}
    main = max(range(len(keys)), key=lambda index: len({values[index] for values in settings}))
    for index, key in enumerate(keys):
        if index != main:
            found[key] = Counter(values[index] for values in settings).most_common(1)[0][0]
    return found


def _label(keys: Sequence[str], values: Sequence[str], usual: dict[str, str]) -> str:
    """What a setting has that is not usual."""
    parts = []
    for key, value in zip(keys, values, strict=True):
        if key not in usual:
            parts.append(value or "none")
        elif value != usual[key]:
            parts.append(value if key in SPEAKING else f"{called(key)} {value or 'none'}")
    return ", ".join(parts)


def _mark(job: Job, keys: Sequence[str]) -> str:
    told = " ".join(words(job.settings, [key for key in keys if key != "arm"])) or job.scale_mode
    return f"{told} ({job.arm})" if job.arm else told
