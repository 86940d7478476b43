"""What changes from one arm to another, metric by metric, and what the noise allows to say of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dualscale_mamba.report.items import OVER_TASKS, Column, accuracies
from dualscale_mamba.report.pairs import Runs, measured, values_of
from dualscale_mamba.report.tables import key_metrics
from dualscale_mamba.statistics import SIGNIFICANT, Paired, compare, compare_outcomes, holm, ratio_interval

Values = NDArray[np.float64]
# Means over windows, the most telling first, and the unit of a difference.
OVER_WINDOWS = (
    (r"divergence/(.+)/kl", "nats/token", "lower"),
    (r"perplexity/(.+)/perplexity", "perplexity", "lower"),
    (r"divergence/(.+)/top1_agreement", "points", "higher"),
    (r"divergence/(.+)/perplexity", "perplexity", "lower"),
)
POINTS = 100.0
COMPARISONS_KEPT = 8192


@dataclass(frozen=True)
class Effect:
    """A metric of a candidate against the reference.

    Attributes:
        metric: Its name, or ``accuracy over 6 tasks``.
        head: Its name in a table.
        unit: Of all values here; ``points`` are percent of the items.
        better: ``lower``, ``higher``, or empty.
        reference: The reference's value on the items that were compared.
        candidate: The candidate's.
        difference: Candidate minus reference.
        low: Lower end of the difference's 95 % interval, None without items.
        high: Upper end.
        p_value: Two-sided, None without items.
        adjusted: The same, corrected for the number of tasks of this comparison (Holm).
        detectable: Smallest true difference that this sample would show.
        items: Number of pairs.
        test: How it was tested; ``exact`` for counts of bytes, ``p10 to p90`` for times.
        significant: Whether it is more than noise.
        seeds: Runs of each arm.
        equal: Whether every item is equal.
        relative: The difference as a part of the reference, and its 95 % interval, for lengths of no natural unit.
    """

    metric: str
    head: str
    unit: str
    better: str
    reference: float
    candidate: float
    difference: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    adjusted: float | None = None
    detectable: float | None = None
    items: int = 0
    test: str = ""
    significant: bool = False
    seeds: int = 1
    equal: bool = False
    relative: tuple[float, float, float] | None = None


def effects(runs: Runs, windows: Sequence[tuple[str, str, str]] = OVER_WINDOWS) -> tuple[Effect, ...]:
    """All metrics with items that can be compared: accuracy over the tasks, each task, then windows of texts.

    Args:
        runs: Of the two arms.
        windows: Which of ``OVER_WINDOWS`` are wanted.
    """
    common = {
        name: own
        for name, own in measured(runs.jobs).items()
        if all(column.ids == own[0].ids for column in own) and len(values_of(own[0], runs.split)) > 1
    }
    heads = key_metrics(common)
    alone = sum(own[0].is_perplexity for own in common.values()) == 1
    tasks = accuracies(list(common))
    found = []
    single = [_of_items((name, heads[name], "points", "higher"), [common[name]], runs) for name in tasks]
    if len(tasks) > 1:
        name = f"{OVER_TASKS} {len(tasks)} tasks"
        found = [_of_items((name, "accuracy", "points", "higher"), [common[task] for task in tasks], runs)]
        single = _adjusted(single)
    found += single
    for pattern, unit, better in windows:
        for name in common:
            match = re.fullmatch(pattern, name)
            if match:
                source = "" if alone else f" {match[1]}".replace("_", " ")
                head = heads.get(name, f"ppl{source}")
                found.append(_of_items((name, head, unit, better), [common[name]], runs))
    return tuple(found)


def _adjusted(found: Sequence[Effect]) -> list[Effect]:
    """Tasks looked at one by one have to pass Holm's correction."""
    corrected = holm([effect.p_value or 0.0 for effect in found])
    return [
        replace(effect, adjusted=value, significant=effect.significant and value < SIGNIFICANT)
        for effect, value in zip(found, corrected, strict=True)
    ]


def _of_items(told: tuple[str, str, str, str], parts: Sequence[Sequence[Column]], runs: Runs) -> Effect:
    """One metric over the paired items, or the mean of several.

    Args:
        told: Name, head, unit and better direction.
        parts: For each metric its columns, one a run.
        runs: Of the two arms.
    """
    numbers = _numbers(tuple(tuple(own) for own in parts), len(runs.reference), runs.split)
    found, reference, candidate = numbers.paired, numbers.reference, numbers.candidate
    ends = (found.mean, found.low, found.high, found.detectable)
    if parts[0][0].is_perplexity:
        # The ratio of perplexities is the exponential of the difference of the mean log-likelihoods.
        reference, candidate = math.exp(reference), math.exp(candidate)
        ends = tuple(None if end is None else reference * math.expm1(end) for end in ends)  # type: ignore[assignment]
    elif told[2] == "points":
        reference, candidate = POINTS * reference, POINTS * candidate
        ends = tuple(None if end is None else POINTS * end for end in ends)  # type: ignore[assignment]
    return Effect(
        *told,
        reference,
        candidate,
        *ends[:3],
        p_value=found.p_value,
        detectable=ends[3],
        items=found.pairs,
        test=found.test,
        significant=found.is_significant,
        seeds=found.seeds,
        equal=numbers.equal,
        relative=numbers.relative,
    )


@dataclass(frozen=True)
class _Numbers:
    paired: Paired
    reference: float
    candidate: float
    relative: tuple[float, float, float] | None
    equal: bool


@lru_cache(maxsize=COMPARISONS_KEPT)
def _numbers(parts: tuple[tuple[Column, ...], ...], seeds: int, split: str | None) -> _Numbers:
    """Compare columns, the first ``seeds`` of which are the reference's; kept, for several reports ask for the same."""
    rows = [np.stack([values_of(column, split) for column in own]) for own in parts]
    sides = [(own[:seeds], own[seeds:]) for own in rows]
    reference, candidate = (float(np.mean([side[arm].mean() for side in sides])) for arm in (0, 1))
    if len(sides) == seeds == 1 and all(column.is_outcome for column in parts[0]):
        found = compare_outcomes(sides[0][1][0], sides[0][0][0])
    else:
        found = compare([second - first for first, second in sides])
    equal = all(np.array_equal(*side) for side in sides)
    return _Numbers(found, reference, candidate, _relative(sides[0], parts[0][0], found), equal)


def _relative(side: tuple[Values, Values], own: Column, found: Paired) -> tuple[float, float, float] | None:
    """A difference as a part of the reference, where all values are lengths: divergences and perplexities."""
    if own.is_perplexity:
        return math.expm1(found.mean), math.expm1(found.low), math.expm1(found.high)
    first, second = (arm.mean(axis=0) for arm in side)
    if own.is_share or first.sum() == 0.0 or min(first.min(), second.min()) < 0:
        return None
    low, high = ratio_interval(second, first)
    return float(second.mean() / first.mean()) - 1, low - 1, high - 1
