"""Jobs as processes, with small programs in the place of runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualscale_mamba.study import processes
from dualscale_mamba.study.files import read_json
from dualscale_mamba.study.processes import Job, Slot, run_all

ROOT = Path(processes.__file__).resolve().parents[2]
# Starts two jobs that would sleep for a minute.
PARENT = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup these tests inherit that it is ignored
from pathlib import Path
from dualscale_mamba.study.processes import Job, Slot, run_all
sleep = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
jobs = [Job(name, sleep, Path(sys.argv[1]) / name) for name in "ab"]
run_all(jobs, [Slot("0", {}), Slot("1", {})])
"""


def job(folder: Path, name: str, program: str) -> Job:
    return Job(name, (sys.executable, "-c", program), folder / name, {"name": name, "number": 7})


def slots(count: int) -> list[Slot]:
    return [Slot(f"slot{i}", {**os.environ, "PLACE": str(i), "PYTHONUNBUFFERED": "1"}) for i in range(count)]


def status(folder: Path) -> dict[str, Any]:
    return read_json(folder / "status.json") or {}


def eventually(holds: Callable[[], Any]) -> Any:
    until = time.monotonic() + 30
    while not (found := holds()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


def exists(pid: int) -> bool:
    """Whether a process runs; a zombie, which nobody here waits for, does not."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


def test_ends_are_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    waits = "import time, pathlib\nwhile not pathlib.Path(r'%s').exists(): time.sleep(0.01)" % (
        tmp_path / "go"
    )
    jobs = [job(tmp_path, "slow", waits), job(tmp_path, "quick", f"open(r'{tmp_path / 'go'}', 'w')")]
    ends = run_all(jobs, slots(2))
    assert [end.job.name for end in ends] == ["slow", "quick"]
    assert [end.error for end in ends] == ["", ""]
    assert not (tmp_path / "slow" / "status.json").exists()


def test_output_is_kept_and_shown_line_by_line(tmp_path: Path) -> None:
    shown: list[tuple[str, str, str]] = []
    program = "import sys; print('one'); print('two', file=sys.stderr); sys.stdout.write('no end of line')"
    run_all([job(tmp_path, "a", program)], slots(1), lambda *line: shown.append(line))
    assert shown == [("slot0", "a", text) for text in ("one", "two", "no end of line")]
    assert (tmp_path / "a" / "output.log").read_text() == "one\ntwo\nno end of line"


def test_killed_process_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    kill = "import os, signal; print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    ends = run_all([job(tmp_path, "a", kill), job(tmp_path, "b", "pass")], slots(1))
    assert ends[0].returncode == -signal.SIGKILL
    assert "SIGKILL" in ends[0].error
    assert "last words" in ends[0].error
    assert ends[1].error == ""
    left = status(tmp_path / "a")
    assert (left["state"], left["name"], left["number"]) == ("failed", "a", 7)
    assert "SIGKILL" in left["error"]
    assert "last words" in left["traceback"]


def test_status_that_the_process_wrote_itself_stays(tmp_path: Path) -> None:
    written = {"state": "failed", "error": "ConfigError: its own words"}
    program = f"open(r'{tmp_path / 'a' / 'status.json'}', 'w').write('{json.dumps(written)}'); exit(1)"
    (end,) = run_all([job(tmp_path, "a", program)], slots(1))
    assert end.error == "ConfigError: its own words"
    assert status(tmp_path / "a") == written


def test_status_of_an_earlier_attempt_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text('{"state": "failed", "error": "old"}')
    (end,) = run_all([job(tmp_path, "a", "exit(3)")], slots(1))
    assert "exit status 3" in end.error
    assert "exit status 3" in status(tmp_path / "a")["error"]


def test_running_status_of_a_killed_process_becomes_failed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "status.json"
    program = (
        f"open(r'{path}', 'w').write('{{\"state\": \"running\", \"attempt\": 2}}'); import os; os.abort()"
    )
    run_all([job(tmp_path, "a", program)], slots(1))
    left = status(tmp_path / "a")
    assert (left["state"], left["attempt"]) == ("failed", 2)
    assert "SIGABRT" in left["error"]


def test_what_a_killed_process_had_started_ends_too(tmp_path: Path) -> None:
    program = (
        "import os, signal, subprocess\n"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run_all([job(tmp_path, "a", program)], slots(1))
    grandchild = int((tmp_path / "a" / "output.log").read_text())
    eventually(lambda: not exists(grandchild))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends children with their parent")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_no_process_outlives_its_parent(tmp_path: Path, by: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as parent:
        logs = [tmp_path / name / "output.log" for name in "ab"]
        pids = eventually(lambda: all(log.exists() and log.read_text() for log in logs)) and [
            int(log.read_text().split()[0]) for log in logs
        ]
        assert all(exists(pid) for pid in pids)
        parent.send_signal(by)
        eventually(lambda: not any(exists(pid) for pid in pids))
        parent.wait(timeout=30)
    if by == signal.SIGINT:
        assert [status(tmp_path / name)["state"] for name in "ab"] == ["interrupted"] * 2
