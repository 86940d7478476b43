"""The jobs of a study, read from their ``status.json`` and ``result.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.study.files import read_json
from dualscale_mamba.study.folder import RESULT, STATUS, Entry, Line, StudyFolder, state_of

DISTRIBUTION = "distribution.json"
# Settings that tell jobs apart, in the order in which a label names them.
LABEL_KEYS = (
    "model",
    "precision",
    "scale_mode",
    "granularity",
    "state",
    "quantize.sites",
    "observer",
    "precision.x_proj_reads",
    "precision.linear_input_scale",
    "observer.percentile",
    "scale_mode.fine_codes",
    "scale_mode.headroom",
    "scale_mode.inner_codes",
    "calibration",
    "calibration.source",
    "calibration.samples",
    "seed",
    "calibration.seed",
)
# Keys that a label leaves out: what they stand for is told otherwise.
UNTOLD = ("arm", "name", "group", "tags", "experiment", "sweeps", "debug")
# Last parts of a key that say too little alone.
VAGUE = ("bits",)
# Parts of a label that say enough without their key.
SPEAKING = ("model", "precision", "scale_mode", "granularity", "state", "observer", "calibration")

# Choices of scale_mode and state that leave values as they are.
UNQUANTIZED, VALUES = "fp16", "unquantized"

# What to say of a job that left no error.
REASONS = {
    "waiting": "it has not begun",
    "running": "it is still running",
    "killed": "its process ended without a word",
    "interrupted": "it was interrupted",
    "done": "its result cannot be read",
}

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """One run of a study.

    Attributes:
        folder: Where it wrote.
        status: Content of its ``status.json``.
        result: Content of its ``result.json``, or None if it has none.
        label: What tells it from the others of its study.
        id: Content hash, or the folder's name.
        state: One of ``study.folder.STATES``.
    """

    folder: Path
    status: dict[str, Any]
    result: dict[str, Any] | None = None
    label: str = ""
    id: str = ""
    state: str = ""

    def __post_init__(self) -> None:
        self.id = self.id or str(self.status.get("id") or self.folder.name)
        self.state = self.state or str(self.status.get("state") or "waiting")

    @property
    def number(self) -> int:
        """Number in the multirun."""
        return int(self.status.get("number") or 0)

    @property
    def arm(self) -> str:
        """Baseline, control, treatment, or nothing."""
        return str(self.status.get("arm") or "")

    @property
    def scale_mode(self) -> str:
        """The chosen file of the group ``scale_mode``."""
        return str(self.status.get("choices", {}).get("scale_mode", ""))

    @property
    def state_format(self) -> str:
        """The chosen file of the group ``state``; empty where the state between steps keeps its values."""
        chosen = str(self.status.get("choices", {}).get("state", ""))
        return "" if chosen == VALUES else chosen

    @property
    def is_unquantized(self) -> bool:
        """Whether neither the SSM input nor the state has codes: what everything is measured against."""
        return self.scale_mode == UNQUANTIZED and not self.state_format

    @property
    def is_done(self) -> bool:
        """Whether it ended well and left a result."""
        return self.state == "done" and self.result is not None

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers by name."""
        found: dict[str, float] = {}
        for name, metric in (self.result or {}).get("metrics", {}).items():
            try:
                found[name] = float(metric["value"])
            except (TypeError, ValueError, KeyError):
                logger.warning("%s: the metric %s cannot be read and is left out", self.folder, name)
        return found

    @property
    def error(self) -> str:
        """Why it has no result, on one line; empty if it has one."""
        if self.is_done:
            return ""
        lines = str(self.status.get("error") or "").splitlines()
        return lines[0] if lines else REASONS.get(self.state, "it has not ended")

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the configuration under dotted keys and choices of files; else what was typed."""
        typed = dict(_typed(override) for override in self.status.get("overrides", []))
        return {
            **typed,
            **dict(flattened((self.result or {}).get("config", {}))),
            **self.status.get("choices", {}),
        }

    def distribution(self) -> dict[str, Any] | None:
        """Histogram and levels of one SSM input, if the run has saved them."""
        return read_json(self.folder / DISTRIBUTION)


def _typed(override: str) -> tuple[str, Any]:
    key, _, text = override.lstrip("+~").partition("=")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def collect(folder: Path, line: str | None = None, everything: bool = False) -> list[Job]:
    """The jobs of a study in their order, with labels; files that cannot be read are left out with a warning.

    Args:
        folder: Of a multirun: the jobs of one line, also those that have not begun. Of anything else: each run in it
            or below it.
        line: First characters of a line's id; by default the line that was typed last.
        everything: All jobs that are there, whatever line they belong to.

    Raises:
        ConfigError: There is no such line.
    """
    study = StudyFolder(folder)
    chosen = None if everything else _line(study, line)
    if chosen is not None:
        jobs = [_job(study.job(entry.id), entry) for entry in chosen.entries]
    else:
        root = study.jobs if study.jobs.is_dir() else folder
        jobs = [_job(path.parent) for path in sorted(root.rglob(STATUS))]
        jobs = [job for job in jobs if job.status]
        jobs.sort(key=lambda job: (str(job.folder.parent), job.number, str(job.folder)))
    for job, label in zip(jobs, labels(jobs), strict=True):
        job.label = label
    return jobs


def line_of(folder: Path, line: str | None = None, everything: bool = False) -> Line | None:
    """The line that :func:`collect` goes by, or None."""
    return None if everything else _line(StudyFolder(folder), line)


def _line(study: StudyFolder, wanted: str | None) -> Line | None:
    try:
        return study.line(wanted) if wanted is not None else study.latest()
    except KeyError as error:
        if wanted is None:  # a damaged file lacks a key
            logger.warning(
                "a line of %s cannot be read: %s is missing; all jobs are taken", study.path, error
            )
            return None
        raise ConfigError("line", wanted, f"the first characters of one line of {study.path}") from error
    except (TypeError, ValueError, AttributeError) as error:
        logger.warning("a line of %s cannot be read (%s); all jobs are taken", study.path, error)
        return None


def _job(folder: Path, entry: Entry | None = None) -> Job:
    """A job as its files say, with what the line calls it."""
    status = _with_mappings(read_json(folder / STATUS), ("choices",)) or {}
    state = state_of(folder)
    if entry is not None:
        own = asdict(entry)
        status = {**status, **own, "overrides": list(entry.overrides)}
    result = _with_mappings(read_json(folder / RESULT), ("metrics", "config", "fairness", "environment"))
    return Job(folder, status, result, id=entry.id if entry else "", state=state)


def _with_mappings(content: dict[str, Any] | None, keys: Sequence[str]) -> dict[str, Any] | None:
    """A file's content, with nothing in place of parts that should be mappings and are not."""
    if content is None:
        return None
    wrong = [key for key in keys if key in content and not isinstance(content[key], Mapping)]
    return {key: value for key, value in content.items() if key not in wrong}


