"""In which settings the jobs of a study differ, and what each of them was run with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dualscale_mamba.report.collect import Job, differing_keys, shown, words

# Where a run wrote and what it was called tell nothing about it.
LEFT_OUT = ("paths.", "name", "hydra")
TARGET = "._target_"
# Told by the colour of a line and by its place on the axis.
ON_AXES = ("scale_mode", "observer", "observer.percentile", "arm")
ABSENT = "—"


def settings_of(job: Job) -> dict[str, str]:
    """Every setting of a job as text; choices of files stand for the classes that they name."""
    known = job.settings
    return {
        key: shown(int(value) if isinstance(value, float) and value.is_integer() else value)
        for key, value in known.items()
        if value is not None
        and not key.startswith(LEFT_OUT)
        and not (key.endswith(TARGET) and key.removesuffix(TARGET) in known)
    }


def matrix(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Settings that differ, each with its value in every job."""
    found = [settings_of(job) for job in jobs]
    # Of a job without a result only what was typed is known: that makes no difference.
    complete = [settings for job, settings in zip(jobs, found, strict=True) if job.result] or found
    keys = dict.fromkeys(key for settings in found for key in settings)
    differing = [key for key in keys if len({settings.get(key, ABSENT) for settings in complete}) > 1]
    return {key: [settings.get(key, ABSENT) for settings in found] for key in differing}


def compact(jobs: Sequence[Job]) -> dict[str, Any]:
    """All settings of all jobs for the page's script: the most common values once, then what deviates."""
    found = [settings_of(job) for job in jobs]
    keys = dict.fromkeys(key for settings in found for key in settings)
    common = {
        key: Counter(settings.get(key, ABSENT) for settings in found).most_common(1)[0][0] for key in keys
    }
    own = [
        {key: settings.get(key, ABSENT) for key in keys if settings.get(key, ABSENT) != common[key]}
        for settings in found
    ]
    return {"common": common, "own": own}


def series_keys(jobs: Sequence[Job]) -> list[str]:
    """Settings beside scale mode and percentile that make a line of a chart its own."""
    return [key for key in differing_keys(jobs) if key not in ON_AXES and key not in ("name", "seed")]


def series(job: Job, keys: Sequence[str]) -> str:
    """What a line of a chart is called."""
    return " ".join([job.scale_mode or "run", *words(_without_mode(job.settings), keys)])


def _without_mode(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "scale_mode"}
