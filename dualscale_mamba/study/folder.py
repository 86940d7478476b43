"""The folder of a study: jobs by their content, and one file for each line that was typed.

``jobs/<id>/`` holds what a job wrote, ``lines/<id>.json`` which jobs a line consists of. Jobs are shared: a line that
is typed again, or another one with some jobs in common, finds what is already there.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dualscale_mamba.study.files import read_json, write_json

STATUS, RESULT, LOCK = "status.json", "result.json", ".lock"
JOBS, LINES = "jobs", "lines"
logger = logging.getLogger(__name__)

STATES = ("waiting", "running", "done", "failed", "interrupted", "killed")


@dataclass(frozen=True)
class Entry:
    """A job as one line names it.

    Attributes:
        id: Content hash.
        number: Place in the line.
        name: For people.
        arm: Baseline, control, treatment or None.
        group: Name of the study.
        overrides: What was typed or stored for it.
        choices: Chosen file of each configuration group.
    """

    id: str
    number: int
    name: str
    arm: str | None = None
    group: str | None = None
    overrides: tuple[str, ...] = ()
    choices: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One multirun as it was typed.

    Attributes:
        id: Content hash of its jobs.
        name: Of the stored study, or ``multirun``.
        command: Arguments of the process.
        began: Seconds since the epoch, of the latest time it was typed.
        on_error: ``continue`` or ``stop``.
        entries: Its jobs, in their order.
    """

    id: str
    name: str
    command: tuple[str, ...]
    began: float
    on_error: str
    entries: tuple[Entry, ...]


def line_id(entries: tuple[Entry, ...]) -> str:
    """Content hash of a line: the same jobs in any order are the same line."""
    return hashlib.sha256("\n".join(sorted(entry.id for entry in entries)).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a study.

    Attributes:
        path: ``hydra.sweep.dir``.
    """

    path: Path

    @property
    def jobs(self) -> Path:
        """Where the jobs' folders lie."""
        return self.path / JOBS

    def job(self, job_id: str) -> Path:
        """The folder of one job."""
        return self.jobs / job_id

    def write(self, line: Line) -> None:
        """Keep what was typed."""
        write_json(self.path / LINES / f"{line.id}.json", line)

    def lines(self) -> list[Line]:
        """All lines that were typed here, the latest last; a damaged file is left out with a warning."""
        found = [_line(path) for path in (self.path / LINES).glob("*.json")]
        return sorted((line for line in found if line is not None), key=lambda line: line.began)

    def latest(self) -> Line | None:
        """The line that was typed last, or None."""
        return next(reversed(self.lines()), None)

    def line(self, wanted: str) -> Line:
        """One line by the beginning of its id.

        Raises:
            KeyError: There is none, or several.
        """
        found = [line for line in self.lines() if line.id.startswith(wanted)]
        if len(found) != 1:
            known = ", ".join(line.id for line in self.lines()) or "none"
            raise KeyError(f"line {wanted}: there is no single such line in {self.path}; known are {known}")
        return found[0]


def _line(path: Path) -> Line | None:
    found = read_json(path)
    if found is None:
        return None
    try:
        entries = tuple(
            Entry(**{**entry, "overrides": tuple(entry["overrides"])}) for entry in found["entries"]
        )
        return Line(
            **{
                **found,
                "command": tuple(found["command"]),
                "began": float(found["began"]),
                "entries": entries,
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        logger.warning("%s is no line of a study (%s: %s) and is left out", path, type(error).__name__, error)
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a job's folder; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / LOCK)):
        yield


def is_locked(folder: Path) -> bool:
    """Whether some process works on a job now."""
    path = folder / LOCK
    if not path.exists() or not os.access(path, os.W_OK):
        return False
    try:
        with FileLock(str(path), timeout=0):
            return False
    except Timeout:
        return True


def is_done(folder: Path) -> bool:
    """Whether a job has ended well and left its result."""
    status = read_json(folder / STATUS) or {}
    return status.get("state") == "done" and (folder / RESULT).is_file()


def state_of(folder: Path) -> str:
    """What became of a job, one of ``STATES``."""
    status = read_json(folder / STATUS)
    if status is None:
        return "waiting"
    state = str(status.get("state"))
    return "killed" if state == "running" and not is_locked(folder) else state
