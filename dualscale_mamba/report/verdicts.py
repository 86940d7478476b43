"""What a study says: each arm against the reference, beyond the noise or not, and what else was not equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualscale_mamba.report.arms import Setting, Variant, settings
from dualscale_mamba.report.collect import UNQUANTIZED, Job
from dualscale_mamba.report.costs import costs
from dualscale_mamba.report.effects import OVER_WINDOWS, Effect, effects
from dualscale_mamba.report.fairness import Light, lights
from dualscale_mamba.report.items import ACCURACY, OVER_TASKS, accuracies, columns, columns_of, interval
from dualscale_mamba.report.pairs import TASKS, WINDOWS, Runs, deciding, measured, mismatches, score
from dualscale_mamba.report.sentences import sentence, told
from dualscale_mamba.statistics import SIGNIFICANT, compare, compare_outcomes, holm

__all__ = [
    "Effect",
    "Light",
    "Verdict",
    "average_metric",
    "interval",
    "lights",
    "stands_out",
    "value_of",
    "verdicts",
    "warnings",
]

PERPLEXITIES = [kind for kind in OVER_WINDOWS if kind[1] == "perplexity"]


@dataclass(frozen=True)
class Verdict:
    """One arm against the reference.

    Attributes:
        setting: In which they are compared; empty for the only one.
        reference: A run of the reference.
        candidate: A run of the other arm.
        effects: The deciding one first.
        lights: What must be equal, and whether it is.
        sentence: All of it for people.
    """

    setting: str
    reference: Job
    candidate: Job
    effects: tuple[Effect, ...]
    lights: tuple[Light, ...]
    sentence: str


def verdicts(jobs: Sequence[Job], reference: str | None = None) -> list[Verdict]:
    """Compare every arm with the reference of its setting.

    An arm with several settings of its own (percentile, split of the codes) stands for the best of them, chosen by the
    divergence on one half of the windows and compared on the other: the least of several noisy numbers, on the items
    that made it the least, is too low (Cawley and Talbot, "On Over-fitting in Model Selection", JMLR 11, 2010).
    Documents of tasks, on which nothing was chosen, all count. Without a divergence the tasks are halved instead.

    Args:
        jobs: Of a study.
        reference: See :func:`~dualscale_mamba.report.arms.settings`.

    Raises:
        ConfigError: No finished run is what ``reference`` names.
    """
    return [
        _verdict(setting, candidate)
        for setting in settings(jobs, reference)
        for candidate in setting.candidates
    ]


def _verdict(setting: Setting, candidates: Sequence[Variant]) -> Verdict:
    reference, candidate, split = _chosen(setting.reference, candidates)
    runs = Runs.of(reference, candidate, split)
    found = (*effects(runs), *costs(runs))
    text = sentence(
        setting.name,
        (reference.name, candidate.name),
        found,
        mismatches(runs),
        split=split,
        seeds=len(runs.reference),
    )
    return Verdict(setting.name, runs.reference[0], runs.candidate[0], found, lights(runs.jobs), text)


def _chosen(first: Sequence[Variant], second: Sequence[Variant]) -> tuple[Variant, Variant, str | None]:
    """The variant of each arm that the choosing half prefers, and the kind of items that it was chosen on."""
    if len(first) == len(second) == 1:
        return first[0], second[0], None
    runs = [run for variant in (*first, *second) for run in variant.runs.values()]
    names = deciding(list(measured([run for run in runs if columns(run)] or runs)))
    if not names:
        return first[0], second[0], None
    best = [max(variants, key=lambda variant: score(variant, names)) for variants in (first, second)]
    return best[0], best[1], TASKS if ACCURACY.fullmatch(names[0]) else WINDOWS


def warnings(jobs: Sequence[Job]) -> list[str]:
    """Quantized arms that are better than the unquantized model by more than the noise, which hints at a mistake.

    The p values of all comparisons are corrected together (Holm), so that a large study does not cry wolf.
    """
    found: list[tuple[str, Effect]] = []
    for setting in settings(jobs):
        arms = [*setting.reference, *(variant for arm in setting.candidates for variant in arm)]
        for unquantized in setting.unquantized[:1]:
            for variant in arms:
                listed = effects(Runs.of(unquantized, variant), PERPLEXITIES)
                found += [(variant.name, effect) for effect in listed]
    adjusted = holm([effect.p_value or 0.0 for _, effect in found])
    return [
        f"{name} is better than {UNQUANTIZED}: {told(replace(effect, significant=True))}: is the evaluation right?"
        for (name, effect), p_value in zip(found, adjusted, strict=True)
        if p_value < SIGNIFICANT and effect.significant and _is_better(effect)
    ]


def _is_better(effect: Effect) -> bool:
    return effect.difference < 0 if effect.better == "lower" else effect.difference > 0


def average_metric(jobs: Sequence[Job]) -> str | None:
    """Name of the mean accuracy over the tasks that all finished runs share; None for fewer than two tasks.

    :func:`stands_out`, :func:`interval` and :func:`value_of` know it as well as the metrics in ``result.json``.
    """
    done = [job for job in jobs if job.is_done]
    tasks = accuracies(list(measured(done))) if done else []
    return f"{OVER_TASKS} {len(tasks)} tasks" if len(tasks) > 1 else None


def value_of(job: Job, metric: str) -> float | None:
    """A metric of one run, or the mean accuracy over its tasks where that is what ``metric`` names."""
    if metric in job.metrics or not metric.startswith(OVER_TASKS):
        return job.metrics.get(metric)
    own = columns_of(job, metric)
    return float(np.mean([column.values.mean() for column in own])) if own else None


def stands_out(jobs: Sequence[Job], metric: str) -> Job | None:
    """The run whose value is best beyond the noise against the runner-up, or None.

    Testing the best against the second best on the same items needs no correction for having picked them: the nearer
    two of several equal arms are, the less they differ (Gutmann and Maymin, "Is the selected population the best?",
    Annals of Statistics 15, 1987). Metrics without items: sizes and bits are exact; none else stands out, times
    neither, which one process each cannot tell apart. The unquantized model is not ranked where there are others.
    """
    values = {index: value_of(job, metric) for index, job in enumerate(jobs) if job.is_done}
    known = {index: value for index, value in values.items() if value is not None and math.isfinite(value)}
    coded = [index for index in known if not jobs[index].is_unquantized] or list(known)
    better = {_direction(jobs[index], metric) for index in coded}
    if len(coded) < 2 or better not in ({"lower"}, {"higher"}):
        return None
    first, second = sorted(coded, key=lambda index: known[index], reverse=better == {"higher"})[:2]
    return jobs[first] if _are_apart(jobs[first], jobs[second], metric) else None


def _direction(job: Job, metric: str) -> str:
    found = (job.result or {}).get("metrics", {}).get(metric)
    return str(found.get("better") or "") if found else "higher"


def _are_apart(first: Job, second: Job, metric: str) -> bool:
    if metric.startswith("memory/"):
        return first.metrics[metric] != second.metrics[metric]
    own, other = columns_of(first, metric), columns_of(second, metric)
    if not own or [column.ids for column in own] != [column.ids for column in other]:
        return False
    if any(len(column.values) < 2 for column in own):
        return False
    if len(own) == 1 and own[0].is_outcome and other[0].is_outcome:
        return compare_outcomes(own[0].values, other[0].values).is_significant
    return compare([a.values - b.values for a, b in zip(own, other, strict=True)]).is_significant