def flattened(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def labels(jobs: Sequence[Job]) -> list[str]:
    """What tells each job from the others, e.g. ``dual 99.0 fine_codes 160``; always with the scale mode."""
    settings = [job.settings for job in jobs]
    differing = differing_keys(jobs)
    made = [" ".join(words(s, differing)) or job.folder.name for job, s in zip(jobs, settings, strict=True)]
    return [
        f"{label} ({job.folder.name})" if made.count(label) > 1 else label
        for label, job in zip(made, jobs, strict=True)
    ]


def differing_keys(jobs: Sequence[Job]) -> list[str]:
    """Settings in which jobs differ, of those that are worth telling; always with the scale mode."""
    settings = [job.settings for job in jobs]
    typed = [_typed(override)[0] for job in jobs for override in job.status.get("overrides", [])]
    return [
        key
        for key in dict.fromkeys([*LABEL_KEYS, *(key for key in typed if key not in UNTOLD)])
        if key == "scale_mode" or len({str(s[key]) for s in settings if counts(s, key)}) > 1
    ]


def counts(settings: Mapping[str, Any], key: str) -> bool:
    """Whether a job has a value for a key: null is one where null and another value were typed."""
    return key in settings and (settings[key] is not None or key not in LABEL_KEYS)


def shown(value: Any) -> str:
    """A setting as it is told: lists without their brackets, null as ``none``."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def called(key: str) -> str:
    """The last part of a key; of a key whose last part says too little, the last two."""
    parts = key.split(".")
    return " ".join(parts[-2:] if parts[-1] in VAGUE else parts[-1:])


def words(settings: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """What to say of the settings ``keys``; nothing of those that are not set or go without saying."""
    for key in keys:
        value = settings.get(key)
        if not counts(settings, key) or (key.startswith("observer") and settings.get("scale_mode") == "fp16"):
            continue
        if key == "scale_mode" and value == UNQUANTIZED and settings.get("state", VALUES) != VALUES:
            continue
        if key == "observer.percentile":
            yield f"{value:g} %" if isinstance(value, (int, float)) else str(value)
        elif key == "observer" and "observer.percentile" in keys and value == "percentile":
            continue
        else:
            yield str(value) if key in SPEAKING else f"{called(key)} {shown(value)}"
