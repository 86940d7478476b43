"""``hydra/launcher=local_gpus`` and ``isolated``: the real command with a task that takes no time."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from conftest import Command, contents, ended

from dualscale_mamba.configuration import startup
from dualscale_mamba.errors import ConfigError

PROBED = ("-m", "debug=fast", "ops=reference", "device=cpu", "task._target_=probe.run")


def test_each_job_has_one_gpu_and_a_fresh_process(start: Command, tmp_path: Path) -> None:
    gpus = ("hydra/launcher=local_gpus", "hydra.launcher.gpus=[0,1]")
    # The first job ends last, so that the other slot must take all the others.
    code, _, err = ended(start(*PROBED, *gpus, "seed=17,1,2,3", "tags=[4]", CUDA_VISIBLE_DEVICES="4,GPU-6"))
    assert code == 0, err
    seen = contents(tmp_path, "seen.json")
    assert [job["seed"] for job in seen] == [17, 1, 2, 3]
    first, *others = [job["gpu"] for job in seen]
    assert (first, set(others)) == ("4", {"GPU-6"})
    assert len({job["pid"] for job in seen}) == 4
    assert [status["pid"] for status in contents(tmp_path, "status.json")] == [job["pid"] for job in seen]
    assert "Traceback" not in err


def test_killed_job_does_not_stop_the_others(start: Command, tmp_path: Path) -> None:
    code, out, _ = ended(start(*PROBED, "hydra/launcher=isolated", "seed=1,13,2"))
    assert code == 1
    states = contents(tmp_path, "status.json")
    assert [status["state"] for status in states] == ["done", "failed", "done"]
    assert "SIGKILL" in states[1]["error"]
    assert "SIGKILL" in out
    assert len(contents(tmp_path, "result.json")) == 2


def test_interrupted_study_leaves_no_process(start: Command, tmp_path: Path) -> None:
    process = start(*PROBED, "hydra/launcher=isolated", "seed=17,1", "tags=[99]")
    until = time.monotonic() + 60
    while not list(tmp_path.rglob("seen.json")):
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 130, err
    (status,) = contents(tmp_path, "status.json")
    assert status["state"] == "interrupted"
    assert not Path(f"/proc/{status['pid']}").exists()


def test_no_gpu_is_one_sentence(start: Command) -> None:
    code, _, err = ended(start(*PROBED, "hydra/launcher=local_gpus", "seed=1,2", CUDA_VISIBLE_DEVICES=""))
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert "hydra/launcher=isolated" in err
    assert "hydra/launcher=joblib" in err


@pytest.mark.parametrize(
    ("gpus", "visible", "names"),
    [
        ([0, 1], None, ["0", "1"]),
        ([1], "4,5", ["5"]),
        (["GPU-8"], "4,5", ["GPU-8"]),
        ([1, 0], "MIG-a, MIG-b", ["MIG-b", "MIG-a"]),
    ],
)
def test_numbers_count_the_visible_gpus(gpus: list[int | str], visible: str | None, names: list[str]) -> None:
    startup.register()
    from hydra_plugins.dualscale_mamba_launcher import chosen_gpus

    assert chosen_gpus(gpus, visible) == names


@pytest.mark.parametrize(("gpus", "visible"), [([2], "4,5"), ([-1], None), ([], None), ([0], "")])
def test_gpu_that_is_not_there_is_refused(gpus: list[int | str], visible: str | None) -> None:
    startup.register()
    from hydra_plugins.dualscale_mamba_launcher import chosen_gpus

    with pytest.raises(ConfigError, match=r"hydra\.launcher\.gpus"):
        chosen_gpus(gpus, visible)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"per_gpu": 0}, "per_gpu"), ({"processes": True}, "processes"), ({"processes": 1.5}, "")],
)
def test_number_of_slots_is_checked(settings: dict[str, int], key: str) -> None:
    startup.register()
    from hydra_plugins.dualscale_mamba_launcher import slots

    with pytest.raises(ConfigError, match=f"hydra.launcher.{key}"):
        slots(**{"gpus": [0], "per_gpu": 1, "processes": None, **settings})


def test_several_jobs_share_a_gpu_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    startup.register()
    from hydra_plugins.dualscale_mamba_launcher import VISIBLE, slots

    monkeypatch.delenv(VISIBLE, raising=False)
    assert [(s.name, s.environment[VISIBLE]) for s in slots([0, 1], 2, None)] == [
        ("gpu0", "0"), ("gpu1", "1"), ("gpu0", "0"), ("gpu1", "1"),
    ]  # fmt: skip
    assert [VISIBLE in s.environment for s in slots(None, 1, 2)] == [False, False]
