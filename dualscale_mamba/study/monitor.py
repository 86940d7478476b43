"""What becomes of the jobs of a line, told while they run, whoever runs them: from their ``status.json`` alone."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dualscale_mamba.report.collect import Job, labels
from dualscale_mamba.report.tables import KINDS_ON_CONSOLE, console, key_metrics, near, number
from dualscale_mamba.study.files import read_json
from dualscale_mamba.study.folder import RESULT, STATUS, Entry, Line, StudyFolder, state_of

POLL_SECONDS = 0.5
SHOWN_METRICS = 2
ERROR_WIDTH = 300
ENDED = ("done", "failed", "interrupted", "killed")
STYLES = {
    "done": "green",
    "failed": "bold red",
    "killed": "red",
    "interrupted": "yellow",
    "running": "cyan",
    "waiting": "dim",
}
# Which rows stay when a terminal is too low for all.
IMPORTANCE = ("running", "failed", "killed", "interrupted", "waiting", "done")
# Lines of a terminal that are not rows: head, sum, a job's own messages.
OTHER_LINES = 9

logger = logging.getLogger(__name__)


@dataclass
class Seen:
    """The latest known of one job.

    Attributes:
        entry: Which.
        label: What tells it from the others.
        state: One of ``study.folder.STATES``.
        status: Content of ``status.json``.
        headline: Its telling metrics, once it is done.
        may_be_dead: Whether it seemed killed when it was last looked at.
    """

    entry: Entry
    label: str
    state: str = "waiting"
    status: dict[str, Any] = field(default_factory=dict)
    headline: str = ""
    may_be_dead: bool = False

    @property
    def seconds(self) -> float:
        """Since it began, or in all."""
        if self.state == "running":
            return time.time() - float(self.status.get("began") or time.time())
        return float(self.status.get("seconds") or 0.0)


class Watch:
    """The jobs of a line as they are on disk.

    Args:
        study: Where they lie.
        line: Which.
    """

    def __init__(self, study: StudyFolder, line: Line) -> None:
        self.study, self.line = study, line
        entries = list({entry.id: entry for entry in line.entries}.values())
        told = labels(
            [Job(study.job(e.id), {"overrides": list(e.overrides), "choices": e.choices}) for e in entries]
        )
        self.jobs = [Seen(entry, label) for entry, label in zip(entries, told, strict=True)]
        self.began = time.time()

    def update(self, patient: bool = False) -> list[Seen]:
        """Read what has changed.

        Args:
            patient: Believe that a job was killed only when it is seen so twice.

        Returns:
            Jobs whose state is another one than before.
        """
        changed = []
        for job in self.jobs:
            folder = self.study.job(job.entry.id)
            if job.state == "done":
                continue
            state = state_of(folder)  # before its words: what they say is never older than the state
            job.status = read_json(folder / STATUS) or {}
            if patient and state == "killed" and not job.may_be_dead:
                job.may_be_dead = True  # whoever started it may be about to write how it ended
                continue
            if state == "done":
                job.headline = headline(read_json(folder / RESULT) or {})
            if state != job.state:
                job.state = state
                changed.append(job)
        return changed

    @property
    def counts(self) -> Counter[str]:
        """Jobs by state."""
        return Counter(job.state for job in self.jobs)

    def remaining(self) -> float | None:
        """Seconds until all have ended, if the others take as long as those that ended since this began."""
        ended = [job.seconds for job in self.jobs if job.state in ENDED and self._is_new(job)]
        counts = self.counts
        if not ended or not counts["running"]:
            return None
        left = counts["waiting"] + counts["running"] / 2
        return left * sum(ended) / len(ended) / counts["running"]

    def _is_new(self, job: Seen) -> bool:
        return float(job.status.get("began") or 0.0) >= self.began - 1.0


def headline(result: dict[str, Any]) -> str:
    """The two most telling metrics of a result."""
    metrics = result.get("metrics", {})
    heads = key_metrics(metrics, KINDS_ON_CONSOLE)
    shown = [f"{heads[name]} {number(metrics[name]['value'], name)}" for name in heads]
    return ", ".join(shown[:SHOWN_METRICS])


def counted(jobs: int) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{jobs} job" + ("" if jobs == 1 else "s")


def clock(seconds: float) -> str:
    """``75`` as ``1:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(watch: Watch) -> Text:
    """How many jobs are in which state, and how long the rest will take."""
    counts = watch.counts
    text = Text(f"{watch.line.name}: {counted(len(watch.jobs))}")
    for state in ("done", "running", "waiting", "failed", "killed", "interrupted"):
        if counts[state]:
            text.append("  ").append(f"{counts[state]} {state}", style=STYLES[state])
    left = watch.remaining()
    return text.append(f"  about {clock(left)} left", style="dim") if left is not None else text


