"""Is the difference between two arms more than noise? Paired comparison over the windows that both have read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dualscale_mamba.report.collect import Job, differing_keys, shown, words

ITEM, METRIC = "kl", "KL"
UNQUANTIZED = "fp16"  # the reference of a comparison, not an arm of it
RESAMPLES = 9999
CONFIDENCE = 0.95
SIGNIFICANT = 1 - CONFIDENCE
# Settings that make an arm; whatever else differs makes a setting in which arms are compared.
OF_AN_ARM = (
    "scale_mode",
    "observer",
    "arm",
    "name",
    "tags",
    "group",
    "seed",
    "paths.",
    "experiment",
    "sweeps",
)


@dataclass(frozen=True)
class Paired:
    """A mean difference of paired values.

    Attributes:
        mean: First minus second.
        low: Lower end of the bootstrap interval.
        high: Upper end.
        p_value: Two-sided, of the sign-flip permutation test.
        pairs: Number of pairs.
    """

    mean: float
    low: float
    high: float
    p_value: float
    pairs: int


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Paired:
    """Compare two arms on the same items.

    Args:
        first: One value an item.
        second: The other arm's, in the same order.
        seed: Of the resampling.

    Raises:
        ValueError: The lengths differ, or there are fewer than two items.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"paired values are needed, two at least: {len(first)} and {len(second)}")
    difference: NDArray[np.float64] = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean = float(difference.mean())
    if np.ptp(difference) == 0.0:  # nothing to resample
        return Paired(mean, mean, mean, 1.0 if mean == 0 else 2.0 ** (1 - len(difference)), len(difference))
    interval = stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=seed,
    ).confidence_interval
    test = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=seed
    )
    return Paired(mean, float(interval.low), float(interval.high), float(test.pvalue), len(difference))


def winners(jobs: Sequence[Job]) -> Iterator[str]:
    """For each setting of a study, the scale mode of least divergence against the next one, one sentence each.

    Each scale mode stands for the best of its own settings (percentile, split of the codes).
    """
    coded = [job for job in jobs if job.is_done and job.scale_mode != UNQUANTIZED]
    measured = [(job, values) for job in coded if (values := _items(job))]
    keys = differing_keys([job for job, _ in measured])
    of_an_arm = [key for key in keys if key.startswith(OF_AN_ARM)]
    common = [key for key in keys if key not in of_an_arm]
    groups: dict[str, dict[str, tuple[Job, list[float]]]] = {}
    for job, values in measured:
        best = groups.setdefault(_setting(job, common), {})
        if job.scale_mode not in best or math.fsum(values) < math.fsum(best[job.scale_mode][1]):
            best[job.scale_mode] = (job, values)
    for setting, modes in groups.items():
        ranked = sorted(modes.values(), key=lambda pair: math.fsum(pair[1]))[:2]
        if len(ranked) > 1 and len(ranked[0][1]) == len(ranked[1][1]):
            names = [" ".join(words(job.settings, of_an_arm)) for job, _ in ranked]
            yield _sentence(setting, names, paired_difference(ranked[1][1], ranked[0][1]))


def _sentence(setting: str, names: Sequence[str], found: Paired) -> str:
    level = f"{CONFIDENCE:.0%}".replace("%", " %")
    numbers = (
        f"{found.mean:.2g} nats more, {level} CI [{found.low:.2g}, {found.high:.2g}], p = {found.p_value:.2g},"
        f" {found.pairs} windows"
    )
    place = f"{setting}: " if setting else ""
    if found.low <= 0.0 <= found.high or found.p_value >= SIGNIFICANT:
        return f"{METRIC}, {place}no winner between {' and '.join(names)} ({numbers}: within the noise)"
    return f"{METRIC}, {place}least with {names[0]}; next {names[1]} ({numbers})"


def _items(job: Job) -> list[float]:
    """The divergence of each window, in the order of the windows; empty where there is none or it cannot be read."""
    for path in sorted(job.folder.glob("items_*.jsonl")):
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            continue
        if rows and all(ITEM in row and "window" in row for row in rows):
            return [float(row[ITEM]) for row in sorted(rows, key=lambda row: int(row["window"]))]
    return []


def _setting(job: Job, keys: Sequence[str]) -> str:
    known = job.settings
    return ", ".join(
        f"{key.rpartition('.')[2]} {shown(known[key])}" for key in keys if known.get(key) is not None
    )
