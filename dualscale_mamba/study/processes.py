"""Jobs as processes: one queue, a number of slots, a fresh process for each job, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualscale_mamba.study import leash
from dualscale_mamba.study.files import read_json, write_json
from dualscale_mamba.study.folder import STATUS

OUTPUT = "output.log"
POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0  # between SIGTERM, at which a run writes its status, and SIGKILL
TAIL_LINES, TAIL_BYTES = 8, 8192


@dataclass(frozen=True)
class Slot:
    """A place where one job at a time runs.

    Attributes:
        name: For people, e.g. ``gpu0``.
        environment: All environment variables of its processes.
    """

    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """A process that is to run.

    Attributes:
        name: For people.
        command: Program and arguments.
        folder: Where its output goes, and its ``status.json``.
        identity: What ``status.json`` says of it where it could not write that itself.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        job: The process.
        slot: Name of the slot it ran in.
        seconds: How long it ran.
        returncode: 0; the exit status; minus the signal that killed it.
        interrupted: Whether it was ended because all were.
        error: One sentence, empty if it ended well.
    """

    job: Job
    slot: str
    seconds: float
    returncode: int
    interrupted: bool
    error: str


@dataclass
class _Running:
    number: int
    job: Job
    slot: Slot
    process: subprocess.Popen[bytes]
    began: float
    status_before: int | None
    shown: int = 0

    def new_lines(self, to_the_end: bool = False) -> list[str]:
        """Whole lines of output since the last call; with ``to_the_end`` also one that is not complete."""
        with (self.job.folder / OUTPUT).open("rb") as file:
            file.seek(self.shown)
            text = file.read()
        whole = len(text) if to_the_end else text.rfind(b"\n") + 1
        self.shown += whole
        return text[:whole].decode("utf-8", "replace").splitlines()


def run_all(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    show: Callable[[str, str, str], None] | None = None,
) -> list[End]:
    """Run every job in a process of its own, as many at a time as there are slots.

    A job starts in whatever slot is free first. The process that calls this may be killed in any way: its jobs are
    ended too (on Linux).

    Args:
        jobs: In the order in which they start.
        slots: At least one.
        show: Called with slot, job and line for every line of output.

    Returns:
        How each job ended, in the order of ``jobs``.

    Raises:
        KeyboardInterrupt: After every process has ended and its ``status.json`` says so.
    """
    waiting, free = deque(enumerate(jobs)), deque(slots)
    running: list[_Running] = []
    ends: dict[int, End] = {}

    def close(child: _Running, interrupted: bool = False) -> None:
        running.remove(child)
        free.append(child.slot)
        _show(child, show, to_the_end=True)
        ends[child.number] = _end(child, interrupted)

    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(*waiting.popleft(), free.popleft()))
            time.sleep(POLL_SECONDS)
            for child in list(running):
                if child.process.poll() is not None:
                    close(child)
                else:
                    _show(child, show)
    finally:
        _stop([child.process for child in running])
        for child in list(running):
            close(child, interrupted=True)
    return [ends[number] for number in range(len(jobs))]


def _start(number: int, job: Job, slot: Slot) -> _Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    # -I -S: the leash needs nothing but the standard library, and must not find our modules in its place.
    leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *job.command]
    with (job.folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            leashed,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(slot.environment),
            start_new_session=True,  # Ctrl-C reaches this process alone, and a job's own children end with it
        )
    return _Running(number, job, slot, process, time.time(), _changed(job.folder / STATUS))


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _show(child: _Running, show: Callable[[str, str, str], None] | None, *, to_the_end: bool = False) -> None:
    if show is not None:
        for line in child.new_lines(to_the_end):
            show(child.slot.name, child.job.name, line)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and what they started: ask first, and do not ask for long."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    until = time.monotonic() + GRACE_SECONDS
    # A second Ctrl-C means at once.
    with suppress(KeyboardInterrupt):
        while time.monotonic() < until and any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _end(child: _Running, interrupted: bool) -> End:
    code = child.process.returncode
    if code < 0:
        _signal(child.process, signal.SIGKILL)  # what it had started outlives a process that was killed
    seconds = round(time.time() - child.began, 3)
    error = "" if code == 0 else _settle(child, code, interrupted, seconds)
    return End(child.job, child.slot.name, seconds, code, interrupted, error)


def _settle(child: _Running, code: int, interrupted: bool, seconds: float) -> str:
    """What went wrong; ``status.json`` says so too, also where the process could not write it."""
    path = child.job.folder / STATUS
    status = read_json(path) or {}
    if _changed(path) != child.status_before and status.get("state") not in (None, "running"):
        return str(status.get("error") or _reason(code))
    lines = tail(child.job.folder / OUTPUT)
    error = "interrupted" if interrupted else _reason(code)
    state = "interrupted" if interrupted else "failed"
    known = {"number": None, **child.job.identity, **(status if status.get("state") == "running" else {})}
    ended = {"state": state, "began": child.began, "seconds": seconds, "error": error}
    write_json(path, {**known, **ended, "traceback": "\n".join(lines)})
    return f"{error}; its last lines: {' | '.join(lines)}" if lines and not interrupted else error


def _reason(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    # The kernel's out-of-memory killer sends SIGKILL and leaves no word with the process.
    return f"the process was killed by {name}{', as by want of memory' if name == 'SIGKILL' else ''}"


def tail(path: Path) -> list[str]:
    """The last lines of a text file that are not empty; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-TAIL_LINES:]
