"""What a run does: the functions that ``conf/task`` names, and the frame that records their outcome."""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from dualscale_mamba.configuration import instantiate, resolvers
from dualscale_mamba.configuration.validate import validate
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.progress import hidden
from dualscale_mamba.study.files import read_json
from dualscale_mamba.study.folder import RESULT
from dualscale_mamba.study.identity import job_id
from dualscale_mamba.tasks.record import RunFolder

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> float | None:
    """Validate the configuration, then run its task in a folder that always says how it ended.

    A job of a study that has been done before, perhaps by another process meanwhile, is not done again.

    Returns:
        The metric that ``objective`` names, or None.

    Raises:
        InvalidConfigError: Before anything heavy happens.
        StudyStoppedError: Another job has failed and ``on_error`` is ``stop``.
        Exception: Whatever the task raised, after ``status.json`` has told of it.
    """
    resolvers.register()  # a launcher's worker process comes here without having run the entry point
    folder = RunFolder.of(config)
    if folder.in_multirun:
        _speak_up_only_when_needed()
    with folder.held():
        if folder.is_done:
            logger.info("%s has been done before", folder.path)
        else:
            with hidden(folder.in_multirun), folder.recording():
                validate(config)
                folder.identity["id"] = folder.identity["id"] or job_id(config)
                instantiate.task(config)(config)
        return _objective(config, folder)


def _speak_up_only_when_needed() -> None:
    """On the console a study's own table says what happens; the log file still has everything."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)


def _objective(config: DictConfig, folder: RunFolder) -> float | None:
    if config.objective is None:
        return None
    metrics = (read_json(folder.path / RESULT) or {}).get("metrics", {})
    if config.objective not in metrics:
        raise ConfigError("objective", config.objective, "one of " + ", ".join(metrics))
    return float(metrics[config.objective]["value"])
