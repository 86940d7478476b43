"""Comparisons are made from files alone, whatever became of the jobs."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dualscale_mamba.report.collect import collect
from dualscale_mamba.report.compare import write_comparison
from dualscale_mamba.report.picture import write_figure
from dualscale_mamba.report.tables import key_metrics, number

LEVELS = [value / 10 for value in range(-3, 50)]


def job(
    folder: Path, number: int, mode: str, *, state: str = "done", kl: float = 0.001, **facts: Any
) -> Path:
    """One run folder with the least that a report reads."""
    path = folder / f"{number}_{mode}"
    path.mkdir(parents=True)
    status = {
        "name": mode,
        "arm": "treatment" if mode == "dual" else None,
        "group": "study",
        "number": number,
    }
    status |= {"choices": {"scale_mode": mode, "observer": "percentile"}, "state": state}
    status |= {"overrides": [f"scale_mode={mode}", f"observer.percentile={90 + number}"]}
    if state == "failed":
        status["error"] = "RuntimeError: deliberate"
    (path / "status.json").write_text(json.dumps(status))
    if state == "done":
        metrics = {
            "divergence/text/kl": {"value": kl, "unit": "nats/token", "better": "lower"},
            "perplexity/text/perplexity": {"value": 20.0 + number, "unit": "perplexity", "better": "lower"},
            "pairs/acc": {"value": 0.9, "unit": "fraction", "better": "higher"},
        }
        environment = {"command": ["run.py", "-m"], "torch": "2", "gpu": None, "cpu": "c"}
        environment["git"] = {"sha": "a" * 40, "dirty": False}
        result = {**status, "metrics": metrics, "environment": environment, "site_summary": {}, "sites": []}
        result["fairness"] = {"kernels": "k", "calibration": {"samples": 4}, **facts}
        result["config"] = {"observer": {"percentile": 90.0 + number}}
        (path / "result.json").write_text(json.dumps(result))
        centres = [value / 20 for value in range(-5, 100)]
        found = {
            "site": "layers.0.mixer.ssm_input",
            "centres": centres,
            "share": [0.01] * 105,
            "levels": LEVELS,
        }
        (path / "distribution.json").write_text(json.dumps(found))
    return path


def printed(folder: Path) -> str:
    out = io.StringIO()
    assert write_comparison(folder, Console(file=out, width=160))
    return out.getvalue()


def test_study_with_a_failed_job(tmp_path: Path) -> None:
    job(tmp_path, 0, "single")
    job(tmp_path, 1, "dual", kl=0.0001)
    job(tmp_path, 2, "affine", state="failed")
    job(tmp_path, 3, "control", state="running")
    text = printed(tmp_path)
    assert "RuntimeError: deliberate" in text
    assert "2 of 4 jobs have no result" in text
    assert "dual 91 %" in text
    made = {path.name for path in tmp_path.iterdir()}
    assert {f"comparison.{kind}" for kind in ("md", "csv", "tex", "png")} <= made
    assert "| treatment | dual 91 % |" in (tmp_path / "comparison.md").read_text()


def test_all_jobs_failed(tmp_path: Path) -> None:
    job(tmp_path, 0, "single", state="failed")
    assert "1 of 1 jobs have no result" in printed(tmp_path)
    assert not (tmp_path / "comparison.png").exists()


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert not write_comparison(tmp_path)


def test_zero_divergence_and_missing_metrics_are_drawn(tmp_path: Path) -> None:
    job(tmp_path, 0, "fp16", kl=0.0)
    other = job(tmp_path, 1, "dual")
    result = json.loads((other / "result.json").read_text())
    del result["metrics"]["pairs/acc"]
    (other / "result.json").write_text(json.dumps(result))
    printed(tmp_path)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_unreadable_result_counts_as_missing(tmp_path: Path) -> None:
    job(tmp_path, 0, "single")
    path = job(tmp_path, 1, "dual")
    (path / "result.json").write_text('{"half')
    assert "1 of 2 jobs have no result" in printed(tmp_path)


def test_unequal_facts_are_listed(tmp_path: Path) -> None:
    job(tmp_path, 0, "single")
    job(tmp_path, 1, "dual", kernels="other")
    assert "not equal between jobs: kernel path: k (single 90 %) / other (dual 91 %)" in printed(tmp_path)


def test_jobs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        job(tmp_path, index, "dual")
    assert [found.number for found in collect(tmp_path)] == [1, 2, 10]


def test_figure_of_one_run(tmp_path: Path) -> None:
    path = job(tmp_path, 0, "dual")
    result = json.loads((path / "result.json").read_text())
    result["sites"] = [{"name": f"layers.{i}.mixer.z", "sqnr_db": 30.0 + i} for i in range(3)]
    figure = write_figure(path, result)
    assert figure is not None
    assert figure.stat().st_size > 10_000


def test_figure_of_an_unquantized_run_is_none(tmp_path: Path) -> None:
    assert write_figure(tmp_path, {"name": "x", "sites": []}) is None


def test_heads_name_the_source_only_where_needed() -> None:
    assert key_metrics(["divergence/a/kl"]) == {"divergence/a/kl": "KL"}
    assert key_metrics(["divergence/a/kl", "divergence/b_c/kl"])["divergence/b_c/kl"] == "KL b c"


@pytest.mark.parametrize(
    ("value", "name", "shown"),
    [(0.9231, "x/acc", "92.31 %"), (2e6, "memory/weights", "2.00 MB"), (8, "bits", "8"), (None, "x", "")],
)
def test_numbers_are_short(value: Any, name: str, shown: str) -> None:
    assert number(value, name) == shown
    assert number(math.nan, "x/acc") == "nan %"
