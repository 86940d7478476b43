"""The search: spaces, proposals that survive a kill, answers without a run, and what nothing beats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dualscale_mamba.configuration import startup
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.pareto import Found, show_front, write_front
from dualscale_mamba.study.exploration import narrowed
from dualscale_mamba.study.files import read_json
from dualscale_mamba.study.folder import StudyFolder
from dualscale_mamba.study.search import Search, front
from dualscale_mamba.study.space import Dimension, SearchSpace, Settings

pytest.importorskip("optuna")

ROOT = Path(__file__).resolve().parents[2]
SEARCHES = [path for path in (ROOT / "sweeps").glob("*.yaml") if "  search:\n" in path.read_text()]
SPACE = {
    "scale_mode": "single,dual",
    "observer.percentile": "interval(97,100)",
    "scale_mode.fine_codes": "range(96,240,16)",
}
TWO = {"objectives": ["kl", "speed"], "trials": 12, "parallel": 2, "seed": 3, "space": SPACE}


def answered(overrides: list[str], folder: Path, metrics: dict[str, Any] | None = None) -> Path:
    """The folder of a job that has measured something that follows from its overrides."""
    values = dict(override.split("=") for override in overrides)
    number = float(values.get("observer.percentile", 99.0)) - 97.0 + ("dual" in overrides[0])
    speed = {"value": 10.0 - number, "unit": "1/s", "better": "higher"}
    found = {"kl": {"value": number, "unit": "nats", "better": "lower"}, "speed": speed, **(metrics or {})}
    job = folder / "jobs" / str(abs(hash(tuple(overrides))))
    job.mkdir(parents=True, exist_ok=True)
    (job / "result.json").write_text(json.dumps({"metrics": found}))
    return job


def proposals(settings: dict[str, Any], folder: Path, stop_after: int | None = None) -> list[list[str]]:
    """Run a search to its end, or leave it with open proposals after so many."""
    search = Search.open(settings, folder)
    found: list[list[str]] = []
    try:
        while not search.finished:
            batch = search.next_batch()
            found += batch
            if stop_after is not None and len(found) >= stop_after:
                return found
            search.report([(overrides, answered(overrides, folder)) for overrides in batch])
    finally:
        search.close()
    return found


def test_space_reads_hydras_notation() -> None:
    space = SearchSpace.parse(
        {
            "scale_mode": "single,dual", "quantize.sites": "choice([x],[x,B,C])", "a": "interval(0.5,1)",
            "b": "range(96,240,16)", "c": "tag(log,interval(1e-4,1))", "d": "int(interval(1,9))", "e": ["1", "2"],
            "f": "range(0.5,1,0.1)",
        }
    )  # fmt: skip
    assert space.dimensions == (
        Dimension("scale_mode", ("single", "dual")),
        Dimension("quantize.sites", ("[x]", "[x,B,C]")),
        Dimension("a", None, 0.5, 1.0),
        Dimension("b", None, 96, 224, 16, True),
        Dimension("c", None, 1e-4, 1.0, None, False, True),
        Dimension("d", None, 1, 9, 1, True),
        Dimension("e", ("1", "2")),
        Dimension("f", None, 0.5, 0.9, 0.1),
    )
    params = {
        "scale_mode": "dual",
        "quantize.sites": "[x,B,C]",
        "a": 0.123456789,
        "b": 112,
        "c": 3e-5,
        "d": 2,
        "e": "1",
    }
    assert space.overrides({**params, "f": 0.30000000000000004}) == [
        "scale_mode=dual", "quantize.sites=[x,B,C]", "a=0.123457", "b=112", "c=3e-05", "d=2", "e=1", "f=0.3",
    ]  # fmt: skip
    assert len(space.distributions()) == 8


@pytest.mark.parametrize(
    "text",
    [
        "dual",
        "",
        "a,a",
        "interval(2,1)",
        "interval(1,1)",
        "range(3,3)",
        "tag(log,interval(0,1))",
        "a,(",
        "glob(*)",
    ],
)
def test_key_that_cannot_be_searched_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.search\.space\.scale_mode="):
        Dimension.parse("scale_mode", text)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"trials": 0}, "trials"),
        ({"parallel": True}, "parallel"),
        ({"seed": 1.5}, "seed"),
        ({"objectives": []}, "objectives"),
        ({"objectives": {"kl": "minimize"}}, "objectives.kl"),
        ({"space": {}}, "space"),
        ({"trial": 5}, "trial"),
    ],
)
def test_settings_are_checked(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"hydra\.sweeper\.search\.{key}="):
        Search.open({**TWO, **change}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_search_ends_after_its_trials_and_is_the_same_again(tmp_path: Path) -> None:
    first = proposals(TWO, tmp_path / "one")
    assert 2 < len(first) <= 12
    assert proposals(TWO, tmp_path / "two") == first
    assert proposals({**TWO, "seed": 4}, tmp_path / "three") != first
    assert proposals(TWO, tmp_path / "one") == []
    search = Search.open({**TWO, "trials": 14}, tmp_path / "one")
    assert not search.finished
    search.close()


def test_values_keep_their_units_and_losses_their_direction(tmp_path: Path) -> None:
    proposals(TWO, tmp_path)
    search = Search.open(TWO, tmp_path)
    for trial in search.trials():
        assert trial.losses == (trial.values[0], -trial.values[1])
        assert (tmp_path / "jobs" / trial.job / "result.json").exists()


def test_open_proposals_come_first_after_a_break(tmp_path: Path) -> None:
    whole = proposals(TWO, tmp_path / "whole")
    begun = proposals(TWO, tmp_path / "broken", stop_after=6)
    assert begun == whole[:6]
    assert begun[4:] + proposals(TWO, tmp_path / "broken")[2:] == whole[4:]
    assert proposals(TWO, tmp_path / "broken") == []


def test_killed_process_loses_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nsys.path.append(sys.argv[1])\n"
        "from test_search import TWO, Search, answered\n"
        "search = Search.open(TWO, Path(sys.argv[2]))\n"
        "for _ in range(2):\n"
        "    batch = search.next_batch()\n"
        "    search.report([(one, answered(one, Path(sys.argv[2]))) for one in batch])\n"
        "print(search.next_batch(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = proposals(TWO, tmp_path / "whole")
    assert str(whole[4:6]) == done.stdout.strip()
    assert proposals(TWO, tmp_path / "killed") == whole[4:]


def test_equal_proposals_run_once(tmp_path: Path) -> None:
    small = {"objectives": ["kl"], "trials": 30, "parallel": 4, "seed": 0, "space": {"a": "1,2", "b": "x,y"}}
    ran = proposals(small, tmp_path)
    assert sorted(ran) == [[f"a={a}", f"b={b}"] for a in "12" for b in "xy"]
    search = Search.open(small, tmp_path)
    assert search.finished
    assert len(search.trials()) == 4


def test_failed_trials_are_answered_and_left_out(tmp_path: Path) -> None:
    search = Search.open({**TWO, "trials": 4}, tmp_path)
    first, second = search.next_batch()
    nan = {"kl": {"value": "nan", "unit": "nats", "better": "lower"}}
    search.report([(first, None), (second, answered(second, tmp_path, nan))])
    assert search.trials() == []
    batch = search.next_batch()
    assert batch
    assert not {tuple(first), tuple(second)} & {tuple(one) for one in batch}
    search.report([(one, answered(one, tmp_path)) for one in batch])
    assert search.finished
    assert [list(trial.overrides) for trial in search.trials()] == batch


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        (["ppl"], "ppl: allowed is one of kl, none, speed"),
        (["none"], "none: allowed is a metric with a direction"),
    ],
)
def test_objective_that_no_result_has_is_named(tmp_path: Path, objectives: list[str], said: str) -> None:
    search = Search.open({**TWO, "objectives": objectives, "parallel": 1}, tmp_path)
    (overrides,) = search.next_batch()
    nothing = {"none": {"value": 1.0, "unit": "", "better": ""}}
    with pytest.raises(ConfigError, match=said):
        search.report([(overrides, answered(overrides, tmp_path, nothing))])


def test_direction_may_be_given(tmp_path: Path) -> None:
    settings = {**TWO, "objectives": {"kl": "higher"}}
    proposals(settings, tmp_path)
    trials = Search.open(settings, tmp_path).trials()
    assert all(trial.losses == (-trial.values[0],) for trial in trials)


def test_two_processes_do_not_search_in_one_folder(tmp_path: Path) -> None:
    search = Search.open(TWO, tmp_path)
    with pytest.raises(ConfigError, match="no other process"):
        Search.open(TWO, tmp_path)
    search.close()
    Search.open(TWO, tmp_path).close()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), max_size=12))
def test_front_is_what_nothing_beats(points: list[tuple[int, ...]]) -> None:
    def beaten(point: tuple[int, ...]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points
        )

    assert front(points) == [place for place, point in enumerate(points) if not beaten(point)]


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_stored_search_has_settings_and_jobs_that_can_run(path: Path) -> None:
    startup.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(startup.CONF), version_base="1.3"):
        stored = compose("config", [f"sweeps={path.stem}"], return_hydra_config=True).hydra.sweeper.search
        settings = Settings.of(OmegaConf.to_container(stored, resolve=True))
        for dimension in settings.space.dimensions:
            for value in dimension.texts or (dimension.low, dimension.high):
                config = compose("config", [f"sweeps={path.stem}", dimension.override(value)])
                assert config.group == path.stem


def test_typed_values_win_over_the_space() -> None:
    typed = OverridesParser.create().parse_overrides(
        ["sweeps=search", "scale_mode=dual", "observer.percentile=99,100", "+new=interval(0,1)"]
    )
    fixed, settings = narrowed({"trials": 3, "space": SPACE}, typed)
    assert fixed == ["sweeps=search", "scale_mode=dual"]
    assert settings["trials"] == 3
    codes = SPACE["scale_mode.fine_codes"]
    assert settings["space"] == {
        "observer.percentile": "99,100", "scale_mode.fine_codes": codes, "+new": "interval(0,1)",
    }  # fmt: skip


@pytest.mark.slow
def test_search_runs_its_jobs_and_goes_on(tmp_path: Path) -> None:
    task = "import json\nfrom pathlib import Path\nfrom dualscale_mamba.tasks.record import RunFolder\n"
    task += "def run(config):\n"
    task += "    if config.observer.percentile == 99.5: raise ValueError('deliberate')\n"
    task += "    loss = abs(config.observer.percentile - 99.0)\n"
    task += "    metrics = {'kl': {'value': loss, 'unit': 'nats', 'better': 'lower'},\n"
    task += "               'tokens': {'value': loss * config.seed, 'unit': '1/s', 'better': 'higher'}}\n"
    task += "    RunFolder.of(config).write_result({'metrics': metrics, 'environment': {'command': ['run.py']}})\n"
    (tmp_path / "probe.py").write_text(task)
    arguments = ["-m", "sweeps=search", "debug=fast", "ops=reference", "task._target_=probe.run"]
    arguments += ["precision=w8a8", "granularity=per_tensor", "scale_mode=dual", "seed=1,2,3"]
    arguments += [
        "observer.percentile=98.0,98.5,99.0,99.5,99.75",
        "hydra.sweeper.search.objectives=[kl,tokens]",
    ]
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def typed(trials: int) -> str:
        line = [*command, f"hydra.sweeper.search.trials={trials}"]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    folder = tmp_path / "outputs" / "search"
    assert "Beaten by none of" in typed(4)
    first = {path.name for path in (folder / "jobs").iterdir()}
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    typed(8)
    states = {path.parent.name: read_json(path) or {} for path in folder.glob("jobs/*/status.json")}
    assert first < set(states)
    assert {status["attempt"] for status in states.values()} == {1}
    assert {status["state"] for status in states.values()} == {"done", "failed"}
    (line,) = StudyFolder(folder).lines()
    assert {entry.id for entry in line.entries} >= {n for n, s in states.items() if s["state"] == "done"}


def test_front_of_results_is_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job(number: int, mode: str, kl: float, speed: float) -> Job:
        metrics = {
            "kl": {"value": kl, "unit": "nats", "better": "lower"},
            "speed": {"value": speed, "unit": "1/s", "better": "higher"},
        }
        status = {"state": "done", "choices": {"scale_mode": mode}, "number": number, "overrides": []}
        return Job(tmp_path / mode, status, {"metrics": metrics})

    jobs = [job(0, "dual", 1.0, 5.0), job(1, "single", 2.0, 5.0), job(2, "affine", 3.0, 9.0)]
    jobs.append(Job(tmp_path / "broken", {"state": "failed"}))
    found = Found.of(jobs, {"kl": None, "speed": None})
    assert [found.jobs[place].scale_mode for place in found.ranked()] == ["dual", "affine"]
    assert [o.better for o in found.objectives] == ["lower", "higher"]
    assert Found.of(jobs, {"kl": None, "speed": "lower"}).best == (0,)
    assert Found.of(jobs[3:], {"kl": None}).jobs == ()
    show_front(found)
    told = capsys.readouterr().out
    assert "Beaten by none of 3 settings" in told
    assert "single" not in told
    for wanted in ({"kl": None}, {"kl": None, "speed": None}):
        write_front(tmp_path / "pareto.png", Found.of(jobs, wanted), "title")
        assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
