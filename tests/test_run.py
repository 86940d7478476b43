"""The real command, in an empty folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("debug=fast", "ops=reference")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_"))
    }
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run."""
    folder = tmp_path_factory.mktemp("single")
    done = command(folder, "debug=fast")
    assert done.returncode == 0, done.stderr
    assert "perplexity/generated_heldout/nll" in done.stdout
    (run,) = (folder / "outputs" / "random_tiny_w8a8_dual").iterdir()
    return run


def test_run_leaves_its_whole_record(single: Path) -> None:
    files = {
        "result.json",
        "status.json",
        "distribution.json",
        "figure.png",
        "run.log",
        "items_perplexity.jsonl",
    }
    assert files <= {path.name for path in single.iterdir()}
    assert not list(single.rglob(".result.json*"))
    assert read(single / "status.json")["state"] == "done"


def test_result_is_the_source_of_truth(single: Path) -> None:
    result = read(single / "result.json")
    assert result["schema_version"] == 2
    assert result["config"]["scale_mode"]["fine_codes"] == 160
    assert len(result["hashes"]["weights"]) == 64
    assert len(result["hashes"]["calibration_tokens"]) == 64
    assert {"python", "torch", "cpu", "threads", "git", "libraries", "gpu", "driver"} <= set(
        result["environment"]
    )
    assert result["fairness"]["bits_per_value"] == 8.0
    assert result["fairness"]["ops"] == "compiled"
    assert result["fairness"]["evaluation"]["perplexity"]
    kinds = {site["name"].rpartition(".")[2] for site in result["sites"]}
    assert len(kinds) == 9
    ssm = [site for site in result["sites"] if site["name"].endswith("ssm_input")]
    assert all(site["format"] == "dual" and site["knee"] == 31 for site in ssm)
    assert {"value", "unit", "better"} == set(result["metrics"]["perplexity/generated_heldout/nll"])


