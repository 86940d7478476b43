"""A sweeper that also takes unions of grids, and refuses a study before its first job if any job cannot run.

It lies here because Hydra takes sweepers from the name space package ``hydra_plugins`` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from dualscale_mamba.configuration import studies
from dualscale_mamba.configuration.validate import InvalidConfigError, problems


class UnionSweeper(BasicSweeper):
    """Hydra's basic sweeper, plus ``hydra.sweeper.grids``: a list of grids, run one after the other.

    Each grid is a mapping of key to value or comma-separated values, like ``params``, and stands for the
    product of its values; what is typed on the command line applies to every grid and wins.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.grids = list(grids or [])

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """All jobs as lists of overrides, in batches.

        Args:
            overrides: Parsed ``params`` and command line.
            max_batch_size: Jobs in a batch; None for all.
        """
        if not self.grids:
            return BasicSweeper.split_arguments(overrides, max_batch_size)
        parser = OverridesParser.create()
        jobs: list[list[str]] = []
        for grid in self.grids:
            own = parser.parse_overrides([f"{key}={_text(value)}" for key, value in grid.items()])
            (batch,) = BasicSweeper.split_arguments([*own, *overrides], None)
            jobs += [job for job in batch if job not in jobs]
        return list(BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose and validate every job of ``batch``.

        Raises:
            InvalidConfigError: Of all jobs together, each problem with the job that has it.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        found: dict[str, list[str]] = {}
        loader = self.hydra_context.config_loader
        for number, overrides in enumerate(batch):
            config = loader.load_sweep_config(self.config, list(overrides))
            for problem in problems(config):
                found.setdefault(problem, []).append(f"job {number} ({' '.join(overrides)})")
        if found:
            raise InvalidConfigError(
                [f"{_told(jobs, len(batch))}: {problem}" for problem, jobs in found.items()]
            )
        studies.begun.append(Path(self.config.hydra.sweep.dir).absolute())


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
    },
    provider="dualscale_mamba",
)
