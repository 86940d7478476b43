"""Whatever becomes of one job, the others finish, it is named, and nothing corrupt remains."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMALL, line, partial_files, results, run, statuses

FAULTY = (
    *SMALL,
    "task._target_=faults.run",
    "tracker=wandb",
    "tracker.mode=online",
    "tracker.timeout=2",
    "seed=0,1,2,3,4",
)
UNREACHABLE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
FULL = 3  # the seed of the job whose disk is full


def can_mount() -> bool:
    probe = ("unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    return (
        shutil.which("unshare") is not None
        and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture(scope="module")
def faulty(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str], list[str]]:
    """Five jobs with W&B online and out of reach: a good one, a defect, no memory, a full disk, a good one."""
    if not can_mount():
        pytest.skip("a disk of its own for one job needs `unshare -rm mount`, which this machine refuses")
    folder = tmp_path_factory.mktemp("faulty")
    listing = run([sys.executable, "-m", "dualscale_mamba", "jobs", *FAULTY], folder)
    assert listing.returncode == 0, listing.stderr
    places = [row.rpartition("hydra.run.dir=")[2] for row in listing.stdout.splitlines()]
    Path(places[FULL]).mkdir(parents=True)
    small_disk = f'mount -t tmpfs -o size=28k tmpfs {places[FULL]} && exec "$@"'
    done = run(
        ["unshare", "-rm", "bash", "-c", small_disk, "bash", *line("-m", *FAULTY)], folder, **UNREACHABLE
    )
    return Path(places[0]).parents[1], done, [Path(place).name for place in places]


def test_the_others_finish(faulty: tuple[Path, subprocess.CompletedProcess[str], list[str]]) -> None:
    study, done, ids = faulty
    assert done.returncode == 1
    assert set(results(study)) == {ids[0], ids[4]}, done.stdout + done.stderr


def test_each_failure_is_named_at_once_and_kept(
    faulty: tuple[Path, subprocess.CompletedProcess[str], list[str]],
) -> None:
    study, done, ids = faulty
    found = statuses(study)
    assert "RuntimeError: deliberate" in found[ids[1]]["error"]
    assert "faults.py" in found[ids[1]]["traceback"]
    assert "MemoryError" in found[ids[2]]["error"]
    before_the_table, _, _ = done.stdout.partition("of 5 jobs have no result")
    for number in (1, 2, 3):
        assert f"failed {ids[number][:8]}" in before_the_table, done.stdout
    assert "No space left on device" in before_the_table
    assert done.stdout.index(f"failed {ids[1][:8]}") < done.stdout.index(f"running {ids[4][:8]}")


def test_nothing_corrupt_remains_and_the_line_goes_on(
    faulty: tuple[Path, subprocess.CompletedProcess[str], list[str]],
) -> None:
    study, _, ids = faulty
    assert not partial_files(study)
    again = run(line("-m", *FAULTY), study.parents[2], **UNREACHABLE)
    assert again.returncode == 1
    assert set(results(study)) == {ids[0], ids[3], ids[4]}  # the disk has room again
    assert statuses(study)[ids[0]]["attempt"] == 1


def test_unreachable_server_leaves_an_offline_run(
    faulty: tuple[Path, subprocess.CompletedProcess[str], list[str]],
) -> None:
    study, done, ids = faulty
    assert list((study / "jobs" / ids[0]).glob("wandb/offline-run-*/run-*.wandb"))
    assert "offline" in done.stdout + done.stderr


def test_stop_leaves_the_rest_for_later(tmp_path: Path) -> None:
    stopping = ("-m", *SMALL, "task._target_=faults.run", "seed=0,1,3,4", "on_error=stop")
    done = run(line(*stopping), tmp_path)
    assert done.returncode == 1
    (study,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert sorted(status["state"] for status in statuses(study).values()) == ["done", "failed"]
    again = run(line(*stopping, "on_error=continue"), tmp_path)
    assert again.returncode == 1
    assert len(results(study)) == 3
