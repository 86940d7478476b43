"""Four jobs of a real study, tracked offline and read back from W&B's own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wandb_log import configs_and_summary, finished

from dualscale_mamba.report.collect import flattened
from dualscale_mamba.tracking import content

ROOT = Path(__file__).resolve().parents[2]
LINE = (
    "-m debug=fast ops=reference tracker=wandb group=four precision=ssm_input evaluation=[perplexity] "
    "profiling=[memory] scale_mode=single,dual observer.percentile=99,99.9"
)


@dataclass(frozen=True)
class Read:
    """One job's result and what W&B was told of it."""

    result: dict[str, Any]
    log: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    def table(self, name: str) -> dict[str, Any]:
        (path,) = (self.log.parent / "files" / "media" / "table").glob(f"{name}_*.table.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def records(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in finished(self.log) if record.HasField(kind)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Read]:
    folder = tmp_path_factory.mktemp("four")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_"))
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *LINE.split()],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = []
    for path in sorted(folder.rglob("result.json")):
        (log,) = path.parent.glob("wandb/offline-run-*/run-*.wandb")
        found.append(Read(json.loads(path.read_text()), log, *configs_and_summary(log)))
    return found


def test_four_jobs_are_four_runs_with_their_own_configuration(study: list[Read]) -> None:
    settings = {
        (read.config["choices"]["scale_mode"], read.config["observer"]["percentile"]) for read in study
    }
    assert settings == {(mode, percentile) for mode in ("single", "dual") for percentile in (99, 99.9)}
    assert len({read.result["id"] for read in study}) == 4
    assert [read.records("run")[0].run_id for read in study] == [read.result["id"] for read in study]
    for read in study:
        sent = {key: read.config[key] for key in read.result["config"] if key in read.config}
        assert dict(flattened(sent)) == dict(flattened(read.result["config"]))  # W&B leaves out what is empty
        assert read.config["hashes"] == read.result["hashes"]
        assert read.config["kernel_hash"] == read.result["hashes"]["kernels"]
        run = read.records("run")[-1]
        assert run.run_group == "four"
        assert {"ssm_input", content.hardware(read.result)} <= set(run.tags)


def test_summary_has_the_metrics_and_no_curves(study: list[Read]) -> None:
    for read in study:
        metrics = {name: metric["value"] for name, metric in read.result["metrics"].items()}
        assert metrics
        assert {name: read.summary[name] for name in metrics} == metrics


def test_curves_have_the_layer_as_their_axis(study: list[Read]) -> None:
    for read in study:
        defined = {metric.glob_name: metric for metric in read.records("metric")}
        assert defined["layer/*"].step_metric == "layer"
        assert defined["layer/*"].summary.none
        rows = []
        for history in read.records("history"):
            row = {"/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
            if "layer" in row:
                rows.append(row["layer/ssm_input/sqnr_db"])
        sites = [site["sqnr_db"] for site in read.result["sites"] if site["name"].endswith("ssm_input")]
        assert rows == sites


def test_tables_and_picture_are_there(study: list[Read]) -> None:
    for read in study:
        sites, tasks, fairness = (read.table(name) for name in ("sites", "tasks", "fairness"))
        assert len(sites["data"]) == len(read.result["sites"])
        by_metric = {(row[0], row[1]): row[2] for row in tasks["data"]}
        name = "perplexity/generated_heldout/nll"
        assert by_metric["perplexity/generated_heldout", "nll"] == read.result["metrics"][name]["value"]
        assert ["bits_per_value", "8.0"] in fairness["data"]
        (picture,) = (read.log.parent / "files" / "media" / "images").glob("figure_*.png")
        own = next(path for path in read.log.parents if (path / "figure.png").is_file()) / "figure.png"
        assert picture.read_bytes() == own.read_bytes()


def test_items_are_an_artifact(study: list[Read]) -> None:
    for read in study:
        found = {artifact.type: artifact for artifact in read.records("artifact")}
        files = {entry.path for entry in found["items"].manifest.contents}
        assert files == {"items_perplexity.jsonl"}
