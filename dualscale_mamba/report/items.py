"""What each run measured item by item: windows and documents, known by their ids, never by their place alone."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dualscale_mamba.data.text import label
from dualscale_mamba.statistics import average_interval, mean_intervals, share_interval

if TYPE_CHECKING:
    from dualscale_mamba.report.collect import Job

Ids = tuple[tuple[int, str], ...]
PREFIX, SUFFIX = "items_", ".jsonl"
# Fields of a document's row that are no metric.
NO_METRIC = ("task", "doc_id", "doc_hash", "target", "responses")
FILES_KEPT = 4096
# Tasks whose endings differ in length are counted by acc_norm, as the published tables do; the others by acc.
BY_LENGTH = ("hellaswag", "arc_challenge")
ACCURACY = re.compile(r"([^/]+)/(acc|acc_norm)")
OVER_TASKS = "accuracy over"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Column:
    """One metric of one run.

    Attributes:
        ids: Of the items, in their order; columns of equal items share one object.
        values: (items,); the metric is their mean, or its exponential for a perplexity.
        is_perplexity: Whether it is the exponential.
        task: Name of the task, empty for windows of a text.
        is_share: Whether the values are shares of something, right answers or tokens.
    """

    ids: Ids
    values: NDArray[np.float64]
    is_perplexity: bool = False
    task: str = ""
    is_share: bool = False

    @cached_property
    def is_outcome(self) -> bool:
        """Whether each item is either right or wrong."""
        return bool(self.task) and bool(((self.values == 0.0) | (self.values == 1.0)).all())


@dataclass(frozen=True)
class _Source:
    """A file as it is now, and what its rows are about."""

    path: Path
    changed: int
    size: int
    evaluation: str
    text: str
    content: str


def columns(job: Job) -> dict[str, Column]:
    """The metrics of a run that have items, by their names in ``result.json``; files that are damaged are left out."""
    found: dict[str, Column] = {}
    for source in _sources(job):
        found |= _read(source)
    return found


def accuracies(names: Sequence[str]) -> list[str]:
    """For each task the metric that counts its right answers."""
    tasks: dict[str, str] = {}
    for name in names:
        match = ACCURACY.fullmatch(name)
        if match and (match[1] not in tasks or (match[2] == "acc_norm") == (match[1] in BY_LENGTH)):
            tasks[match[1]] = name
    return list(tasks.values())


def columns_of(job: Job, metric: str) -> list[Column]:
    """The items of one metric of a run, or of all its tasks where ``metric`` is their average; else nothing."""
    own = columns(job)
    if metric.startswith(OVER_TASKS):
        return [own[name] for name in accuracies(list(own))]
    return [own[metric]] if metric in own else []


def interval(job: Job, metric: str) -> tuple[float, float] | None:
    """95 % interval of one run's own metric, in the metric's unit; None where it has no items.

    The bootstrap's for means over windows or documents (transported through the exponential for perplexities), Wilson's
    for shares of right answers. It says how far the number would move on other items; whether two runs differ is
    for :func:`~dualscale_mamba.report.verdicts.verdicts`, which pairs the items and sees much more.
    """
    if metric.startswith(OVER_TASKS):
        own = columns_of(job, metric)
        return average_interval([column.values for column in own]) if own else None
    return next((found[metric] for source in _sources(job) if metric in (found := _intervals(source))), None)


def _sources(job: Job) -> list[_Source]:
    facts = (job.result or {}).get("fairness", {}).get("evaluation", {})
    found = []
    for path in sorted(job.folder.glob(f"{PREFIX}*{SUFFIX}")):
        name = path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
        own = facts.get(name) if isinstance(facts, Mapping) else None
        own = own if isinstance(own, Mapping) else {}
        text = label(str(own.get("source", name)))
        content = str(own.get("tokens_hash", ""))
        found.append(_Source(path, path.stat().st_mtime_ns, path.stat().st_size, name, text, content))
    return found


@lru_cache(maxsize=FILES_KEPT)
def _read(source: _Source) -> dict[str, Column]:
    try:
        rows = [json.loads(line) for line in source.path.read_text(encoding="utf-8").splitlines()]
        return _of_tasks(rows) if rows and "task" in rows[0] else _of_windows(rows, source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s) and is left out", source.path, error)
        return {}


def _of_windows(rows: Sequence[Mapping[str, Any]], source: _Source) -> dict[str, Column]:
    if not rows:
        return {}
    rows = sorted(rows, key=lambda row: int(row["window"]))
    ids = _shared(tuple((int(row["window"]), source.content) for row in rows))
    kind = "divergence" if "kl" in rows[0] else "perplexity"
    numbers = {
        key: np.asarray([float(row[key]) for row in rows])
        for key in ("kl", "kl_last", "state_error_last", "top1_agreement", "nll", "reference_nll")
        if key in rows[0]
    }
    found = {
        key: Column(ids, values, is_share=key == "top1_agreement")
        for key, values in numbers.items()
        if key != "reference_nll"
    }
    if "reference_nll" in numbers and "nll" in numbers:
        found["delta_nll"] = Column(ids, numbers["nll"] - numbers["reference_nll"])
    if "nll" in numbers:
        found["perplexity"] = Column(ids, numbers["nll"], is_perplexity=True)
    return _finite({f"{kind}/{source.text}/{key}": column for key, column in found.items()}, source.path)


def _of_tasks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        tasks.setdefault(str(row["task"]), []).append(row)
    found: dict[str, Column] = {}
    for task, own in tasks.items():
        own.sort(key=lambda row: (int(row["doc_id"]), str(row["doc_hash"])))
        ids = _shared(tuple((int(row["doc_id"]), str(row["doc_hash"])) for row in own))
        for key, value in own[0].items():
            if key not in NO_METRIC and isinstance(value, (int, float)):
                values = np.asarray([float(row[key]) for row in own])
                # lm-eval keeps a document's log-likelihood under the name of the perplexity that they make.
                perplexity = key == "perplexity"
                found[f"{task}/{key}"] = Column(
                    ids, -values if perplexity else values, perplexity, task, key.startswith("acc")
                )
    return _finite(found, Path("tasks"))


def _finite(found: Mapping[str, Column], path: Path) -> dict[str, Column]:
    wrong = [name for name, column in found.items() if not np.isfinite(column.values).all()]
    for name in wrong:
        logger.warning("%s: %s has items that are no finite numbers, and is not compared", path, name)
    return {name: column for name, column in found.items() if name not in wrong}


@lru_cache(maxsize=64)
def _shared(ids: Ids) -> Ids:
    """One object for equal ids: hundreds of runs read the same documents."""
    if len(set(ids)) != len(ids):
        raise ValueError("an item is there twice")
    return ids


@lru_cache(maxsize=FILES_KEPT)
def _intervals(source: _Source) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    groups: dict[Ids, dict[str, Column]] = {}
    for name, column in _read(source).items():
        if column.is_outcome:
            found[name] = share_interval(column.values)
        elif len(column.values) > 1:
            groups.setdefault(column.ids, {})[name] = column
    for group in groups.values():
        ends = mean_intervals(np.stack([column.values for column in group.values()], axis=1))
        for (name, column), (low, high) in zip(group.items(), ends.T, strict=True):
            found[name] = (
                (float(np.exp(low)), float(np.exp(high)))
                if column.is_perplexity
                else (float(low), float(high))
            )
    return found


@lru_cache(maxsize=64)
def halves(count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two halves of ``count`` items: one to choose settings on, one to test them on.

    Every second item of a fixed shuffle: the shipped pairs alternate between singular and plural, so that every second
    item as they stand would be of one kind.
    """
    first = np.zeros(count, dtype=bool)
    first[np.random.default_rng(count).permutation(count)[::2]] = True
    return first, ~first
