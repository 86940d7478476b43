"""Jobs are found in either layout, whatever became of them and of their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import made_run, windows

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.report.collect import collect, line_of
from dualscale_mamba.report.spreadsheet import spreadsheet
from dualscale_mamba.study.folder import Entry, Line, StudyFolder, locked

KL = [0.1, 0.2, 0.3]


def line(study: StudyFolder, name: str, began: float, *entries: Entry) -> Line:
    made = Line(name, name, ("run.py", "-m"), began, "continue", entries)
    study.write(made)
    return made


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """Two lines that share the job ``b``, and a job of neither."""
    found = StudyFolder(tmp_path)
    for number, name in enumerate(["a", "b", "stray"]):
        made_run(found.job(name), "single", arm="own", number=number, items={"divergence": windows(KL)})
    line(found, "first", 1.0, Entry("a", 0, "A", "baseline"), Entry("b", 1, "B", "treatment"))
    choices = {"scale_mode": "dual"}
    waiting = Entry("c", 1, "C", "treatment", overrides=("scale_mode=dual",), choices=choices)
    line(
        found, "second", 2.0, Entry("b", 0, "B again", "baseline", choices={"scale_mode": "single"}), waiting
    )
    return found


def test_the_latest_line_is_taken_with_what_it_calls_its_jobs(study: StudyFolder) -> None:
    first, second = collect(study.path)
    assert (first.id, first.arm, first.state, first.is_done) == ("b", "baseline", "done", True)
    assert (second.id, second.state, second.label, second.arm) == ("c", "waiting", "dual", "treatment")
    assert second.error == "it has not begun"
    assert second.number == 1


def test_a_line_is_named_by_the_beginning_of_its_id(study: StudyFolder) -> None:
    assert [job.arm for job in collect(study.path, "fir")] == ["baseline", "treatment"]
    assert getattr(line_of(study.path), "id", None) == "second"
    with pytest.raises(ConfigError, match="line=third: allowed is the first characters of one line"):
        collect(study.path, "third")


def test_everything_is_every_job_by_its_own_account(study: StudyFolder) -> None:
    assert [(job.id, job.arm) for job in collect(study.path, everything=True)] == [
        ("a", "own"), ("b", "own"), ("stray", "own")
    ]  # fmt: skip
    assert line_of(study.path, everything=True) is None


def test_killed_is_what_says_running_and_holds_no_lock(study: StudyFolder) -> None:
    folder = study.job("c")
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps({"state": "running"}))
    with locked(folder):
        assert collect(study.path)[1].state == "running"
    killed = collect(study.path)[1]
    assert (killed.state, killed.error) == ("killed", "its process ended without a word")


@pytest.mark.parametrize("name", ["status.json", "result.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', '{"metrics": 3, "config": 1, "choices": 2}'])
def test_damaged_files_stop_nothing(study: StudyFolder, name: str, content: str) -> None:
    (study.job("b") / name).write_text(content)
    assert len(collect(study.path)) == 2
    for job in collect(study.path, everything=True):
        assert job.metrics or job.id == "b"


@pytest.mark.parametrize("content", ["{", "{}", '{"entries": [{"id": 1}], "command": []}', '{"entries": 3}'])
def test_a_damaged_line_costs_only_its_names(study: StudyFolder, content: str) -> None:
    (study.path / "lines" / "second.json").write_text(content)
    assert len(collect(study.path)) in (2, 3)


def test_single_runs_are_found_below_any_folder(tmp_path: Path) -> None:
    made_run(tmp_path / "x" / "2", "single", number=0)
    made_run(tmp_path / "y", "dual", number=0)
    assert [job.label for job in collect(tmp_path)] == ["dual", "single"]
    assert collect(tmp_path / "none") == []


def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = made_run(tmp_path, "single", metrics={"good": 1.0})
    result = json.loads((folder / "result.json").read_text())
    result["metrics"] |= {"bad": {"value": None}, "worse": 3, "nan": {"value": "nan"}}
    (folder / "result.json").write_text(json.dumps(result))
    (job,) = collect(tmp_path)
    assert sorted(job.metrics) == ["good", "nan"]


def test_choices_of_several_files_are_told_as_they_are_typed(tmp_path: Path) -> None:
    for number, chosen in enumerate((["perplexity"], ["perplexity", "divergence"])):
        typed = [f"evaluation=[{','.join(chosen)}]"]
        made_run(tmp_path / str(number), number=number, choices={"evaluation": chosen}, overrides=typed)
    jobs = collect(tmp_path)
    assert [job.settings["evaluation"] for job in jobs] == [["perplexity"], ["perplexity", "divergence"]]
    assert [job.label for job in jobs] == [
        "single evaluation perplexity",
        "single evaluation perplexity,divergence",
    ]
    assert "perplexity,divergence" in spreadsheet(jobs)