def test_nothing_quantized_diverges_by_nothing(tmp_path: Path) -> None:
    done = command(tmp_path, *SMALL, "precision=none", "profiling=[memory]")
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("result.json")
    assert read(path)["metrics"]["divergence/generated_heldout/kl"]["value"] == 0.0


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Eight jobs, of which the last fails, each tracked by W&B offline."""
    folder = tmp_path_factory.mktemp("study")
    samples = "calibration.samples=1,2,3,4,5,6,7,99999"
    small = ("evaluation=[perplexity]", "profiling=[memory]", "tracker=wandb", "precision=ssm_input")
    done = command(folder, "-m", *SMALL, *small, samples)
    (sweep,) = (folder / "outputs" / "multirun").iterdir()
    return sweep, done


def test_failing_job_leaves_the_others_intact(study: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    sweep, done = study
    assert done.returncode == 1
    states = {path.parent.name: read(path)["state"] for path in sweep.glob("jobs/*/status.json")}
    assert sorted(states.values()) == ["done"] * 7 + ["failed"]
    assert len(list(sweep.glob("jobs/*/result.json"))) == 7
    (failed,) = (name for name, state in states.items() if state == "failed")
    assert (
        "calibration.samples=99999: allowed is at most"
        in read(sweep / "jobs" / failed / "status.json")["traceback"]
    )
    assert "Traceback" not in done.stderr
    assert "1 of 8 jobs have no result" in done.stdout


def test_study_is_compared_although_a_job_failed(
    study: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    sweep, _ = study
    assert (sweep / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (sweep / "comparison.md").read_text()
    assert "failed: dual samples 99999: ConfigError: calibration.samples=99999" in text
    assert "not equal between jobs: calibration data" in text
    with (sweep / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done"] * 7 + ["failed"]
    assert [row["calibration.samples"] for row in rows] == ["1", "2", "3", "4", "5", "6", "7", "99999"]
    assert float(rows[0]["perplexity/generated_heldout/nll"]) > 0


def test_each_job_is_one_run_with_its_own_configuration(
    study: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from wandb_log import configs_and_summary

    sweep, _ = study
    logs = list(sweep.glob("jobs/*/wandb/offline-run-*/run-*.wandb"))
    assert len(logs) == 8
    read_back = {path: configs_and_summary(path) for path in logs}
    samples = [config["calibration"]["samples"] for config, _ in read_back.values()]
    assert sorted(samples) == [1, 2, 3, 4, 5, 6, 7, 99999]
    assert {path.stem.removeprefix("run-") for path in logs} == {path.parents[2].name for path in logs}
    for path, (config, summary) in read_back.items():
        if config["calibration"]["samples"] == 99999:
            continue
        result = read(path.parents[2] / "result.json")
        name = "perplexity/generated_heldout/nll"
        assert summary[name] == result["metrics"][name]["value"]
        media = path.parent / "files" / "media"
        assert list(media.glob("table/sites_*.json"))
        assert list(media.glob("images/figure_*.png"))


def test_mamba2_runs_whole(tmp_path: Path) -> None:
    done = command(tmp_path, "debug=fast", "model=random_mamba2_tiny", "model.state_dtype=float16")
    assert done.returncode == 0, done.stderr
    assert "x, mean over layers" in done.stdout
    (path,) = tmp_path.rglob("result.json")
    result = read(path)
    sites = {site["name"].rpartition(".")[2]: site["format"] for site in result["sites"]}
    others = dict.fromkeys(("in_proj_input", "z", "conv_input", "B", "C", "dt", "out_proj_input"), "single")
    assert sites == {**others, "x": "dual"}
    assert result["metrics"]["divergence/generated_heldout/kl"]["value"] > 0
    assert (path.parent / "figure.png").is_file()


def test_mamba2_study_over_sites_and_groups(tmp_path: Path) -> None:
    done = command(
        tmp_path, "-m", *SMALL, "model=random_mamba2_tiny", "precision=ssm_input", "profiling=[memory]",
        "granularity=per_tensor,per_group", "quantize.sites=[x],[x,B,C]", "tracker=wandb",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    found = {}
    for path in sweep.glob("jobs/*/result.json"):
        result = read(path)
        kinds = {site["name"].rpartition(".")[2] for site in result["sites"]}
        granularity = result["config"]["granularity"]["_target_"].rpartition(".")[2]
        found[granularity, "".join(sorted(kinds))] = result["metrics"]["divergence/generated_heldout/kl"][
            "value"
        ]
    assert set(found) == {(g, kinds) for g in ("PerTensor", "PerGroup") for kinds in ("x", "BCx")}
    assert len(set(found.values())) == 4
    assert len(list(sweep.glob("jobs/*/wandb/offline-run-*/run-*.wandb"))) == 4
    assert "per_group sites x,B,C" in (sweep / "comparison.md").read_text()


def test_defect_shows_its_traceback_and_fails(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def run(config):\n    raise RuntimeError('deliberate')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = [sys.executable, str(ROOT / "run.py"), *SMALL, "task._target_=broken.run"]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "RuntimeError: deliberate" in done.stderr
    (status,) = tmp_path.rglob("status.json")
    assert read(status)["state"] == "failed"


def test_generate_prints_text(tmp_path: Path) -> None:
    done = command(tmp_path, *SMALL, "task=generate", "task.tokens=8", "task.prompt=Once upon")
    assert done.returncode == 0, done.stderr
    assert "Once upon" in done.stdout
    (path,) = tmp_path.rglob("generated.txt")
    assert len(path.read_text()) > len("Once upon\n")


def test_calibrate_saves_statistics(tmp_path: Path) -> None:
    done = command(tmp_path, *SMALL, "task=calibrate")
    assert done.returncode == 0, done.stderr
    assert "layers.1.ssm_input" in done.stdout
    (path,) = tmp_path.rglob("calibration.safetensors")
    assert path.stat().st_size > 1000


def test_entry_point_is_short() -> None:
    assert len((ROOT / "run.py").read_text().splitlines()) <= 40
