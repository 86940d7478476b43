"""Paired comparison: what it finds, what it calls noise, and which jobs it sets side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dualscale_mamba.report.collect import Job
from dualscale_mamba.report.paired import paired_difference, winners


def test_difference_has_the_interval_and_p_of_known_methods() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=40) * 10  # pairing takes the large variance between items away
    first, second = base + 0.3 + rng.normal(size=40) * 0.3, base
    found = paired_difference(list(first), list(second))
    assert found.mean == pytest.approx(float((first - second).mean()))
    known = stats.ttest_rel(first, second)
    low, high = known.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.low > 0
    assert found.p_value < 0.01
    assert found == paired_difference(list(first), list(second))


def test_noise_has_an_interval_around_zero() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 30))
    found = paired_difference(list(first), list(second))
    assert found.low < 0 < found.high
    assert found.p_value > 0.05


def test_equal_arms_and_constant_differences() -> None:
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    constant = paired_difference([2.0] * 8, [1.0] * 8)
    assert (constant.mean, constant.low, constant.high) == (1.0, 1.0, 1.0)
    assert constant.p_value == 2.0**-7


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_values_that_are_not_paired_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="paired values are needed"):
        paired_difference(first, second)


def job(folder: Path, mode: str, percentile: float, granularity: str, level: float) -> Job:
    own = folder / f"{mode}_{percentile}_{granularity}"
    own.mkdir()
    rows = [{"window": i, "kl": level * (1 + 0.1 * i)} for i in range(12)]
    (own / "items_divergence.jsonl").write_text("\n".join(json.dumps(row) for row in reversed(rows)) + "\n")
    choices = {"scale_mode": mode, "granularity": granularity}
    result = {"config": {"observer": {"percentile": percentile}}, "metrics": {}}
    return Job(own, {"state": "done", "choices": choices}, result, "label")


def test_each_setting_has_its_winner_and_each_mode_its_best(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "single", 99.0, "per_tensor", 4e-3),
        job(tmp_path, "single", 99.99, "per_tensor", 1e-3),
        job(tmp_path, "dual", 99.0, "per_tensor", 1e-4),
        job(tmp_path, "fp16", 100.0, "per_tensor", 0.0),
        job(tmp_path, "single", 99.99, "per_channel", 3e-4),
        job(tmp_path, "dual", 99.0, "per_channel", 3e-4),
    ]
    tensor, channel = winners(jobs)
    assert tensor.startswith(
        "KL, granularity per_tensor: least with dual 99 %; next single 99.99 % (0.0014 nats"
    )
    assert "12 windows" in tensor
    assert "no winner between" in channel
    assert "within the noise" in channel


def test_nothing_to_pair_gives_no_sentence(tmp_path: Path) -> None:
    alone = job(tmp_path, "single", 99.0, "per_tensor", 4e-3)
    damaged = job(tmp_path, "dual", 99.0, "per_tensor", 1e-4)
    (damaged.folder / "items_divergence.jsonl").write_text("{")
    assert list(winners([alone, damaged])) == []
