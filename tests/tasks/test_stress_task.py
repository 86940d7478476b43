"""Every format of the configuration meets every regime, and what is reported is what the operators do."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from dualscale_mamba import ops, tasks
from dualscale_mamba.configuration.instantiate import group_files
from dualscale_mamba.configuration.validate import problems
from dualscale_mamba.data.synthetic import Regime, synthesize
from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.single import Single
from dualscale_mamba.quantization import stress

Compose = Callable[..., DictConfig]
SMALL = ["task=stress", "ops=reference", "task.tokens=64", "task.channels=16", "task.percentiles=[99,100]"]


def test_every_format_of_the_group_takes_part(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(*SMALL)
    assert problems(config) == []
    tasks.run(config)
    lines = list(csv.DictReader((tmp_path / "run" / "stress.csv").open()))
    assert {line["format"] for line in lines} == set(group_files("scale_mode")) - {"fp16"}
    assert {line["regime"] for line in lines} == set(config.task.regimes)
    assert {line["calibrated"] for line in lines} == {"same", "layer_1"}
    formats, regimes = len({line["format"] for line in lines}), len(config.task.regimes)
    assert len(lines) == formats * regimes * 2 * (3 + 2)  # one search more for a code a tensor
    assert all(line["zero_exact"] == "True" and float(line["zeros_moved"]) == 0 for line in lines)
    zeros = [line for line in lines if line["regime"] == "all_zero"]
    assert all(float(line["sqnr_db"]) == 200 and line["worst_channel"] == "-1" for line in zeros)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stress"]["of"] == len(lines)
    assert (tmp_path / "run" / "figure.png").stat().st_size > 20_000
    assert "calibrated on another draw of the same" in capsys.readouterr().out


def test_numbers_are_those_of_the_coded_values() -> None:
    values = synthesize(Regime({99.9: 2.0}, 6.0), 128, 8)
    one = torch.ones(1, dtype=torch.float64)
    code = Single().fit(Range(-0.2785 * one, 2.0 * one, 6.0 * one))
    with ops.implementation("reference"):
        found = stress.tested(("same", "a", "per_tensor", "single", "b"), code, values, "")
        decoded = ops.decode(ops.encode(values, code.rows), code.rows, torch.float32)
    error = (decoded - values).double()
    signal = values.double().square()
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal.sum() / error.square().sum()))
    step = 2.0 / 127
    assert found.clipped_share == pytest.approx(float((values > 2.0 + step / 2).float().mean()))
    channels = 10 * torch.log10(signal.sum(0) / error.square().sum(0))
    assert found.worst_channel == int(channels.argmin())
    assert found.codes_used == len(decoded.unique())
    assert "clips" not in found.breaks or found.clipped_share > 1e-3


def test_a_tail_from_another_domain_breaks_what_calibration_held(composed: Compose, tmp_path: Path) -> None:
    tasks.run(composed(*SMALL, "task.formats=[single,dual]", "task.granularities=[per_tensor]"))
    best = json.loads((tmp_path / "run" / "result.json").read_text())["stress"]["best"]
    held = {(one["calibrated"], one["regime"], one["format"]): one for one in best}
    assert held["same", "extreme", "dual"]["sqnr_db"] > 25
    assert "coarse" in held["layer_1", "extreme", "dual"]["breaks"]
    assert "loses a channel" in held["same", "extreme", "single"]["breaks"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.formats=[singel]", "task.formats=singel: allowed is one of affine"),
        ("task.formats=[fp16]", ""),
        ("task.calibrate=[heavier]", "task.calibrate=heavier: allowed is one of same, light"),
        ("task.granularities=[per_group]", "task.granularities=per_group: allowed is one of per_tensor"),
        ("task.observers=[best]", "task.observers=best: allowed is one of absmax"),
        ("task.tokens=0", "task.tokens=0: allowed is a whole number above 0"),
        ("+task.regimes.mine={zero:2.0}", "task.regimes.mine.zero"),
        ("task.percentiles=[20]", "task.percentiles=20: allowed is a number in (50, 100]"),
    ],
)
def test_mistakes_are_one_sentence(composed: Compose, override: str, message: str) -> None:
    found = problems(composed("task=stress", override))
    assert (len(found) == 1 and message in found[0]) if message else not found
