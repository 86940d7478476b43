"""The folder of one run: what is in it, written so that a killed run leaves no half file."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf
from rich.console import Console

SCHEMA_VERSION = 1
TRACEBACK_LINES = 30
LINE_LENGTH = 400
RESULT = "result.json"
STATUS = "status.json"

logger = logging.getLogger(__name__)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` in one step: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(_plain(content), file, indent=1, allow_nan=False)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    """The same in JSON's types; numbers that JSON lacks become strings: a NaN must not pass for a gap."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Attributes:
        path: The folder.
        identity: What tells this run from others: name, arm, group, overrides, choices.
        in_multirun: Whether other jobs follow.
    """

    path: Path
    identity: dict[str, Any]
    in_multirun: bool = False

    @classmethod
    def of(cls, config: DictConfig) -> RunFolder:
        """The folder that ``paths.run`` names."""
        overrides: Sequence[str] = []
        choices: Mapping[str, Any] = {}
        number, in_multirun = 0, False
        if HydraConfig.initialized():
            hydra = HydraConfig.get()
            overrides = list(hydra.overrides.task)
            choices = {k: v for k, v in hydra.runtime.choices.items() if not str(k).startswith("hydra")}
            in_multirun = hydra.mode == RunMode.MULTIRUN
            number = int(OmegaConf.select(cast("Container", hydra), "job.num", throw_on_missing=False) or 0)
        identity = {
            "name": config.name,
            "arm": config.arm,
            "group": config.group,
            "number": number,
            "overrides": overrides,
            "choices": _plain(choices),
        }
        return cls(Path(config.paths.run).absolute(), identity, in_multirun)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep ``status.json`` true: running, then done or failed with the end of the traceback."""
        began = time.time()
        self._status("running", began)
        try:
            yield
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            tail = traceback.format_exception(error)[-TRACEBACK_LINES:]
            line = f"{type(error).__name__}: {error}".splitlines()[0][:LINE_LENGTH]
            self._status(state, began, error=line, traceback="".join(tail))
            if (
                isinstance(error, Exception) and self.in_multirun
            ):  # a single run's error is shown at its end, at once
                message = f"run {self.identity['number']} ({self.identity['name']}) failed: {line}"
                Console(stderr=True, soft_wrap=True, highlight=False).print(
                    message, style="bold red", markup=False
                )
            raise
        self._status("done", began)

    def _status(self, state: str, began: float, **more: Any) -> None:
        seconds = round(time.time() - began, 3)
        write_json(self.path / STATUS, {**self.identity, "state": state, "seconds": seconds, **more})

    def write_result(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``result.json``, the source of truth, and return it as it can be read back."""
        whole = {"schema_version": SCHEMA_VERSION, **self.identity, "status": "done", **content}
        write_json(self.path / RESULT, whole)
        loaded: dict[str, Any] = json.loads((self.path / RESULT).read_text(encoding="utf-8"))
        return loaded

    def write_items(self, name: str, items: Sequence[Mapping[str, Any]]) -> None:
        """Write one line for each item of an evaluation to ``items_<name>.jsonl``."""
        if items:
            lines = [json.dumps(_plain(item)) for item in items]
            (self.path / f"items_{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
