"""W&B never loses a run, never waits long, never stops a job."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from tracked import RESULT, settings

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.tracking.json import JsonTracker
from dualscale_mamba.tracking.wandb import WandbTracker


@pytest.fixture
def config() -> DictConfig:
    return OmegaConf.create(settings())


def logs(folder: Path) -> list[Path]:
    return list(folder.glob("wandb/offline-run-*/run-*.wandb"))


def run_record(folder: Path) -> Any:
    from wandb_log import finished

    return next(record.run for record in finished(logs(folder)[0]) if record.HasField("run"))


def test_offline_run_has_group_tags_and_type(tmp_path: Path, config: DictConfig) -> None:
    with WandbTracker().tracking(tmp_path, config, "abc") as run:
        run.log(RESULT, tmp_path)
    record = run_record(tmp_path)
    assert record.run_group == "study"
    assert set(record.tags) == {"treatment", "w8a8", "smoke"}
    assert record.job_type == "ptq"


def test_failed_run_is_finished_as_failed_and_disturbs_no_other(tmp_path: Path, config: DictConfig) -> None:
    from wandb_log import finished

    with pytest.raises(RuntimeError), WandbTracker().tracking(tmp_path / "first", config, "first"):
        raise RuntimeError("deliberate")
    with WandbTracker().tracking(tmp_path / "second", config, "second") as run:
        run.log(RESULT, tmp_path)
    first, second = run_record(tmp_path / "first"), run_record(tmp_path / "second")
    assert first.run_id != second.run_id
    codes = [r.exit.exit_code for r in finished(logs(tmp_path / "first")[0]) if r.HasField("exit")]
    assert codes == [1]


@pytest.mark.parametrize("key", [None, "0" * 40])
def test_unreachable_server_means_offline_with_one_warning(
    tmp_path: Path,
    config: DictConfig,
    key: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    import wandb

    wandb.teardown()
    began = time.monotonic()
    with (
        caplog.at_level(logging.WARNING),
        WandbTracker(mode="online", timeout=3).tracking(tmp_path, config, "abc") as run,
    ):
        run.log(RESULT, tmp_path)
    wandb.teardown()
    assert time.monotonic() - began < 20
    assert len(logs(tmp_path)) == 1
    warnings = [r for r in caplog.records if r.name.startswith("dualscale_mamba")]
    assert len(warnings) == 1
    assert "offline" in warnings[0].getMessage()


def test_mode_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"tracker\.mode=live"):
        WandbTracker(mode="live")


def test_json_tracker_writes_nothing_of_its_own(tmp_path: Path, config: DictConfig) -> None:
    with JsonTracker().tracking(tmp_path, config, "abc") as run:
        run.log(RESULT, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_client_that_does_not_start_stops_nothing(
    tmp_path: Path, config: DictConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    whole = wandb.init

    def broken(**settings: Any) -> Any:
        if settings["mode"] != "disabled":
            raise wandb.errors.CommError("the service did not start")
        return whole(**settings)

    monkeypatch.setattr(wandb, "init", broken)
    with WandbTracker().tracking(tmp_path, config, "abc") as run:
        run.log(RESULT, tmp_path)
    assert any("result.json has it all" in record.getMessage() for record in caplog.records)


def artifacts(folder: Path) -> dict[str, Any]:
    from wandb_log import finished

    found = [record.artifact for record in finished(logs(folder)[0]) if record.HasField("artifact")]
    return {artifact.type: artifact for artifact in found}


def test_runs_point_to_the_same_statistics_by_content(tmp_path: Path, config: DictConfig) -> None:
    names = []
    for number in range(2):
        folder = tmp_path / f"run{number}"
        statistics = tmp_path / f"cache{number}" / "key.safetensors"
        statistics.parent.mkdir()
        statistics.write_bytes(b"counts")
        with WandbTracker().tracking(folder, config, folder.name) as run:
            run.log({**RESULT, "artifacts": {"calibration": str(statistics)}}, folder)
        names.append(artifacts(folder)["calibration"].name)
    assert names[0] == names[1]
    assert names[0].startswith("calibration-")


def test_checkpoint_is_an_artifact_with_its_quantization(tmp_path: Path, config: DictConfig) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_bytes(b"{}")
    with WandbTracker().tracking(tmp_path, config, "abc") as run:
        run.log({**RESULT, "artifacts": {"checkpoint": str(checkpoint)}}, tmp_path)
    found = artifacts(tmp_path)["quantized-model"]
    assert found.name == "tiny-quantized"
    assert {entry.path for entry in found.manifest.contents} == {"config.json", "model.safetensors"}
    assert json.loads(found.metadata)["scale_mode"] == {"fine_codes": 160}


@pytest.mark.parametrize("gone", [True, False])
def test_large_and_missing_files_are_no_artifacts(tmp_path: Path, config: DictConfig, gone: bool) -> None:
    statistics = tmp_path / "key.safetensors"
    if not gone:
        statistics.write_bytes(b"x" * 2000)
    with WandbTracker(artifact_mb=0.001).tracking(tmp_path, config, "abc") as run:
        run.log({**RESULT, "artifacts": {"calibration": str(statistics)}}, tmp_path)
    assert "calibration" not in artifacts(tmp_path)
    record = run_record(tmp_path)
    assert record.run_id == "abc"


def test_size_of_artifacts_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"tracker\.artifact_mb=-1"):
        WandbTracker(artifact_mb=-1)
