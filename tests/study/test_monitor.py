"""What a user sees of a study while it runs."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dualscale_mamba.study import monitor
from dualscale_mamba.study.files import write_json
from dualscale_mamba.study.folder import Entry, Line, StudyFolder, line_id, locked, state_of
from dualscale_mamba.study.monitor import Watch, clock, table, watching

RESULT: dict[str, Any] = {
    "metrics": {"divergence/x/kl": {"value": 0.00123, "unit": "nats/token", "better": "lower"}}
}


def line(count: int) -> Line:
    entries = tuple(
        Entry(f"{number:012x}", number, "n", "baseline", None, (f"seed={number}",), {"scale_mode": "single"})
        for number in range(count)
    )
    return Line(line_id(entries), "study", ("run.py",), time.time(), "continue", entries)


def told(study: StudyFolder, number: int, state: str, **more: Any) -> None:
    status = {"state": state, "began": time.time(), "seconds": 2.0, **more}
    write_json(study.job(f"{number:012x}") / "status.json", status)
    if state == "done":
        write_json(study.job(f"{number:012x}") / "result.json", RESULT)


def text_of(rendered: Any, width: int = 120) -> str:
    out = Console(file=io.StringIO(), width=width)
    out.print(rendered)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_table_has_hash_arm_state_and_headline(tmp_path: Path) -> None:
    study, typed = StudyFolder(tmp_path), line(4)
    told(study, 0, "done")
    told(study, 1, "failed", error="RuntimeError: deliberate")
    told(study, 2, "running", stage="calibrate")  # and nobody holds its lock
    watch = Watch(study, typed)
    watch.update()
    shown = text_of(table(watch))
    assert [job.state for job in watch.jobs] == ["done", "failed", "killed", "waiting"]
    for part in (
        "00000000",
        "baseline",
        "KL 0.00123",
        "RuntimeError: deliberate",
        "without a word",
        "1 waiting",
    ):
        assert part in shown
    assert "single seed 3" in shown


def test_running_job_is_one_whose_lock_is_held(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    told(study, 0, "running", stage="evaluate/divergence")
    folder = study.job(f"{0:012x}")
    with locked(folder):
        assert state_of(folder) == "running"
    assert state_of(folder) == "killed"


def test_killed_is_believed_when_it_is_seen_twice(tmp_path: Path) -> None:
    """Between a process's end and the word of whoever started it, a job looks killed."""
    study, typed = StudyFolder(tmp_path), line(2)
    watch = Watch(study, typed)
    told(study, 0, "running")
    told(study, 1, "running")
    assert watch.update(patient=True) == []
    told(study, 1, "failed", error="RuntimeError: as its launcher says")
    assert {job.state for job in watch.update(patient=True)} == {"killed", "failed"}


def test_low_terminal_keeps_what_needs_attention(tmp_path: Path) -> None:
    study, typed = StudyFolder(tmp_path), line(30)
    for number in range(20):
        told(study, number, "done")
    told(study, 25, "failed", error="wrong")
    watch = Watch(study, typed)
    watch.update()
    shown = text_of(table(watch, rows=5), width=60)
    assert "wrong" in shown
    assert "and 25 more" in shown
    assert len(shown.splitlines()) < 12


def test_remaining_time_follows_the_jobs_that_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, typed = StudyFolder(tmp_path), line(5)
    watch = Watch(study, typed)
    told(study, 0, "done")
    monkeypatch.setattr("dualscale_mamba.study.folder.is_locked", lambda folder: True)
    told(study, 1, "running")
    watch.update()
    assert watch.remaining() == pytest.approx((3 + 0.5) * 2.0)


def test_every_change_is_told_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "POLL_SECONDS", 0.02)
    study, typed = StudyFolder(tmp_path), line(2)
    with watching(study, typed, typed.entries):
        told(study, 0, "done")
        time.sleep(0.2)
        told(study, 1, "failed", error="RuntimeError: at once")
    shown = capsys.readouterr().out
    assert "[1/2] done 00000000 single seed 0: KL 0.00123" in shown
    assert "[2/2] failed 00000000 single seed 1: RuntimeError: at once" in shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (75, "1:15"), (3725, "1:02:05")])
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
