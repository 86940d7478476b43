"""The jobs of a study, read from their ``status.json`` and ``result.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUS, RESULT, DISTRIBUTION = "status.json", "result.json", "distribution.json"
# Settings that tell jobs apart, in the order in which a label names them.
LABEL_KEYS = (
    "model",
    "precision",
    "scale_mode",
    "granularity",
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
)
# Keys that a label leaves out: what they stand for is told otherwise.
UNTOLD = ("arm", "name", "group", "tags", "experiment", "sweeps", "debug")
# Parts of a label that say enough without their key.
SPEAKING = ("model", "precision", "scale_mode", "granularity", "observer", "calibration")

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
    def is_done(self) -> bool:
        """Whether it ended well and left a result."""
        return self.state == "done" and self.result is not None

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers by name."""
        found = (self.result or {}).get("metrics", {})
        return {name: float(metric["value"]) for name, metric in found.items()}

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
        return _read(self.folder / DISTRIBUTION)


def _typed(override: str) -> tuple[str, Any]:
    key, _, text = override.lstrip("+~").partition("=")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


def collect(folder: Path) -> list[Job]:
    """All runs in ``folder`` or below it, in the order of their numbers, with labels.

    Args:
        folder: Of one run or of a multirun; files that cannot be read are left out with a warning.
    """
    jobs = []
    for path in sorted(folder.rglob(STATUS)):
        status = _read(path)
        if status is not None:
            jobs.append(Job(path.parent, status, _read(path.parent / RESULT)))
    jobs.sort(key=lambda job: (str(job.folder.parent), job.number, str(job.folder)))
    for job, label in zip(jobs, labels(jobs), strict=True):
        job.label = label
    return jobs


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s) and is left out", path, error)
        return None
    return found if isinstance(found, dict) else None


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
        if key == "scale_mode" or len({str(s[key]) for s in settings if s.get(key) is not None}) > 1
    ]


def shown(value: Any) -> str:
    """A setting as it is told: lists without their brackets."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def words(settings: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """What to say of the settings ``keys``; nothing of those that are not set or go without saying."""
    for key in keys:
        value = settings.get(key)
        if value is None or (key.startswith("observer") and settings.get("scale_mode") == "fp16"):
            continue
        if key == "observer.percentile":
            yield f"{value:g} %" if isinstance(value, (int, float)) else str(value)
        elif key == "observer" and "observer.percentile" in keys and value == "percentile":
            continue
        else:
            yield str(value) if key in SPEAKING else f"{key.rpartition('.')[2]} {shown(value)}"


@dataclass
class Difference:
    """A fact that should be equal in every arm of a comparison and is not.

    Attributes:
        key: Dotted name.
        values: Labels of jobs by value.
    """

    key: str
    values: dict[str, list[str]] = field(default_factory=dict)


def differences(jobs: Sequence[Job]) -> list[Difference]:
    """Fairness facts in which finished jobs differ."""
    found: dict[str, Difference] = {}
    done = [job for job in jobs if job.result and "fairness" in job.result]
    facts = [dict(flattened(job.result["fairness"])) for job in done if job.result]
    for key in dict.fromkeys(key for fact in facts for key in fact):
        difference = Difference(key)
        for job, fact in zip(done, facts, strict=True):
            difference.values.setdefault(str(fact.get(key)), []).append(job.label)
        if len(difference.values) > 1:
            found[key] = difference
    return list(found.values())
