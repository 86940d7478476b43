"""A search for settings that nothing beats: optuna proposes, the jobs of a study answer.

The proposals are those of a tree-structured Parzen estimator, for one objective and, as in Ozaki et al. 2022, for
several: it learns from tens of trials, where a genetic algorithm such as NSGA-II needs generations of as many. The
proposal of a trial follows from the seed, the trial's number and the results before it alone, so that a search that was
killed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.study.files import read_json
from dualscale_mamba.study.folder import RESULT
from dualscale_mamba.study.space import DIRECTIONS, Settings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, TrialState

JOURNAL, LOCK = "search.journal", ".search.lock"
# What the journal keeps of a trial beside its losses.
JOB, VALUES = "job", "values"


@dataclass(frozen=True)
class Trial:
    """A proposal that was answered.

    Attributes:
        number: Place in the search.
        overrides: What was proposed.
        values: Of the objectives, in their units.
        losses: The same, signed so that lower is better.
        job: Name of the job's folder.
    """

    number: int
    overrides: tuple[str, ...]
    values: tuple[float, ...]
    losses: tuple[float, ...]
    job: str


@dataclass
class Search:
    """Proposals and answers, kept in the study's folder.

    Attributes:
        id: Content hash; the folder may hold several searches.
        settings: What is searched.
        study: Optuna's, which minimizes every objective.
    """

    id: str
    settings: Settings
    study: Study
    _lock: FileLock
    _asked: dict[tuple[str, ...], list[int]] = field(default_factory=dict)

    @classmethod
    def open(cls, settings: Mapping[str, Any], folder: Path, base: str = "") -> Search:
        """Begin a search in a folder, or go on with it.

        Args:
            settings: ``hydra.sweeper.search``.
            folder: Of the study.
            base: Identity of all that is not searched.

        Raises:
            ConfigError: The settings cannot work, optuna is not installed, or another process searches here.
        """
        read = Settings.of(settings)
        optuna = _optuna()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            allowed = "a folder in which no other process searches now"
            raise ConfigError("hydra.sweep.dir", folder, allowed) from None
        file = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(file),
            study_name=read.identity(base),
            directions=["minimize"] * len(read.objectives),
            load_if_exists=True,
        )
        return cls(read.identity(base), read, study, lock)

    def close(self) -> None:
        """Let another process search here."""
        self._lock.release()

    def _all(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials of these states; of any state where none is given."""
        return list(self.study.get_trials(deepcopy=False, states=states or None))

    @property
    def finished(self) -> bool:
        """Whether every trial has been proposed and answered."""
        return len(self._all()) >= self.settings.trials and not self._all(_states().RUNNING)

    def next_batch(self) -> list[list[str]]:
        """Overrides of the jobs to run next, at most ``parallel``; first those that a killed process left open.

        A proposal that was answered before needs no job: it is answered from that.
        """
        for trial in self._all(_states().RUNNING):
            self._hand_out(trial)
        while len(self._asked) < self.settings.parallel and len(self._all()) < self.settings.trials:
            self._hand_out(self._proposal(len(self._all())))
        return [list(overrides) for overrides in self._asked]

    def _proposal(self, number: int) -> FrozenTrial:
        optuna = _optuna()
        # One generator for all trials would begin again in every process.
        digest = hashlib.sha256(f"{self.settings.seed} {number}".encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # The liar keeps proposals that are open at the same time apart.
            own = int.from_bytes(digest[:4], "big")
            self.study.sampler = optuna.samplers.TPESampler(seed=own, constant_liar=True)
            self.study.ask(self.settings.space.distributions())
        return self._all()[number]

    def _overrides(self, trial: FrozenTrial) -> tuple[str, ...] | None:
        """What was proposed; None where the process was killed while it proposed."""
        keys = {dimension.key for dimension in self.settings.space.dimensions}
        return tuple(self.settings.space.overrides(trial.params)) if set(trial.params) == keys else None

    def _hand_out(self, trial: FrozenTrial) -> None:
        """Note a proposal as one to run, or answer it at once."""
        overrides = self._overrides(trial)
        if overrides is None:
            self._answer(trial.number, None)
            return
        if trial.number in self._asked.get(overrides, ()):
            return
        for other in self._all(_states().COMPLETE, _states().FAIL):
            if self._overrides(other) == overrides:
                self._answer(trial.number, self._trial(other))
                return
        self._asked.setdefault(overrides, []).append(trial.number)

    def _trial(self, trial: FrozenTrial) -> Trial | None:
        """A trial with its answer, None where it failed."""
        noted = self.study.user_attrs.get(str(trial.number))
        overrides = self._overrides(trial)
        if noted is None or overrides is None or trial.values is None:
            return None
        return Trial(trial.number, overrides, tuple(noted[VALUES]), tuple(trial.values), noted[JOB])

    def report(self, batch: Iterable[tuple[Sequence[str], Path | None]]) -> None:
        """Answer proposals.

        Args:
            batch: Overrides as :meth:`next_batch` gave them, and the folder of the job, None where it failed.

        Raises:
            ConfigError: A result has no such metric, or one that does not say what is better.
        """
        for overrides, folder in batch:
            result = None if folder is None else read_json(folder / RESULT)
            answer = None
            if folder is not None and result is not None:
                values, losses = self._measured(result.get("metrics", {}))
                answer = Trial(-1, tuple(overrides), values, losses, folder.name)
            for number in self._asked[tuple(overrides)]:
                self._answer(number, answer)
            del self._asked[tuple(overrides)]

    def _answer(self, number: int, answer: Trial | None) -> None:
        if answer is None or not all(math.isfinite(loss) for loss in answer.losses):
            self.study.tell(number, state=_states().FAIL)
            return
        self.study.set_user_attr(str(number), {JOB: answer.job, VALUES: list(answer.values)})
        self.study.tell(number, list(answer.losses))

    def _measured(self, metrics: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Values of the objectives, and the same signed so that lower is better."""
        values, losses = [], []
        for name, given in self.settings.objectives.items():
            if name not in metrics:
                allowed = "one of " + ", ".join(sorted(metrics))
                raise ConfigError("hydra.sweeper.search.objectives", name, allowed)
            better = given or metrics[name].get("better")
            if better not in DIRECTIONS:
                hint = f"Give it as {{{name}: lower}}."
                raise ConfigError("hydra.sweeper.search.objectives", name, "a metric with a direction", hint)
            values.append(float(metrics[name]["value"]))
            losses.append(values[-1] if better == "lower" else -values[-1])
        return tuple(values), tuple(losses)

    def trials(self) -> list[Trial]:
        """All proposals that were answered by a result, in their order; equal ones once."""
        found: dict[tuple[str, ...], Trial] = {}
        for trial in map(self._trial, self._all(_states().COMPLETE)):
            if trial is not None:
                found.setdefault(trial.overrides, trial)
        return list(found.values())


def front(losses: Sequence[Sequence[float]]) -> list[int]:
    """Places of the points that no other one beats: none is as low everywhere and lower somewhere.

    Args:
        losses: (points, objectives), lower is better.

    Returns:
        Places in ascending order; equal points stand or fall together.
    """
    kept: list[int] = []
    # In lexicographic order whatever beats a point comes before it, and something that is kept beats it then.
    for place in sorted(range(len(losses)), key=lambda index: tuple(losses[index])):
        if not any(_beats(losses[other], losses[place]) for other in kept):
            kept.append(place)
    return sorted(kept)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return tuple(one) != tuple(other) and all(a <= b for a, b in zip(one, other, strict=True))


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "hydra.sweeper.search",
            "...",
            "null without optuna",
            "Type pip install 'dualscale_mamba[sweep]'.",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