def table(watch: Watch, rows: int | None = None) -> RenderableType:
    """The jobs as a table and their sum below it.

    Args:
        watch: Updated.
        rows: How many jobs fit; those that need attention stay.
    """
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    with_arms = any(job.entry.arm for job in watch.jobs)
    for head in ("id", *(["arm"] if with_arms else []), "job", "state", "time", "result"):
        made.add_column(head, no_wrap=True, justify="right" if head == "time" else "left")
    for job in _fitting(watch.jobs, rows):
        doing = f"{job.state}: {job.status.get('stage', '')}" if job.state == "running" else job.state
        result = job.headline or (_error(job) if job.state in ("failed", "killed") else "")
        cells: list[RenderableType] = [Text(job.entry.id[:8], style="dim")]
        cells += [job.entry.arm or ""] if with_arms else []
        cells += [job.label, Text(doing, style=STYLES[job.state])]
        cells += [
            clock(job.seconds) if job.state != "waiting" else "",
            Text(result, overflow="ellipsis", no_wrap=True),
        ]
        made.add_row(*cells)
    hidden = len(watch.jobs) - made.row_count
    notes = [Text(f"... and {hidden} more", style="dim")] if hidden else []
    return Group(made, *notes, summary(watch))


def _fitting(jobs: Sequence[Seen], rows: int | None) -> list[Seen]:
    if rows is None or len(jobs) <= rows:
        return list(jobs)
    ranked = sorted(jobs, key=lambda job: IMPORTANCE.index(job.state))[: max(rows, 1)]
    kept = {job.entry.id for job in ranked}
    return [job for job in jobs if job.entry.id in kept]


def _error(job: Seen) -> str:
    return str(
        job.status.get("error") or ("the process ended without a word" if job.state == "killed" else "")
    )


@contextmanager
def watching(
    study: StudyFolder, line: Line, missing: Sequence[Entry], is_part: bool = False
) -> Iterator[None]:
    """Show the jobs of a line until the block ends: a live table on a terminal, else one sentence a change.

    Args:
        study: Where they lie.
        line: All of them.
        missing: Those that will run now.
        is_part: Whether the line has more to come, so that it needs no heading and leaves no table behind.
    """
    out = console()
    watch = Watch(study, line)
    watch.update()
    done = len(watch.jobs) - len(missing)
    before = f", {done} of them done before" if done else ""
    if not is_part:
        place = Text(str(near(study.path)), style="dim")
        out.print(f"{line.name}: {counted(len(watch.jobs))}{before}", place, soft_wrap=True)
    if not missing:
        yield
        return
    shown = _live(watch, out, is_part) if out.is_terminal else _told(watch, out)
    with shown:
        yield


@contextmanager
def _polling(step: Any) -> Iterator[None]:
    """Call ``step`` before the block, again and again beside it, and after it."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(POLL_SECONDS):
            try:
                step()
            except Exception:  # what is shown must not stop what runs
                logger.debug("the jobs cannot be shown", exc_info=True)

    thread = threading.Thread(target=repeat, daemon=True, name="study-monitor")
    step()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        step()
        step()  # what seems killed still seems so


@contextmanager
def _live(watch: Watch, out: Console, is_part: bool) -> Iterator[None]:
    with Live(console=out, auto_refresh=False, transient=is_part) as live:

        def step() -> None:
            for job in watch.update(patient=True):
                if job.state in ("failed", "killed"):
                    live.console.print(_sentence(watch, job))
            live.update(table(watch, max(out.height - OTHER_LINES, 3)), refresh=True)

        with _polling(step):
            yield


@contextmanager
def _told(watch: Watch, out: Console) -> Iterator[None]:
    def step() -> None:
        for job in watch.update(patient=True):
            out.print(_sentence(watch, job), soft_wrap=True)

    with _polling(step):
        yield


def _sentence(watch: Watch, job: Seen) -> Text:
    """``[3/24] done 1a2b3c4d dual 99 %: KL 0.000129 (12 s)``."""
    ended = sum(watch.counts[state] for state in ENDED)
    text = Text(f"[{ended}/{len(watch.jobs)}] ", style="dim")
    text.append(f"{job.state} ", style=STYLES[job.state]).append(f"{job.entry.id[:8]} ", style="dim")
    text.append(job.label)
    if job.state == "done":
        text.append(f": {job.headline} ({clock(job.seconds)})")
    elif job.state in ("failed", "killed", "interrupted"):
        text.append(f": {_error(job)[:ERROR_WIDTH]}", style=STYLES[job.state])
    left = watch.remaining()
    return text.append(f", about {clock(left)} left", style="dim") if left and job.state == "done" else text
