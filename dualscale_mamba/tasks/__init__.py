"""What a run does: the functions that ``conf/task`` names, and the frame that records their outcome."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from dualscale_mamba.configuration import instantiate
from dualscale_mamba.configuration.validate import validate
from dualscale_mamba.tasks.record import RunFolder

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> float | None:
    """Validate the configuration, then run its task in a folder that always says how it ended.

    Raises:
        InvalidConfigError: Before anything heavy happens.
        Exception: Whatever the task raised, after ``status.json`` and one red line have told of it.
    """
    folder = RunFolder.of(config)
    with folder.recording():
        validate(config)
        return instantiate.task(config)(config)
