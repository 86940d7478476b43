"""No tracker: ``result.json`` is all there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class JsonTracker:
    """Sends nothing anywhere."""

    @contextmanager
    def tracking(self, folder: Path, config: DictConfig, run_id: str) -> Iterator[JsonTracker]:
        """See :class:`~dualscale_mamba.tracking.base.Tracker`."""
        yield self

    def log(self, result: Mapping[str, Any], folder: Path) -> None:
        """See :class:`~dualscale_mamba.tracking.base.Tracked`."""
