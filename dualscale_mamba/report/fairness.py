"""What two runs must share for their difference to be due to the code alone, as traffic lights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualscale_mamba.report.arms import SEED_KEYS
from dualscale_mamba.report.collect import UNQUANTIZED, Job, flattened

EQUAL, BY_DESIGN, DIFFERENT, UNKNOWN = "equal", "by design", "different", "unknown"
BITS, SEED, CALIBRATION = "bits", "seed", "calibration data"
# Each light, and the facts that it stands for: dotted names in a result.
LIGHTS = {
    BITS: r"fairness\.(bits_per_value|sites)",
    "weights": r"fairness\.(weights|weights_bits)",
    "widths": r"fairness\.(widths\..+|rounding)",
    CALIBRATION: r"fairness\.(calibration_tokens|calibration\.(source|samples|length))",
    "evaluation data": r"fairness\.evaluation\.[^.]+(\..+)?\.(?!batch_size$|request_order$).+",
    "batch size": r"fairness\.(calibration\.batch_size|evaluation\.[^.]+\.batch_size)",
    "order": r"fairness\.evaluation\.[^.]+\.request_order",
    "kernel path": r"fairness\.(implementation|ops|kernels|device)",
    "x_proj reader": r"fairness\.(x_proj_reads|x_proj_product)",
    "hardware": r"environment\.(gpu|cpu)|fairness\.threads",
    "software": r"environment\.torch",
    "dtype": r"fairness\.(dtype|residual_dtype)|config\.model\.state_dtype",
    "recipe": r"fairness\.(linear_input_scale|rotate|rotate_residual)",
    SEED: r"config\.(calibration\.)?seed",
}
# Facts that say nothing of a run whose SSM input has no code, and of one that quantizes no activation at all.
OF_CODES = re.compile(r"fairness\.(widths\.)?x_proj")
OF_QUANTIZED = re.compile(
    r"fairness\.(calibration|bits_per_value|sites|linear_input_scale|rotate|rotate_residual)"
)
NONE, MISSING = "none", "unknown"
HASH_DIGITS, VALUE_WIDTH = 8, 80


@dataclass(frozen=True)
class Light:
    """One thing that should be equal.

    Attributes:
        name: What it is.
        state: ``equal``, ``by design`` (the very thing that is compared), ``different`` or ``unknown``.
        values: By label of the run.
    """

    name: str
    state: str
    values: dict[str, str]


def lights(jobs: Sequence[Job]) -> tuple[Light, ...]:
    """Compare the facts of all finished runs; one light for each kind of fact."""
    done = [job for job in jobs if job.is_done and job.result]
    facts = [_facts(job) for job in done]
    keys = list(dict.fromkeys(key for fact in facts for key in fact))
    found, used = [], set()
    for name, pattern in LIGHTS.items():
        own = [key for key in keys if re.fullmatch(pattern, key)]
        used.update(own)
        found.append(_light(name, own, done, facts))
    others = [key for key in keys if key.startswith("fairness.") and key not in used]
    return (*found, *(_light(key.removeprefix("fairness."), [key], done, facts) for key in others))


def _facts(job: Job) -> dict[str, Any]:
    result = job.result or {}
    parts = {key: result.get(key) for key in ("fairness", "environment", "config")}
    found = dict(flattened({key: part for key, part in parts.items() if isinstance(part, Mapping)}))
    # The seeds are among the settings, which every run has.
    known = {key: value for key, value in found.items() if not re.fullmatch(r"fairness\..*\bseed", key)}
    device = known.get("fairness.device")
    if device is not None:  # the same kind of device under another number is no difference
        known["fairness.device"] = str(device).partition(":")[0]
    return known


def _light(name: str, keys: Sequence[str], jobs: Sequence[Job], facts: Sequence[Mapping[str, Any]]) -> Light:
    rows = [[_value(job, fact, key) for key in keys] for job, fact in zip(jobs, facts, strict=True)]
    columns = list(zip(*rows, strict=True))
    differing = [index for index, column in enumerate(columns) if len(set(column) - {NONE}) > 1]
    unknown = not keys or any(MISSING in column for column in columns)
    shown = differing or range(min(2, len(keys)))
    texts = {index: _shown(keys[index], columns[index], len(shown) > 1) for index in shown}
    values = {
        job.label or job.id: ", ".join(texts[index][place] for index in shown)
        for place, job in enumerate(jobs)
    }
    # What some runs do not say is unknown; where those that say it disagree it differs all the same.
    clear = any(len(set(columns[index]) - {NONE, MISSING}) > 1 for index in differing)
    state = DIFFERENT if clear else UNKNOWN if unknown else EQUAL
    if state == DIFFERENT and name == BITS and _is_by_design(jobs, rows):
        state = BY_DESIGN
    if state == DIFFERENT and name in (SEED, CALIBRATION) and _same_in_each_arm(jobs, rows):
        state = EQUAL
    return Light(name, state, values)


def _value(job: Job, fact: Mapping[str, Any], key: str) -> str:
    if key not in fact:
        return MISSING
    if job.scale_mode == UNQUANTIZED and (
        OF_CODES.match(key) or (OF_QUANTIZED.match(key) and not fact.get("fairness.sites"))
    ):
        return NONE
    return str(fact[key])


def _shown(key: str, values: Sequence[str], named: bool) -> list[str]:
    """The values of one fact: of lists only what not all of them have."""
    if all(value.startswith("[") for value in values) and len(set(values)) > 1:
        lists = [[part.strip(" '\"") for part in value.strip("[]").split(",")] for value in values]
        common = set(lists[0]).intersection(*lists)
        own = [", ".join(part for part in parts if part not in common) for parts in lists]
        return [_short(key, f"with {parts}" if parts else "without", named) for parts in own]
    return [_short(key, value, named) for value in values]


def _short(key: str, value: str, named: bool) -> str:
    """A value as a table shows it: hashes by their first digits, with the last part of the key where there are more."""
    shown = value[:HASH_DIGITS] if re.fullmatch(r"[0-9a-f]{32,}", value) else value
    shown = shown if len(shown) <= VALUE_WIDTH else f"{shown[: VALUE_WIDTH - 3]}..."
    parts = key.split(".")
    where = f"{parts[2]} {parts[-1]}" if parts[1] == "evaluation" and len(parts) > 3 else parts[-1]
    return f"{where} {shown}" if named else shown


def _is_by_design(jobs: Sequence[Job], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the bits follow from the scale mode, which is what arms differ in, and from nothing else."""
    by_mode: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    precisions = {str(job.status.get("choices", {}).get("precision")) for job in jobs}
    for job, row in zip(jobs, rows, strict=True):
        by_mode.setdefault((job.scale_mode,), set()).add(tuple(row))
    return len(precisions) == 1 and all(len(values) == 1 for values in by_mode.values())


def _same_in_each_arm(jobs: Sequence[Job], rows: Sequence[Sequence[str]]) -> bool:
    """Whether every arm was run with the same seeds, or on the same calibration samples that these choose."""
    arms: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    seeds: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for job, row in zip(jobs, rows, strict=True):
        if NONE in row:
            continue
        known = job.settings
        arms.setdefault((job.arm, job.scale_mode), set()).add(tuple(row))
        seeds.setdefault(tuple(str(known.get(key)) for key in SEED_KEYS), set()).add(tuple(row))
    same = len({frozenset(values) for values in arms.values()}) <= 1
    return same and all(len(values) == 1 for values in seeds.values())
