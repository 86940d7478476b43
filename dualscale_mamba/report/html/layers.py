"""Where the outliers live: numbers, histograms and levels by layer, each kept once however many runs share it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dualscale_mamba.quantization.site_patterns import occurs
from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.html.quantities import finite
from dualscale_mamba.sites import is_ssm_input, short_name

# Runs whose histograms and levels are embedded, and how many numbers of them.
PICTURED_RUNS = 24
PICTURED_NUMBERS = 700_000
DIGITS = 4
CURVES = (
    "threshold",
    "range_max",
    "outlier_share",
    "codes_used",
    "sqnr_db",
    "sqnr_single_db",
    "bits_per_value",
)


class Pool:
    """Equal things once, by their place in ``items``."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.numbers = 0
        self._places: dict[str, int] = {}

    def place(self, item: Any) -> int:
        """Where ``item`` lies, added if it is new."""
        key = json.dumps(item)
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(item)
            self.numbers += key.count(",") + 1
        return self._places[key]


def layer_of(site: str) -> int:
    """Number of the layer in a site's full name; 0 where it has none."""
    found = re.search(r"\d+", site)
    return int(found[0]) if found else 0


def layers(jobs: Sequence[Job], rank: Callable[[int], float], first: Sequence[int] = ()) -> dict[str, Any]:
    """Curves over the layers of every run, and pictures of the most telling runs.

    Args:
        jobs: Of the study.
        rank: Of a job's place: the lower, the better; decides which run of each scale mode is pictured.
        first: Places of jobs that are pictured before any other.

    Returns:
        ``runs`` by the job's place and the site's short name, which refer into the pools ``curves``, ``histograms``
        and ``levels``; ``pictured``, the places of the runs that have pictures.
    """
    curves, histograms, levels = Pool(), Pool(), Pool()
    chosen = pictured(jobs, rank, first)
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for place in [*chosen, *(place for place in range(len(jobs)) if place not in chosen)]:
        if not jobs[place].is_done:
            continue
        own = _curves(jobs[place], curves, everything=place in chosen)
        if place in chosen and histograms.numbers + levels.numbers < PICTURED_NUMBERS:
            _add_pictures(own, jobs[place].distribution(), histograms, levels)
        runs[str(place)] = own
    return {
        "runs": runs,
        "curves": curves.items,
        "histograms": histograms.items,
        "levels": levels.items,
        "pictured": chosen,
    }


def pictured(jobs: Sequence[Job], rank: Callable[[int], float], first: Sequence[int] = ()) -> list[int]:
    """Places of the runs to picture: of each scale mode the best, then of each the next, and so on."""
    modes: dict[str, list[int]] = {}
    for place, job in enumerate(jobs):
        if job.is_done:
            modes.setdefault(job.scale_mode, []).append(place)
    turns = [
        (turn, place)
        for places in modes.values()
        for turn, place in enumerate(sorted(places, key=lambda place: (rank(place), place)))
    ]
    ordered = [place for place in first if jobs[place].is_done] + [place for _, place in sorted(turns)]
    return list(dict.fromkeys(ordered))[:PICTURED_RUNS]


def _carries(job: Job, short: str) -> bool:
    """Whether a site carries the scale mode by name."""
    sites = job.settings.get("quantize.sites")
    return isinstance(sites, list) and occurs(tuple(map(str, sites)), short)


def _curves(job: Job, pool: Pool, everything: bool) -> dict[str, dict[str, Any]]:
    """Rows of ``result.json`` turned into columns by site; of carriers alone unless everything is wanted."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in (job.result or {}).get("sites", []):
        short = short_name(str(row.get("name")))
        if everything or is_ssm_input(short) or _carries(job, short):
            kinds.setdefault(short, []).append(row)
    found = {}
    for short, rows in kinds.items():
        rows.sort(key=lambda row: layer_of(str(row.get("name"))))
        columns: dict[str, Any] = {"layer": [layer_of(str(row.get("name"))) for row in rows]}
        columns |= {key: [finite(row.get(key), DIGITS) for row in rows] for key in CURVES}
        found[short] = {"curves": pool.place(columns), "format": str(rows[0].get("format", ""))}
    return found


def _add_pictures(
    own: dict[str, dict[str, Any]], distribution: Mapping[str, Any] | None, histograms: Pool, levels: Pool
) -> None:
    """Refer to the histogram and the levels of every layer that the run has kept."""
    if distribution is None:
        return
    sites = distribution.get("sites")
    if not isinstance(sites, Mapping):  # early runs kept the layer that reaches furthest alone
        sites = {str(distribution.get("site")): distribution}
    for name, found in sites.items():
        pictures = own.setdefault(short_name(str(name)), {}).setdefault("pictures", {})
        pictures[str(layer_of(str(name)))] = {
            "histogram": histograms.place([_short(found["centres"]), _short(found["share"])]),
            "levels": levels.place(_short(found["levels"])),
            "threshold": finite(found.get("threshold"), DIGITS),
            "knee": finite(found.get("knee"), DIGITS),
        }


def _short(values: Sequence[Any]) -> list[float]:
    return [0.0 if (number := finite(value, DIGITS)) is None else number for value in values]


def least(values: Sequence[float | None], better: str) -> Callable[[int], float]:
    """A rank by one metric: its value, turned round where higher is better; what has none comes last."""

    def rank(place: int) -> float:
        value = values[place]
        if value is None:
            return math.inf
        return -value if better == "higher" else value

    return rank
