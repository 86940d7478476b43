"""A study that is killed goes on where it was; what is done is never done again."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import SMALL, environment, line, partial_files, read, results, run, statuses

# 24 jobs on the embedded model.
GRID = (
    "-m", "model=mamba1_tiny", "precision=ssm_input", "evaluation=[divergence]", "profiling=[memory]",
    "evaluation.divergence.samples=2", "evaluation.divergence.length=48", "calibration.samples=2",
    "calibration.length=64", "tracker=json", "observer.percentile=99.0,99.5,99.9,99.95,99.99,100.0",
    "scale_mode=single,affine,dual,dual_symmetric",
)  # fmt: skip
KILLS = 3


def start(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def done(folder: Path) -> int:
    return len(list(folder.glob("outputs/*/*/jobs/*/result.json")))


@pytest.mark.slow
def test_killed_study_ends_with_the_results_of_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    uninterrupted = run(line(*GRID), whole)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    chance = random.Random(0)
    in_flight = 0
    for _ in range(KILLS):
        process = start(killed, line(*GRID))
        before = done(killed)
        wanted = min(before + chance.randint(1, 6), 23)
        while done(killed) < wanted and process.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.random())  # anywhere in the job, or between two
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        (study,) = (killed / "outputs" / "multirun").iterdir()
        in_flight += sum(status["state"] == "running" for status in statuses(study).values())
    last = run(line(*GRID), killed)
    assert last.returncode == 0, last.stderr
    (study,) = (killed / "outputs" / "multirun").iterdir()
    (reference,) = (whole / "outputs" / "multirun").iterdir()
    assert study.name == reference.name
    assert len(results(study)) == 24
    assert results(study) == results(reference)
    attempts = sum(status["attempt"] for status in statuses(study).values())
    assert 24 <= attempts <= 24 + KILLS
    assert attempts == 24 + in_flight
    assert not partial_files(study)
    assert (study / "comparison.csv").read_text().count("\n") == 25


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    finished = run(line("-m", *SMALL, "scale_mode=single,dual"), folder)
    assert finished.returncode == 0, finished.stderr
    (made,) = (folder / "outputs" / "multirun").iterdir()
    return folder, made


def test_same_line_again_runs_nothing(study: tuple[Path, Path]) -> None:
    folder, made = study
    before = {path: path.stat().st_mtime_ns for path in made.glob("jobs/*/result.json")}
    again = run(line("-m", *SMALL, "scale_mode=single,dual", "tags=[again]", "device=auto"), folder)
    assert again.returncode == 0, again.stderr
    assert "2 of them done before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in made.glob("jobs/*/result.json")} == before


def test_longer_line_in_the_same_folder_runs_what_is_new(study: tuple[Path, Path]) -> None:
    folder, made = study
    longer = ("-m", *SMALL, "scale_mode=single,dual,affine", f"hydra.sweep.dir={made}")
    finished = run(line(*longer), folder)
    assert finished.returncode == 0, finished.stderr
    assert "3 jobs, 2 of them done before" in finished.stdout
    assert len(list(made.glob("lines/*.json"))) == 2
    assert {status["attempt"] for status in statuses(made).values()} == {1}


def test_two_lines_at_once_share_their_jobs(tmp_path: Path) -> None:
    arguments = line("-m", *SMALL, "seed=0,1,2,3", f"hydra.sweep.dir={tmp_path / 'shared'}")
    both = [start(tmp_path, arguments) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    found = statuses(tmp_path / "shared")
    assert len(found) == 4
    assert {status["attempt"] for status in found.values()} == {1}


def test_interrupted_study_says_so_and_compares_what_is_done(tmp_path: Path) -> None:
    process = subprocess.Popen(
        line("-m", *SMALL, "seed=0,1,2,3,4,5,6,7"), cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while done(tmp_path) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    (made,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert (made / "comparison.md").is_file()
    assert not partial_files(made)
    assert set(status["state"] for status in statuses(made).values()) <= {"done", "interrupted"}


def test_jobs_of_the_list_are_those_of_the_study(tmp_path: Path) -> None:
    """A scheduler runs the printed lines; the study then finds its results."""
    import shlex
    import sys

    overrides = [*SMALL, "scale_mode=single,dual_symmetric", "quantize.sites=[ssm_input,B]"]
    listing = run([sys.executable, "-m", "dualscale_mamba", "jobs", *overrides], tmp_path)
    assert listing.returncode == 0, listing.stderr
    rows = listing.stdout.splitlines()
    assert len(rows) == 2
    for row in rows:
        finished = run(line(*shlex.split(row)), tmp_path)
        assert finished.returncode == 0, finished.stderr
    again = run([sys.executable, "-m", "dualscale_mamba", "jobs", *overrides], tmp_path)
    assert again.stdout == ""
    after = run(line("-m", *overrides), tmp_path)
    assert "2 jobs, 2 of them done before" in after.stdout
    (made,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert all(read(path)["id"] == path.parent.name for path in made.glob("jobs/*/result.json"))
