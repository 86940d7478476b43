"""Runs a search: what is proposed becomes jobs of a study, in batches, and their results answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from dualscale_mamba.configuration.validate import InvalidConfigError
from dualscale_mamba.study.folder import Entry, StudyFolder, is_done
from dualscale_mamba.study.multirun import StudyFailedError
from dualscale_mamba.study.search import Search

logger = logging.getLogger(__name__)


@dataclass
class Exploration:
    """A search at work.

    Attributes:
        search: Proposes.
        fixed: Overrides of every job.
        compose: Checks jobs and gives each its identity: overrides and the number of the first.
        launch: Runs the jobs of some entries, given all so far; raises StudyFailedError if some have no result.
        jobs: Folder of the jobs.
        on_error: ``stop`` ends the search at the first job that fails.
        entries: All jobs so far.
    """

    search: Search
    fixed: Sequence[str]
    compose: Callable[[Sequence[Sequence[str]], int], list[Entry]]
    launch: Callable[[Sequence[Entry], Sequence[Entry]], None]
    jobs: Path
    on_error: str = "continue"
    entries: list[Entry] = field(default_factory=list)

    def run(self) -> None:
        """Search until every trial is answered.

        Raises:
            InvalidConfigError: No proposal so far can run at all.
            StudyFailedError: Jobs failed, and either none has a result or ``on_error`` is ``stop``.
        """
        for trial in self.search.trials():
            self.entries += self.compose([[*self.fixed, *trial.overrides]], len(self.entries))
        while not self.search.finished:
            failed = self._step(self.search.next_batch())
            if failed is not None and self.on_error == "stop":
                raise failed
        if not self.search.trials():
            raise StudyFailedError("no proposal of the search has a result")

    def _step(self, batch: Sequence[Sequence[str]]) -> StudyFailedError | None:
        found = [self._entry(own) for own in batch]
        now = [entry for entry in found if entry is not None]
        failed = None
        if now:
            try:
                self.launch(self.entries, now)
            except StudyFailedError as error:
                failed = error
        folders = [None if entry is None else self.jobs / entry.id for entry in found]
        ended = [folder if folder is not None and is_done(folder) else None for folder in folders]
        self.search.report(zip(batch, ended, strict=True))
        return failed

    def _entry(self, own: Sequence[str]) -> Entry | None:
        """The job of a proposal; None for one that cannot run, which is a part of the space, not a mistake."""
        try:
            (entry,) = self.compose([[*self.fixed, *own]], len(self.entries))
        except InvalidConfigError as error:
            if not self.entries:
                raise
            logger.warning("left out: %s", "; ".join(error.sentences))
            return None
        if entry.id not in {known.id for known in self.entries}:
            self.entries.append(entry)
        return entry


def narrowed(settings: Mapping[str, Any], typed: Sequence[Override]) -> tuple[list[str], dict[str, Any]]:
    """Let what was typed win over the stored space.

    Args:
        settings: ``hydra.sweeper.search``.
        typed: One value takes its key out of the space, several take the place of what is there.

    Returns:
        Overrides of every job, and the settings with the space that is left.
    """
    space = dict(settings.get("space") or {})
    fixed = []
    for override in typed:
        key = override.get_key_element()
        if override.is_sweep_override():
            space[key] = str(override.input_line).partition("=")[2]
        else:
            space.pop(key, None)
            fixed.append(f"{key}={override.get_value_element_as_str()}")
    return fixed, {**settings, "space": space}


def show_found(study: StudyFolder, search: Search) -> None:
    """Print what nothing beats, and draw it; what fails must not hide how the search ended."""
    from dualscale_mamba.report.collect import collect
    from dualscale_mamba.report.pareto import PARETO, Found, show_front, write_front

    if not any(line.id == search.id for line in study.lines()):
        return
    try:
        found = Found.of(collect(study.path, search.id), search.settings.objectives)
        if found.jobs:
            show_front(found)
            write_front(study.path / PARETO, found, study.path.name)
    except Exception:
        logger.exception("what the search found cannot be shown")
