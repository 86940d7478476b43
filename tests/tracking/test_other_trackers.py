"""CSV, TensorBoard and MLflow keep what a run found, once, and stop no job."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from tracked import RESULT, settings

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.tracking.base import Tracker
from dualscale_mamba.tracking.csv import CsvTracker, read_rows
from dualscale_mamba.tracking.mlflow import MlflowTracker
from dualscale_mamba.tracking.tensorboard import TensorBoardTracker

NLL = "perplexity/x/nll"
needs_tensorboard = pytest.mark.skipif(
    not importlib.util.find_spec("tensorboard"), reason="needs tensorboard"
)
needs_mlflow = pytest.mark.skipif(
    not (importlib.util.find_spec("mlflow") and importlib.util.find_spec("sqlalchemy")),
    reason="needs mlflow and sqlalchemy",
)


@pytest.fixture
def config() -> DictConfig:
    return OmegaConf.create(settings())


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a finished job of a study, with a picture and items."""
    from PIL import Image

    folder = tmp_path / "study" / "jobs" / "0123456789ab"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 6), (255, 0, 0)).save(folder / "figure.png")
    (folder / "items_perplexity.jsonl").write_text('{"window": 0}\n')
    return folder


def track(tracker: Tracker, config: DictConfig, folder: Path, result: dict[str, Any] | None = None) -> None:
    with tracker.tracking(folder, config, folder.name) as run:
        run.log(result or RESULT, folder)


def test_table_widens_and_keeps_one_row_a_job(job: Path, config: DictConfig) -> None:
    other = {**RESULT, "metrics": {"latency/ttft": {"value": 2.0, "unit": "ms", "better": "lower"}}}
    track(CsvTracker(), config, job)
    track(CsvTracker(), config, job.with_name("other"), other)
    track(CsvTracker(), config, job)
    rows = {row["id"]: row for row in read_rows(job.parents[1] / "runs.csv")}
    assert len(read_rows(job.parents[1] / "runs.csv")) == 2
    assert float(rows["0123456789ab"][NLL]) == 3.5
    assert rows["0123456789ab"]["latency/ttft"] == ""
    assert float(rows["other"]["latency/ttft"]) == 2.0
    assert rows["other"]["observer.percentile"] == "99.9"


def test_table_is_named_without_a_folder() -> None:
    with pytest.raises(ConfigError, match=r"tracker\.file=a/b\.csv"):
        CsvTracker("a/b.csv")


@needs_tensorboard
def test_events_are_there_once(job: Path, config: DictConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        track(TensorBoardTracker(), config, job)
    assert len(list((job / "tensorboard").glob("events*"))) == 1
    events = EventAccumulator(str(job / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars(NLL)] == [3.5]
    curve = events.Scalars("layer/ssm_input/sqnr_db")
    assert [(event.step, event.value) for event in curve] == [(0, 40.0), (1, 30.0)]
    (picture,) = events.Images("figure")
    assert (picture.width, picture.height) == (8, 6)
    assert "_hparams_/session_start_info" in events.Tags()["tensors"] or events.PluginTagToContent("hparams")


@needs_mlflow
def test_repeated_job_goes_on_with_its_mlflow_run(job: Path, config: DictConfig) -> None:
    from mlflow.tracking import MlflowClient

    changed = {**RESULT, "metrics": {NLL: {**RESULT["metrics"][NLL], "value": 3.25}}}
    track(MlflowTracker(), config, job)
    track(MlflowTracker(), config, job, changed)
    client = MlflowClient(tracking_uri=f"sqlite:///{job.parents[1] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dualscale_mamba")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["job_id"] == job.name
    assert run.data.params["observer.percentile"] == "99.9"
    assert run.data.metrics[NLL] == 3.25
    curve = client.get_metric_history(run.info.run_id, "layer/ssm_input/sqnr_db")
    assert [(point.step, point.value) for point in curve] == [(0, 40.0), (1, 30.0)]
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"figure.png", "items_perplexity.jsonl", "config.json"} <= files


@needs_mlflow
def test_failed_job_is_a_failed_mlflow_run(job: Path, config: DictConfig) -> None:
    from mlflow.tracking import MlflowClient

    with pytest.raises(RuntimeError), MlflowTracker().tracking(job, config, job.name):
        raise RuntimeError("deliberate")
    client = MlflowClient(tracking_uri=f"sqlite:///{job.parents[1] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dualscale_mamba")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


@needs_mlflow
def test_unreachable_mlflow_stops_nothing(
    job: Path, config: DictConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        track(MlflowTracker(tracking_uri="http://127.0.0.1:9", timeout=2), config, job)
    assert [r.getMessage() for r in caplog.records if "MLflow cannot start" in r.getMessage()]


@pytest.mark.parametrize(
    ("tracker", "package"), [(TensorBoardTracker, "tensorboard"), (MlflowTracker, "mlflow")]
)
def test_missing_package_is_one_sentence(
    tracker: type[Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"tracker={package}: .*pip install 'dualscale_mamba\[trackers\]'"):
        tracker()
