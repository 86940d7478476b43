"""W&B runs made later, from what finished jobs have left in their folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.study.files import read_json, write_json
from dualscale_mamba.study.folder import RESULT, STATUS, is_done, state_of
from dualscale_mamba.study.identity import content
from dualscale_mamba.tracking.base import first_line
from dualscale_mamba.tracking.wandb import MODES, WandbTracker, has_key
from dualscale_mamba.tracking.wandb_run import WandbRun

MARKER = "synced.json"
SENT, UP_TO_DATE = "sent", "up to date"
# Settings that a job which was tracked by W&B has in its configuration.
OWN = ("project", "entity", "timeout", "artifact_mb")
SYNC_MODES = tuple(mode for mode in MODES if mode != "disabled")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """One run's folder and where its W&B run goes."""

    folder: Path
    result: dict[str, Any]
    tracker: WandbTracker

    @property
    def id(self) -> str:
        """Of the W&B run: the job's content hash, or the folder's name."""
        return str(self.result.get("id") or self.folder.name)

    @property
    def marker(self) -> dict[str, Any]:
        """What says that this very result was sent there."""
        where = {"project": self.tracker.project, "entity": self.tracker.entity, "mode": self.tracker.mode}
        return {"id": self.id, **where, "digest": content(self.folder / RESULT)}

    def is_sent(self) -> bool:
        """Whether the result is there already; what is online need not be written offline too."""
        found = read_json(self.folder / MARKER) or {}
        same = {key: value for key, value in self.marker.items() if key != "mode"}
        known = {key: found.get(key) for key in same}
        return known == same and found.get("mode") in (self.tracker.mode, "online")


def sync(
    folder: Path,
    mode: str = "online",
    project: str | None = None,
    entity: str | None = None,
    force: bool = False,
) -> list[tuple[str, str]]:
    """Make a W&B run of every finished job in ``folder`` or below it.

    The ids are those of the jobs: a second call skips what has been sent, and a changed result replaces its run.

    Args:
        folder: Of a study or of one run.
        mode: ``online``, or ``offline`` to write ``<folder>/wandb`` for ``wandb sync``.
        project: W&B project; None for the one in the job's configuration.
        entity: User or team; None for the one in the job's configuration.
        force: Send what has been sent, too.

    Returns:
        Each job's id and what became of it: sent, up to date, or why not.

    Raises:
        ConfigError: The mode is unknown, the folder has no jobs, or there is no key for ``online``.
    """
    if mode not in SYNC_MODES:
        raise ConfigError("mode", mode, "one of " + ", ".join(SYNC_MODES))
    folders = sorted(path.parent for path in folder.rglob(STATUS))
    if not folders:
        raise ConfigError("folder", folder, f"a folder with a {STATUS} in it or below it")
    if mode == "online" and not has_key():
        hint = "Type: wandb login, or choose mode offline."
        raise ConfigError("mode", mode, "offline where no W&B key is known", hint)
    return list(_outcomes(folder, folders, mode, {"project": project, "entity": entity}, force))


def _outcomes(
    root: Path, folders: list[Path], mode: str, place: Mapping[str, str | None], force: bool
) -> Iterator[tuple[str, str]]:
    for folder in folders:
        result = read_json(folder / RESULT)
        if result is None or not is_done(folder):
            status = read_json(folder / STATUS) or {}
            name, error = str(status.get("id") or folder.name), status.get("error")
            yield name, f"not sent: {state_of(folder)}" + (f" ({error})" if error else "")
            continue
        job = _Job(folder, result, _tracker(result, mode, place))
        yield job.id, UP_TO_DATE if job.is_sent() and not force else _send(root, job)


def _tracker(result: Mapping[str, Any], mode: str, place: Mapping[str, str | None]) -> WandbTracker:
    """Where the job's own configuration says, unless the caller knows better."""
    own = result["config"].get("tracker", {})
    wanted = {**{key: own.get(key) for key in OWN}, **{key: value for key, value in place.items() if value}}
    return WandbTracker(mode=mode, **{key: value for key, value in wanted.items() if value is not None})


def _send(root: Path, job: _Job) -> str:
    import wandb

    config = OmegaConf.create(job.result["config"])
    assert isinstance(config, DictConfig)
    try:
        # Not resumed but replaced: curves of an earlier result would stay beside the new ones.
        run = job.tracker.start(root, config, job.id, job.tracker.mode, resume=None)
        WandbRun(run, job.tracker.artifact_mb).send(job.result, job.folder)
        run.finish()
    except Exception as error:  # the client's errors and the network's share no base; other jobs may go
        wandb.teardown()
        return f"not sent: {first_line(error)}"
    write_json(job.folder / MARKER, job.marker)
    return SENT
