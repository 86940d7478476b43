"""Which runs are compared with which: settings, arms, the variants of an arm, and the seeds of a variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.report.collect import Job, called, counts, differing_keys, shown, words

BASELINE, SINGLE = "baseline", "single"
LEAST_ID = 4  # characters of a job's id that may name it
# Runs that differ in nothing else are repetitions.
SEED_KEYS = ("seed", "calibration.seed")
# Settings that make an arm; whatever else differs makes a setting in which arms are compared.
OF_AN_ARM = (
    *("scale_mode", "observer", "state"),
    *("arm", "name", "tags", "group", "paths.", "experiment", "sweeps"),
)


@dataclass(frozen=True)
class Variant:
    """An arm with settings of its own chosen.

    Attributes:
        name: For sentences.
        runs: By seed.
    """

    name: str
    runs: dict[tuple[str, ...], Job]

    @property
    def first(self) -> Job:
        """The run that stands for it."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Setting:
    """Where arms are compared.

    Attributes:
        name: What it has that others have not; empty for the only one.
        reference: The variants of the arm that others are compared with.
        candidates: The variants of each other arm.
        unquantized: The runs without quantization.
    """

    name: str
    reference: list[Variant]
    candidates: list[list[Variant]]
    unquantized: list[Variant]


def settings(jobs: Sequence[Job], reference: str | None = None) -> list[Setting]:
    """Arms to compare, by setting; a setting without a reference or without another arm is left out.

    Args:
        jobs: Runs; only those that have ended well count.
        reference: Label, arm, scale mode or the first characters of an id; by default the arm ``baseline``, or the
            scale mode ``single``, or whatever comes first.

    Raises:
        ConfigError: No finished run is what ``reference`` names.
    """
    done = [job for job in jobs if job.is_done]
    of_an_arm, of_a_setting = told_apart(done)
    keys = [*of_an_arm, *of_a_setting]
    groups = _grouped(done, of_a_setting)
    named = [job for job in done if reference is not None and _is_named(job, reference)]
    if reference is not None and not named:
        allowed = "a label, an arm, a scale mode or an id: " + ", ".join(job.label for job in done)
        raise ConfigError("reference", reference, allowed)
    found = [_setting(name, group, _references(group, named, reference), of_an_arm) for name, group in groups]
    found = [one for one in found if one.reference and one.candidates]
    if not found and named:  # what is named has no rival in its own setting: compare it with all others
        found = [_setting("", done, named, keys)]
    return [one for one in found if one.candidates]


def told_apart(jobs: Sequence[Job]) -> tuple[list[str], list[str]]:
    """Keys in which jobs differ but for seeds: those that make an arm, and those that make a setting."""
    keys = [key for key in differing_keys(jobs) if key not in SEED_KEYS]
    of_an_arm = [key for key in keys if key.startswith(OF_AN_ARM)]
    return of_an_arm, [key for key in keys if key not in of_an_arm]


def _grouped(jobs: Sequence[Job], keys: Sequence[str]) -> list[tuple[str, list[Job]]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        known = job.settings
        parts = (f"{called(key)} {shown(known[key])}" for key in keys if counts(known, key))
        groups.setdefault(", ".join(parts), []).append(job)
    return list(groups.items())


def _is_named(job: Job, reference: str) -> bool:
    by_id = len(reference) >= LEAST_ID and job.id.startswith(reference)
    return by_id or reference in (job.label, job.arm, job.scale_mode, job.state_format)


def _references(group: Sequence[Job], named: Sequence[Job], reference: str | None) -> list[Job]:
    if reference is not None:
        return [job for job in group if any(job is other for other in named)]
    coded = [job for job in group if not job.is_unquantized]
    baseline = [job for job in coded if job.arm == BASELINE]
    single = [job for job in coded if job.scale_mode == SINGLE]
    return baseline or single or [job for job in coded if _arm(job) == _arm(coded[0])]


def _setting(name: str, group: Sequence[Job], reference: Sequence[Job], keys: Sequence[str]) -> Setting:
    chosen = {id(job) for job in reference}
    others = [job for job in group if id(job) not in chosen]
    arms: dict[tuple[str, str, str], list[Job]] = {}
    for job in others:
        if not job.is_unquantized:
            arms.setdefault(_arm(job), []).append(job)
    return Setting(
        name=name,
        reference=_variants(reference, keys),
        candidates=[_variants(arm, keys) for arm in arms.values()],
        unquantized=_variants([job for job in others if job.is_unquantized], keys),
    )


def _arm(job: Job) -> tuple[str, str, str]:
    return job.arm, job.scale_mode, job.state_format


def _variants(jobs: Sequence[Job], keys: Sequence[str]) -> list[Variant]:
    found: dict[tuple[str, ...], Variant] = {}
    for job in jobs:
        known = job.settings
        own = tuple(str(known.get(key)) for key in keys)
        name = " ".join(words(known, keys)) or job.label
        seed = tuple(str(known.get(key)) for key in SEED_KEYS)
        found.setdefault(own, Variant(name, {})).runs.setdefault(seed, job)
    return list(found.values())
