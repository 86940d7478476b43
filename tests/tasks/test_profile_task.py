"""The task as it is run: numbers for every phase, a picture, no text read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from dualscale_mamba import tasks
from dualscale_mamba.report.operators import REST, title_of
from dualscale_mamba.tracking import content

Compose = Callable[..., DictConfig]
SMALL = ["debug=fast", "task=profile", "task.repeats=1", "task.warmup=0", "task.batch_sizes=[1,2]"]


@pytest.mark.parametrize("model", ["random_tiny", "random_mamba2_tiny"])
@pytest.mark.parametrize("precision", ["w8a8", "w4a16", "none"])
def test_phases_and_picture(
    model: str, precision: str, composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four = ["precision.weights.group_size=32"] if precision == "w4a16" else []
    config = composed(*SMALL, "task.prompt_lengths=[8]", f"model={model}", f"precision={precision}", *four)
    tasks.run(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["operators"]["cuda_graphs"] == {"used": False, "reason": "the model lies on cpu"}
    phases = result["operators"]["phases"]
    assert [(each["phase"], each["batch"], each["length"]) for each in phases] == [
        ("prefill", 1, 8), ("prefill", 2, 8), ("decode", 1, 1), ("decode", 2, 1),
    ]  # fmt: skip
    shown = capsys.readouterr().out
    for each in phases:
        assert title_of(each) in shown
        spent = sum(one["milliseconds"] for one in each["operators"]) + each["rest"]
        assert spent >= each["milliseconds"] > 0
        share = result["metrics"][f"roofline/{each['phase']}/batch_{each['batch']}_length_{each['length']}"]
        floors = sum(one["floor"] for one in each["operators"])
        assert share["value"] == pytest.approx(floors / each["milliseconds"])
    assert REST in shown
    assert (tmp_path / "run" / "figure.png").stat().st_size > 10_000
    assert not list((tmp_path / "run").glob("items_*"))
    assert not [name for name in result["metrics"] if name.startswith(("perplexity", "divergence"))]
    columns, rows = content.operator_table(result)
    assert len(rows) == sum(len(each["operators"]) for each in phases)
    assert all(len(row) == len(columns) for row in rows)
