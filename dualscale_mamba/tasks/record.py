"""The folder of one run: what is in it, written so that a killed run leaves no half file."""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf

from dualscale_mamba.configuration.resolvers import chosen_options
from dualscale_mamba.study.files import plain, read_json, write_json, write_text
from dualscale_mamba.study.folder import JOBS, RESULT, STATUS, is_done, locked

SCHEMA_VERSION = 2
TRACEBACK_LINES = 30
LINE_LENGTH = 400
STOPPED = "stopped"
# What an attempt that did not end well has left; its log stays.
PARTIAL = (
    "items_*.jsonl", "distribution.json", "figure.png", "fidelity.csv", "channels.*", "observer", "wandb", RESULT,
)  # fmt: skip

logger = logging.getLogger(__name__)


class StudyStoppedError(Exception):
    """Nothing more shall be started: a job has failed and ``on_error`` is ``stop``."""


@dataclass
class RunFolder:
    """Where a run writes.

    Attributes:
        path: The folder.
        identity: What tells this run from others: name, arm, group, overrides, choices.
        in_multirun: Whether the run is one job of a study.
        stops_others: Whether its failure shall stop the study.
    """

    path: Path
    identity: dict[str, Any]
    in_multirun: bool = False
    stops_others: bool = False
    _state: dict[str, Any] = field(default_factory=dict, repr=False)
    _recorded: ClassVar[list[RunFolder]] = []

    @classmethod
    def of(cls, config: DictConfig) -> RunFolder:
        """The folder that ``paths.run`` names; the very object that records it now, if one does."""
        known = next((f for f in cls._recorded if f.path == Path(config.paths.run).absolute()), None)
        if known is not None:
            return known
        overrides: Sequence[str] = []
        choices: Mapping[str, Any] = {}
        number, in_multirun = 0, False
        if HydraConfig.initialized():
            hydra = HydraConfig.get()
            overrides = list(hydra.overrides.task)
            choices = chosen_options(hydra.runtime.choices)
            place = OmegaConf.select(cast("Container", hydra), "job.num", throw_on_missing=False)
            # A launcher that runs each job as a single run of its own gives it its number.
            in_multirun = hydra.mode == RunMode.MULTIRUN or place is not None
            number = int(place or 0)
        path = Path(config.paths.run).absolute()
        identity = {
            "id": path.name if path.parent.name == JOBS else None,
            "name": config.name,
            "arm": config.arm,
            "group": config.group,
            "number": number,
            "overrides": overrides,
            "choices": plain(choices),
        }
        return cls(path, identity, in_multirun, config.on_error == "stop")

    @property
    def is_job(self) -> bool:
        """Whether the folder is known by its job's content."""
        return self.path.parent.name == JOBS

    @property
    def is_done(self) -> bool:
        """Whether the very same job has been done before."""
        return self.is_job and is_done(self.path)

    @property
    def _sign(self) -> Path:
        """The file that tells the jobs of a study to start no more."""
        return self.path.parent.parent / STOPPED

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out; whoever waits finds the job done.

        Raises:
            StudyStoppedError: The study was stopped before this job began.
        """
        with locked(self.path):
            if self.is_job and self.stops_others and self._sign.exists():
                raise StudyStoppedError(f"not started: {self._sign} says that a job has failed")
            yield

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep ``status.json`` true: running with its stage, then done or failed with the end of the traceback."""
        self._begin()
        self._recorded.append(self)
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            tail = traceback.format_exception(error)[-TRACEBACK_LINES:]
            line = f"{type(error).__name__}: {error}".rstrip(": ").splitlines()[0][:LINE_LENGTH]
            self._status(state, error=line, traceback="".join(tail))
            if state == "failed" and self.is_job and self.stops_others:
                self._sign.touch()
            _release(error)
            raise
        finally:
            self._recorded.remove(self)
        self._status("done")

    def _begin(self) -> None:
        before = read_json(self.path / STATUS) or {}
        if self.is_job:
            self._clear()
        self._state = {
            "began": time.time(),
            "host": platform.node(),
            "pid": os.getpid(),
            "attempt": int(before.get("attempt") or 0) + 1,
        }
        self._status("running", stage="begin")

    def _clear(self) -> None:
        """Remove what is worth nothing without a result."""
        for pattern in PARTIAL:
            for path in self.path.glob(pattern):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _status(self, state: str, **more: Any) -> None:
        seconds = round(time.time() - self._state["began"], 3)
        content = {**self.identity, **self._state, "state": state, "seconds": seconds, **more}
        try:
            write_json(self.path / STATUS, content)
        except OSError as error:  # a full disk: what the run itself raises is the message that counts
            logger.error("%s cannot be written (%s)", self.path / STATUS, error)
            if state == "failed":  # make room to say so
                self._clear()
                with suppress(OSError):
                    write_json(self.path / STATUS, content)

    def write_result(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``result.json``, the source of truth, and return it as it can be read back."""
        whole = {"schema_version": SCHEMA_VERSION, **self.identity, "status": "done", **content}
        write_json(self.path / RESULT, whole)
        loaded: dict[str, Any] = json.loads((self.path / RESULT).read_text(encoding="utf-8"))
        return loaded

    def write_items(self, name: str, items: Sequence[Mapping[str, Any]]) -> None:
        """Write one line for each item of an evaluation to ``items_<name>.jsonl``."""
        if items:
            lines = [json.dumps(plain(item)) for item in items]
            write_text(self.path / f"items_{name}.jsonl", "\n".join(lines) + "\n")


def stage(name: str) -> None:
    """Say in ``status.json`` what the run of this process is doing now."""
    for folder in RunFolder._recorded[-1:]:
        folder._status("running", stage=name)


def _release(error: BaseException) -> None:
    """Let go of the tensors that a failed job's frames hold: the next job in this process needs the memory."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
