"""W&B runs made from files: each job once, whatever is called again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tracked import METRICS, RESULT
from wandb_log import configs_and_summary, finished

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.tracking.sync import sync

IDS = ("0123456789aa", "0123456789bb")


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two jobs that are done and one that failed."""
    jobs = tmp_path / "study" / "jobs"
    for number, job in enumerate(IDS):
        metrics = {**METRICS, "perplexity/x/nll": {**METRICS["perplexity/x/nll"], "value": 3.0 + number}}
        write(jobs / job, "status.json", {"id": job, "state": "done"})
        write(jobs / job, "result.json", {**RESULT, "id": job, "metrics": metrics})
        (jobs / job / "items_perplexity.jsonl").write_text('{"window": 0}\n')
    write(
        jobs / "0123456789cc", "status.json", {"id": "0123456789cc", "state": "failed", "error": "no memory"}
    )
    return tmp_path / "study"


def runs(study: Path) -> list[Path]:
    return sorted(study.glob("wandb/offline-run-*/run-*.wandb"))


def test_each_finished_job_becomes_one_run(study: Path) -> None:
    outcomes = dict(sync(study, "offline"))
    assert outcomes == {IDS[0]: "sent", IDS[1]: "sent", "0123456789cc": "not sent: failed (no memory)"}
    found = {path.stem.removeprefix("run-"): path for path in runs(study)}
    assert set(found) == set(IDS)
    for number, job in enumerate(IDS):
        config, summary = configs_and_summary(found[job])
        assert summary["perplexity/x/nll"] == 3.0 + number
        assert config["observer"]["percentile"] == 99.9
        assert (config["git_sha"], config["kernel_hash"], config["hardware"]) == ("abc", "k1", "cpu")
        assert config["choices"] == {"scale_mode": "dual"}
    record = next(record.run for record in finished(found[IDS[0]]) if record.HasField("run"))
    assert (record.project, record.run_group) == ("demo", "study")


def test_second_call_sends_nothing_and_a_changed_result_goes_to_the_same_id(study: Path) -> None:
    sync(study, "offline")
    assert [outcome for _, outcome in sync(study, "offline")][:2] == ["up to date"] * 2
    assert len(runs(study)) == 2
    path = study / "jobs" / IDS[0] / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": {"evaluate": 1.0}}))
    assert [outcome for _, outcome in sync(study, "offline")][:2] == ["sent", "up to date"]
    assert {path.stem for path in runs(study)} == {f"run-{job}" for job in IDS}
    assert [outcome for _, outcome in sync(study, "offline", force=True)][:2] == ["sent", "sent"]


def test_other_project_is_another_place(study: Path) -> None:
    single = study / "jobs" / IDS[0]
    assert sync(single, "offline") == [(IDS[0], "sent")]
    assert sync(single, "offline", project="other", entity="team") == [(IDS[0], "sent")]
    marker = json.loads((single / "synced.json").read_text())
    assert (marker["project"], marker["entity"], marker["id"]) == ("other", "team", IDS[0])


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No key, and a server that does not answer."""
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    return monkeypatch


def test_online_without_a_key_is_one_sentence(study: Path, nobody: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"mode=online: allowed is offline.*wandb login"):
        sync(study)


def test_server_that_does_not_answer_leaves_no_marker(study: Path, nobody: pytest.MonkeyPatch) -> None:
    import wandb

    nobody.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    ((_, outcome),) = sync(study / "jobs" / IDS[0])
    wandb.teardown()
    assert outcome.startswith("not sent: ")
    assert not list(study.rglob("synced.json"))


def test_folder_without_jobs_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"folder=.*status\.json"):
        sync(tmp_path, "offline")
