"""One line of a study: which jobs it consists of, which of them are missing, and running those."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from dualscale_mamba.configuration.resolvers import chosen_options
from dualscale_mamba.study.command import job_arguments, quoted
from dualscale_mamba.study.folder import Entry, Line, StudyFolder, is_done, is_locked, line_id, state_of
from dualscale_mamba.study.identity import job_id
from dualscale_mamba.study.monitor import watching
from dualscale_mamba.tasks.record import STOPPED, StudyStoppedError

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]

logger = logging.getLogger(__name__)


class StudyFailedError(Exception):
    """Some jobs of a study have no result; each has been reported, and its folder has its traceback."""


@dataclass
class Multirun:
    """Jobs that were typed together.

    Attributes:
        study: Where they lie.
        line: What was typed.
        launch: Runs jobs: lists of overrides and the number of the first.
        at_once: Jobs that the launcher is given at once; None for all.
        only: Ids of the jobs that are to run now; None for all.
    """

    study: StudyFolder
    line: Line
    launch: Launch
    at_once: int | None
    only: frozenset[str] | None = None
    _failed: list[str] = field(default_factory=list)

    def pending(self) -> list[Entry]:
        """Jobs without a result, each once; what another process is at work on comes last."""
        wanted = [e for e in self.line.entries if self.only is None or e.id in self.only]
        missing = {e.id: e for e in wanted if not is_done(self.study.job(e.id))}
        return sorted(missing.values(), key=lambda entry: is_locked(self.study.job(entry.id)))

    def run(self) -> None:
        """Run what is missing, while a table shows what becomes of it.

        Raises:
            StudyFailedError: Some jobs have no result.
            KeyboardInterrupt: By the user; what is done stays.
        """
        (self.study.path / STOPPED).unlink(missing_ok=True)
        missing = self.pending()
        with watching(self.study, self.line, missing, is_part=self.only is not None):
            size = self.at_once or max(len(missing), 1)
            for first in range(0, len(missing), size):
                if self._stops and self._failed:
                    break
                self._launch(missing[first : first + size])
        lost = [entry for entry in self.pending() if state_of(self.study.job(entry.id)) != "running"]
        if lost:
            raise StudyFailedError(f"{len(lost)} of {len(self.line.entries)} jobs have no result")

    @property
    def _stops(self) -> bool:
        return self.line.on_error == "stop"

    def _launch(self, batch: Sequence[Entry]) -> None:
        try:
            returns = self.launch([self.arguments(entry) for entry in batch], batch[0].number)
        except Exception as error:  # of the launcher, or of Hydra before the job's own frame begins
            logger.error("the launcher failed: %s: %s", type(error).__name__, error)
            self._failed += [entry.id for entry in batch if not is_done(self.study.job(entry.id))]
            return
        for entry, returned in zip(batch, returns, strict=True):
            stopped = isinstance(returned._return_value, StudyStoppedError)
            if returned.status != JobStatus.COMPLETED and not stopped:
                self._failed.append(entry.id)

    def arguments(self, entry: Entry) -> list[str]:
        """Overrides with which a launcher runs a job in its folder."""
        place = self.study.job(entry.id).relative_to(self.study.path)
        return [
            *entry.overrides,
            f"hydra.sweep.dir={quoted(str(self.study.path))}",
            f"hydra.sweep.subdir={place}",
        ]


def entry_of(config: DictConfig, overrides: Sequence[str], number: int) -> Entry:
    """The job that a composed and validated configuration stands for."""
    return Entry(
        id=job_id(config),
        number=number,
        name=str(config.name),
        arm=config.arm,
        group=config.group,
        overrides=tuple(overrides),
        choices=chosen_options(config.hydra.runtime.choices),
    )


def line_of(name: str, on_error: str, entries: Sequence[Entry]) -> Line:
    """What is typed now."""
    command = (Path(sys.argv[0]).name, *sys.argv[1:])
    return Line(line_id(tuple(entries)), name, command, time.time(), on_error, tuple(entries))


def listed(multirun: Multirun) -> str:
    """Arguments of ``run.py`` for each missing job, one line each, quoted for a shell.

    A job that is run so leaves its result where the study finds it.
    """
    rows = []
    for entry in multirun.pending():
        place = multirun.study.job(entry.id).relative_to(multirun.study.path)
        rows.append(shlex.join(job_arguments(entry.overrides, multirun.study.path, str(place))))
    return "".join(f"{row}\n" for row in rows)
