"""Weights & Biases: one run a job, whatever happens to the job and wherever the server is."""

from __future__ import annotations

import logging
import netrc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.tracking.base import first_line, without_harm
from dualscale_mamba.tracking.wandb_run import WandbRun

# From the most that can be had to the least.
MODES = ("online", "offline", "disabled")
INSTEAD = {
    "online": "this run is logged offline, send it with `wandb sync`",
    "offline": "this run is not logged there, result.json has it all",
}
# Offline nothing is far away: only a machine that is very busy takes long to start the client's service.
OFFLINE_TIMEOUT = 120.0
# A server that no longer answers must not hold a finished job; what is not sent stays on disk for `wandb sync`.
FINISH_TIMEOUT = 120.0
NAME = "W&B"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbTracker:
    """Starts one W&B run for each job.

    Args:
        project: W&B project.
        entity: User or team; None for the default of the account.
        mode: ``offline`` writes files for ``wandb sync``; ``online`` needs a key and a network, and becomes
            offline with a warning where it has not; ``disabled`` does nothing.
        timeout: Seconds to wait for the server.
        artifact_mb: A larger file (in 10^6 bytes) is not sent as an artifact.
    """

    project: str = "dualscale_mamba"
    entity: str | None = None
    mode: str = "offline"
    timeout: float = 10.0
    artifact_mb: float = 50.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("tracker.mode", self.mode, "one of " + ", ".join(MODES))
        if self.artifact_mb < 0:
            raise ConfigError("tracker.artifact_mb", self.artifact_mb, "a number not below 0")

    @contextmanager
    def tracking(self, folder: Path, config: DictConfig, run_id: str) -> Iterator[WandbRun]:
        """See :class:`~dualscale_mamba.tracking.base.Tracker`."""
        folder.mkdir(parents=True, exist_ok=True)
        run = self._start(folder, config, run_id)
        try:
            yield WandbRun(run, self.artifact_mb)
        except BaseException:
            without_harm(NAME, lambda: run.finish(exit_code=1))
            raise
        without_harm(NAME, run.finish)

    def _start(self, folder: Path, config: DictConfig, run_id: str) -> Any:
        """A run in the wanted mode, or in the next humbler one that works: a tracker must not stop a job."""
        import wandb

        for mode in MODES[MODES.index(self.mode) :]:
            try:
                return self.start(folder, config, run_id, mode, resume="allow")
            except Exception as error:  # the client's errors and the network's share no base
                if mode == "disabled":
                    raise
                logger.warning("W&B cannot start %s (%s); %s", mode, first_line(error), INSTEAD[mode])
                wandb.teardown()
        raise AssertionError("the last mode returns or raises")

    def start(self, folder: Path, config: DictConfig, run_id: str, mode: str, resume: str | None) -> Any:
        """A ``wandb.Run`` in one mode.

        Args:
            folder: Where its files go.
            config: Of the job.
            run_id: Its id on the server.
            mode: One of ``MODES``.
            resume: ``allow`` goes on with a run of the same id, None replaces it.

        Raises:
            Exception: Whatever the client raises, without a common base; without a key at once.
        """
        import wandb

        if mode == "online" and not has_key():
            raise wandb.errors.UsageError("no API key: run `wandb login` once")
        patience = self.timeout if mode == "online" else OFFLINE_TIMEOUT
        resolved = OmegaConf.to_container(config, resolve=True)
        assert isinstance(resolved, dict)
        tags = [str(tag) for tag in (config.arm, config.precision.get("name"), *config.tags) if tag]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=re.sub(r"[^\w-]", "-", run_id),
            resume=cast("Any", resume),
            name=str(config.name),
            group=str(config.group or config.name),
            job_type=str(config.task["_target_"]).split(".")[-2],
            tags=list(dict.fromkeys(tags)),
            config={str(key): value for key, value in resolved.items()},
            dir=str(folder),
            mode=cast("Any", mode),
            reinit="finish_previous",
            settings=_settings(patience, raises=resume is None),
        )


def _settings(patience: float, raises: bool) -> Any:
    import wandb

    settings = wandb.Settings(init_timeout=patience, silent=True, console="off", disable_git=True)
    if "finish_timeout" in wandb.Settings.model_fields:  # older clients wait for ever
        settings.finish_timeout, settings.finish_timeout_raises = FINISH_TIMEOUT, raises
    return settings


def has_key() -> bool:
    """Whether a key is known, without asking for one: a question would hang a batch job."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key:
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(str(settings.base_url)).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
