"""Weights & Biases: one run a job, whatever happens to the job and wherever the server is."""

from __future__ import annotations

import logging
import netrc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.errors import ConfigError

# From the most that can be had to the least.
MODES = ("online", "offline", "disabled")
INSTEAD = {
    "online": "this run is logged offline, send it with `wandb sync`",
    "offline": "this run is not logged there, result.json has it all",
}
# Offline nothing is far away: only a machine that is very busy takes long to start the client's service.
OFFLINE_TIMEOUT = 120.0

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
    """

    project: str = "dualscale_mamba"
    entity: str | None = None
    mode: str = "offline"
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("tracker.mode", self.mode, "one of " + ", ".join(MODES))

    @contextmanager
    def tracking(self, folder: Path, config: DictConfig) -> Iterator[WandbRun]:
        """See :class:`~dualscale_mamba.tracking.base.Tracker`."""
        folder.mkdir(parents=True, exist_ok=True)
        run = self._start(folder, config)
        try:
            yield WandbRun(run)
        except BaseException:
            _without_harm(lambda: run.finish(exit_code=1))
            raise
        _without_harm(run.finish)

    def _start(self, folder: Path, config: DictConfig) -> Any:
        """A run in the wanted mode, or in the next humbler one that works: a tracker must not stop a job."""
        import wandb

        for mode in MODES[MODES.index(self.mode) :]:
            try:
                if mode == "online" and not _has_key():
                    raise wandb.errors.UsageError("no API key: run `wandb login` once")
                return self._init(folder, config, mode)
            except Exception as error:  # the client's errors and the network's share no base
                if mode == "disabled":
                    raise
                logger.warning("W&B cannot start %s (%s); %s", mode, _first_line(error), INSTEAD[mode])
                wandb.teardown()
        raise AssertionError("the last mode returns or raises")

    def _init(self, folder: Path, config: DictConfig, mode: str) -> Any:
        import wandb

        patience = self.timeout if mode == "online" else OFFLINE_TIMEOUT
        resolved = OmegaConf.to_container(config, resolve=True)
        assert isinstance(resolved, dict)
        tags = [str(tag) for tag in (config.arm, config.precision.get("name"), *config.tags) if tag]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            name=str(config.name),
            group=str(config.group or config.name),
            job_type=str(config.task["_target_"]).split(".")[-2],
            tags=tags,
            config={str(key): value for key, value in resolved.items()},
            dir=str(folder),
            mode=cast("Any", mode),
            reinit="finish_previous",
            settings=wandb.Settings(init_timeout=patience, silent=True, console="off", disable_git=True),
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _without_harm(send: Callable[[], object]) -> None:
    """What W&B cannot take is told and left: ``result.json`` has it."""
    try:
        send()
    except Exception as error:  # the client's errors share no base
        logger.warning("W&B has not taken everything of this run (%s)", _first_line(error))


def _has_key() -> bool:
    """Whether a key is known, without asking for one: a question would hang a batch job."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key:
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(str(settings.base_url)).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(frozen=True)
class WandbRun:
    """One run of W&B.

    Attributes:
        run: ``wandb.sdk.wandb_run.Run``.
    """

    run: Any

    def log(self, result: dict[str, Any], figure: Path | None) -> None:
        """See :class:`~dualscale_mamba.tracking.base.Tracked`: summary, table of sites, picture."""
        _without_harm(lambda: self._send(result, figure))

    def _send(self, result: dict[str, Any], figure: Path | None) -> None:
        import wandb

        summary = {name: metric["value"] for name, metric in result["metrics"].items()}
        summary |= {f"site/{name}": value for name, value in result["site_summary"].items()}
        self.run.summary.update(summary)
        extra = {key: result[key] for key in ("environment", "hashes", "fairness", "seconds")}
        self.run.config.update(extra)
        media: dict[str, Any] = {}
        if result["sites"]:
            columns = list(dict.fromkeys(key for site in result["sites"] for key in site))
            rows = [[site.get(column) for column in columns] for site in result["sites"]]
            media["sites"] = wandb.Table(columns=columns, data=rows)
        if figure is not None:
            media["figure"] = wandb.Image(str(figure))
        if media:
            self.run.log(media)
