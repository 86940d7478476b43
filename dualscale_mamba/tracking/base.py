"""What every tracker offers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig


class Tracked(Protocol):
    """One run that is being tracked."""

    def log(self, result: dict[str, Any], figure: Path | None) -> None:
        """Send a finished run's ``result.json`` and its picture."""
        ...


class Tracker(Protocol):
    """Settings from which runs are started; ``conf/tracker`` names the implementations."""

    def tracking(self, folder: Path, config: DictConfig) -> AbstractContextManager[Tracked]:
        """A context that ends the run in any case, and marks it failed if the block raised."""
        ...
