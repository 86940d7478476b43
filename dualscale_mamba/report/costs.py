"""What an arm costs: time per token and memory, which have no items."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from dualscale_mamba.report.effects import Effect
from dualscale_mamba.report.pairs import Runs

LATENCY = re.compile(r"latency/tpot/(.+)/p50")
MEMORY = "memory/weights"
EXACT, SPREAD, ONCE = "exact", "p10 to p90 of several processes", "measured once"


def costs(runs: Runs) -> tuple[Effect, ...]:
    """Times, then bytes, of a candidate against the reference."""
    return (*_times(runs), *_bytes(runs))


def _times(runs: Runs) -> Iterator[Effect]:
    """Time per token; a difference counts where the ranges p10 to p90 of several processes do not overlap.

    One process on each side proves nothing: its clock, its memory layout and its neighbours are the same for every
    token, so that its own spread is far smaller than the difference between two processes that run the same.
    """
    several = min(len(runs.reference), len(runs.candidate)) > 1
    for name in runs.reference[0].metrics:
        if not LATENCY.fullmatch(name) or any(name not in job.metrics for job in runs.jobs):
            continue
        sides: list[tuple[float, float, float]] = []
        for jobs in (runs.reference, runs.candidate):
            lows, middles, highs = (
                [job.metrics.get(name.removesuffix("p50") + part, math.nan) for job in jobs]
                for part in ("p10", "p50", "p90")
            )
            sides.append((min(lows), float(np.mean(middles)), max(highs)))
        (low, first, high), (other_low, second, other_high) = sides
        apart = other_low > high or other_high < low
        yield Effect(
            name,
            "TPOT",
            "ms",
            "lower",
            first,
            second,
            second - first,
            test=SPREAD if several else ONCE,
            significant=several and apart,
        )


def _bytes(runs: Runs) -> Iterator[Effect]:
    first, second = (jobs[0].metrics.get(MEMORY) for jobs in (runs.reference, runs.candidate))
    if first is not None and second is not None:
        yield Effect(
            MEMORY,
            "weights",
            "bytes",
            "lower",
            first,
            second,
            second - first,
            test=EXACT,
            significant=first != second,
        )
