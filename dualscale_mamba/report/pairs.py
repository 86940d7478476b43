"""What two arms have measured in common: runs paired by seed, items paired by id."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dualscale_mamba.report.arms import Variant
from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.items import ACCURACY, Column, accuracies, columns, halves

DIVERGENCE, PERPLEXITY = r"divergence/(.+)/kl", r"perplexity/(.+)/perplexity"
# Halves of the items that settings were chosen on.
CHOOSING, TESTING = 0, 1
WINDOWS, TASKS = "windows", "tasks"


@dataclass(frozen=True)
class Runs:
    """Runs of two arms, paired by seed.

    Attributes:
        reference: Of the reference, one a seed.
        candidate: Of the candidate, in the same order.
        split: Kind of items that settings were chosen on, ``windows`` or ``tasks``: only their other half counts.
    """

    reference: tuple[Job, ...]
    candidate: tuple[Job, ...]
    split: str | None = None

    @classmethod
    def of(cls, reference: Variant, candidate: Variant, split: str | None = None) -> Runs:
        """Pair the runs of two variants: by the seeds that both have, else the first run of each."""
        both = [seed for seed in reference.runs if seed in candidate.runs]
        if not both:
            return cls((reference.first,), (candidate.first,), split)
        return cls(tuple(reference.runs[s] for s in both), tuple(candidate.runs[s] for s in both), split)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All runs."""
        return self.reference + self.candidate


def measured(runs: Sequence[Job]) -> dict[str, list[Column]]:
    """The metrics with items that all of ``runs`` have, a column a run."""
    found = [columns(run) for run in runs]
    return {name: [own[name] for own in found] for name in found[0] if all(name in own for own in found)}


def deciding(names: Sequence[str]) -> list[str]:
    """What settings of an arm are chosen by: divergence, which noise moves least, else accuracy, else perplexity."""
    windows = [name for kind in (DIVERGENCE, PERPLEXITY) for name in names if re.fullmatch(kind, name)][:1]
    tasks = accuracies(names)
    return windows if windows and (re.fullmatch(DIVERGENCE, windows[0]) or not tasks) else tasks


def mismatches(runs: Runs) -> list[str]:
    """Why metrics that both arms have cannot be compared."""
    found: dict[str, str] = {}
    for name, own in measured(runs.jobs).items():
        counts = sorted({len(column.values) for column in own})
        if any(column.ids != own[0].ids for column in own):
            told = (
                f"{counts[0]} against {counts[-1]}" if len(counts) > 1 else f"{counts[0]}, but not the same"
            )
            found.setdefault(name.rpartition("/")[0], f"items of {name.rpartition('/')[0]} differ ({told})")
        elif counts[0] < 2:
            found.setdefault(name.rpartition("/")[0], f"{name.rpartition('/')[0]} has a single item")
    return list(found.values())


def score(variant: Variant, names: Sequence[str]) -> float:
    """Of a variant on the half of the items that settings are chosen on: higher is better, -inf without the items."""
    totals = []
    for run in variant.runs.values():
        own = columns(run)
        if not all(name in own for name in names):
            return -math.inf
        sign = 1.0 if ACCURACY.fullmatch(names[0]) else -1.0
        totals.append(sign * float(np.mean([_chosen_on(own[name]).mean() for name in names])))
    return float(np.mean(totals))


def _chosen_on(column: Column) -> NDArray[np.float64]:
    return values_of(column, kind_of(column), CHOOSING)


def kind_of(column: Column) -> str:
    """Whether the items are windows of a text or documents of a task."""
    return TASKS if column.task else WINDOWS


def values_of(column: Column, split: str | None = None, half: int = TESTING) -> NDArray[np.float64]:
    """(items,): all of them, or one half of those that settings were chosen on."""
    return column.values[halves(len(column.values))[half]] if kind_of(column) == split else column.values
