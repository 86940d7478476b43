"""A sweeper that takes unions of grids, refuses a study before its first job if any job cannot run, and resumes.

It lies here because Hydra takes sweepers from the name space package ``hydra_plugins`` only.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf, open_dict, read_write

from dualscale_mamba.configuration import studies
from dualscale_mamba.configuration.checkpoints import taken
from dualscale_mamba.configuration.resolvers import TYPED_STUDY
from dualscale_mamba.configuration.validate import InvalidConfigError, problems
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.progress import bar

if TYPE_CHECKING:  # Hydra imports its plugins at every start: what runs a study is imported by a study
    from dualscale_mamba.study.folder import Entry
    from dualscale_mamba.study.multirun import Multirun


class UnionSweeper(BasicSweeper):
    """Hydra's basic sweeper, plus ``hydra.sweeper.grids``: a list of grids, one after the other, and resumption.

    Each grid is a mapping of key to value or comma-separated values, like ``params``, and stands for the
    product of its values; what is typed on the command line applies to every grid and wins.

    Args:
        max_batch_size: Jobs that are handed to the launcher at once; None for all.
        params: One grid, as in Hydra's basic sweeper.
        grids: Several.
        only_list: Print one line of overrides for each missing job and run nothing.
        search: Objectives and space of a search, in which the results so far decide what runs next.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
        only_list: bool = False,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.grids = list(grids or [])
        self.only_list = only_list
        self.search = search
        self._on_error = "continue"

    def sweep(self, arguments: list[str]) -> Any:
        """Compose and check all jobs, then run those that have no result yet.

        Args:
            arguments: Overrides from the command line.

        Raises:
            InvalidConfigError: Before any job runs, each problem with the jobs that have it.
            StudyFailedError: Some jobs have no result.
        """
        from dualscale_mamba.study.multirun import listed

        parser = OverridesParser.create()
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        if self.search is not None:
            return self._explore(overrides)
        jobs = [job for batch in self.split_arguments(overrides, None) for job in batch]
        multirun = self.multirun(self.entries(jobs, 0))
        multirun.study.write(multirun.line)
        if self.only_list:
            sys.stdout.write(listed(multirun))
            return []
        studies.begun.append((multirun.study.path, multirun.line.id))
        multirun.run()
        return []

    def _explore(self, overrides: list[Override]) -> Any:
        """Run a search, and show what nothing beats."""
        from dualscale_mamba.study.exploration import Exploration, narrowed, show_found
        from dualscale_mamba.study.search import Search

        if self.only_list or self.grids:
            beside = "hydra.sweeper.only_list" if self.only_list else "hydra.sweeper.grids"
            hint = "A search knows its next jobs only when others have ended."
            raise ConfigError("hydra.sweeper.search", "{...}", f"null together with {beside}", hint)
        plain: Any = OmegaConf.to_container(OmegaConf.create({"search": self.search}), resolve=True)
        fixed, settings = narrowed(plain["search"], overrides)
        (base,) = self.entries([fixed], 0)
        study = self.multirun([base]).study
        search = Search.open(settings, study.path, base.id)

        def launch(known: Sequence[Entry], now: Sequence[Entry]) -> None:
            whole = self.multirun(known)
            line = replace(whole.line, id=search.id)
            study.write(line)
            replace(whole, line=line, only=frozenset(entry.id for entry in now)).run()

        studies.begun.append((study.path, search.id))
        try:
            Exploration(search, fixed, self.entries, launch, study.jobs, self._on_error).run()
        finally:
            search.close()
            show_found(study, search)
        return []

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """All jobs as lists of overrides, in batches.

        Args:
            overrides: Parsed ``params`` and command line.
            max_batch_size: Jobs in a batch; None for all.
        """
        if self.search is not None:  # of the jobs to come only what they share is known
            overrides = [override for override in overrides if not override.is_sweep_override()]
        if not self.grids:
            return BasicSweeper.split_arguments(overrides, max_batch_size)
        parser = OverridesParser.create()
        jobs: list[list[str]] = []
        for grid in self.grids:
            own = parser.parse_overrides([f"{key}={_text(value)}" for key, value in grid.items()])
            (batch,) = BasicSweeper.split_arguments([*own, *overrides], None)
            jobs += [job for job in batch if job not in jobs]
        return list(BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size))

    def entries(self, jobs: Sequence[Sequence[str]], first: int) -> list[Entry]:
        """Compose and validate every job.

        Args:
            jobs: Overrides of each.
            first: Number of the first.

        Raises:
            InvalidConfigError: Of all jobs together, each problem with the job that has it.
        """
        from dualscale_mamba.study.multirun import entry_of

        assert self.config is not None
        assert self.hydra_context is not None
        found: dict[str, list[str]] = {}
        places: set[str] = set()
        loader = self.hydra_context.config_loader
        made = []
        for number, overrides in enumerate(bar(jobs, "check", "job"), first):
            config = loader.load_sweep_config(self.config, list(overrides))
            wrong = [*problems(config), *taken(config, places)]
            for problem in wrong:
                found.setdefault(problem, []).append(f"job {number} ({' '.join(overrides)})")
            self._on_error = str(config.on_error)
            if not found:
                made.append(entry_of(config, overrides, number))
        if found:
            raise InvalidConfigError([f"{_told(names, len(jobs))}: {text}" for text, names in found.items()])
        return made

    def multirun(self, entries: Sequence[Entry]) -> Multirun:
        """The line that ``entries`` make, in its folder."""
        from dualscale_mamba.study.folder import StudyFolder, line_id
        from dualscale_mamba.study.multirun import Multirun, line_of

        assert self.config is not None
        assert self.launcher is not None
        sweep = self.config.hydra.sweep
        folder = Path(str(sweep.dir)).absolute()
        name = folder.name
        if name == TYPED_STUDY:  # lines without a name of their own have a folder each
            folder = folder / line_id(tuple(entries))
        with read_write(self.config), open_dict(self.config):
            sweep.dir = str(folder)  # launchers read it
        line = line_of(name, self._on_error, entries)
        at_once = 1 if isinstance(self.launcher, BasicLauncher) else self.max_batch_size
        return Multirun(StudyFolder(folder), line, self.launcher.launch, at_once)


def _told(jobs: Sequence[str], total: int) -> str:
    """Which jobs a problem concerns, in few words."""
    if len(jobs) == total > 1:
        return f"all {total} jobs"
    return jobs[0] if len(jobs) == 1 else f"{len(jobs)} of {total} jobs, first {jobs[0]}"


def _text(value: Any) -> str:
    return (
        ",".join(str(v) for v in value) if OmegaConf.is_list(value) or isinstance(value, list) else str(value)
    )


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="union",
    node={
        "_target_": f"{__name__}.{UnionSweeper.__name__}",
        "max_batch_size": None,
        "params": None,
        "grids": None,
        "only_list": False,
        "search": None,
    },
    provider="dualscale_mamba",
)
