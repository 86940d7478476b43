"""What every tracker offers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from dualscale_mamba.errors import ConfigError

logger = logging.getLogger(__name__)


class Tracked(Protocol):
    """One run that is being tracked."""

    def log(self, result: Mapping[str, Any], folder: Path) -> None:
        """Send a finished run's ``result.json`` and what else lies in its folder."""
        ...


class Tracker(Protocol):
    """Settings from which runs are started; ``conf/tracker`` names the implementations."""

    def tracking(self, folder: Path, config: DictConfig, run_id: str) -> AbstractContextManager[Tracked]:
        """A context that ends the run in any case, and marks it failed if the block raised.

        Args:
            folder: Of the run.
            config: Composed.
            run_id: The same whenever the same job is run or sent, so that nothing is there twice.
        """
        ...


def require(package: str, tracker: str) -> None:
    """Refuse a tracker whose package is missing, without importing it.

    Raises:
        ConfigError: There is no such package here.
    """
    if importlib.util.find_spec(package) is None:
        hint = "Type: pip install 'dualscale_mamba[trackers]'"
        raise ConfigError(
            "tracker", tracker, f"a tracker whose package is installed, and {package} is not", hint
        )


def without_harm(receiver: str, send: Callable[[], object]) -> None:
    """Do what a tracker cannot be allowed to spoil; what it does not take is told: ``result.json`` has it."""
    try:
        send()
    except Exception as error:  # the clients' errors share no base
        logger.warning("%s has not taken everything of this run (%s)", receiver, first_line(error))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]
