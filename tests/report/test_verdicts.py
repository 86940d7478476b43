"""Verdicts: who is compared with whom, on which items, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_runs import documents, made_run, windows

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.report.collect import collect
from dualscale_mamba.report.verdicts import average_metric, interval, stands_out, value_of, verdicts, warnings

BASE = 1e-3 * (1 + 0.1 * np.arange(24))
NOISE = np.random.default_rng(0).normal(size=24) * 1e-4


def test_each_arm_is_compared_with_the_baseline(tmp_path: Path) -> None:
    made_run(tmp_path / "a", "single", arm="baseline", items={"divergence": windows(BASE)})
    made_run(tmp_path / "b", "dual", arm="treatment", number=1, items={"divergence": windows(BASE / 10)})
    made_run(tmp_path / "c", "affine", number=2, items={"divergence": windows(BASE + NOISE)})
    made_run(tmp_path / "d", "fp16", number=3, items={"divergence": windows(0 * BASE)})
    dual, affine = verdicts(collect(tmp_path))
    assert dual.sentence.startswith("dual vs single: KL -90.0 %, 95 % CI [-90.0, -90.0], p = 0.0001")
    assert dual.sentence.endswith("of these two runs (one seed)")
    kl = dual.effects[0]
    assert kl.metric == "divergence/text/kl"
    assert kl.reference == pytest.approx(BASE.mean())
    assert kl.difference == pytest.approx(-0.9 * BASE.mean())
    assert kl.significant
    assert kl.items == 24
    assert "no difference seen in KL" in affine.sentence
    assert "this sample would show" in affine.sentence
    assert not affine.effects[0].significant
    assert affine.effects[0].detectable is not None
    assert {light.name: light.state for light in dual.lights}["kernel path"] == "equal"


def test_items_are_paired_by_id_and_not_by_place(tmp_path: Path) -> None:
    made_run(tmp_path / "a", "single", items={"divergence": windows(BASE)})
    made_run(tmp_path / "b", "dual", number=1, items={"divergence": windows(BASE)[::-1]})
    (verdict,) = verdicts(collect(tmp_path))
    assert verdict.effects[0].equal
    assert "KL equal in all 24 items" in verdict.sentence


@pytest.mark.parametrize("how", ["fewer", "other text", "other documents", "twice", "a single one"])
def test_items_that_differ_are_not_compared(tmp_path: Path, how: str) -> None:
    first, second = windows(BASE), windows(BASE / 10)
    facts = None
    if how == "fewer":
        second = second[1:]
    elif how == "a single one":
        first, second = first[:1], second[:1]
    elif how == "other text":
        facts = {"evaluation": {"divergence": {"source": "text", "tokens_hash": "other"}}}
    elif how == "other documents":
        first, second = documents("t", [1.0] * 9), documents("t", [0.0] * 9)
        second[3]["doc_hash"] = "other"
    else:
        second[1] = second[0]
    made_run(tmp_path / "a", "single", items={"e": first})
    made_run(tmp_path / "b", "dual", number=1, items={"e": second}, facts=facts)
    (verdict,) = verdicts(collect(tmp_path))
    assert "not comparable" in verdict.sentence
    assert not [effect for effect in verdict.effects if effect.p_value is not None]
    assert stands_out(collect(tmp_path), "divergence/text/kl") is None


def test_settings_of_an_arm_are_chosen_on_one_half_and_tested_on_the_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    made_run(tmp_path / "ref", "single", items={"divergence": windows(BASE)})
    for index in range(
        40
    ):  # equal arms: the best of 40 would seem better if it were tested where it was chosen
        config = {"observer": {"percentile": 90.0 + index / 10}}
        noisy = BASE + rng.normal(size=24) * 1e-4
        folder = tmp_path / f"v{index:02d}"
        made_run(folder, "dual", number=index + 1, config=config, items={"divergence": windows(noisy)})
    (verdict,) = verdicts(collect(tmp_path))
    assert "settings chosen on one half of the windows, compared there on the other" in verdict.sentence
    assert verdict.effects[0].items == 12
    assert not verdict.effects[0].significant


@pytest.mark.parametrize(("with_windows", "counted"), [(True, 60), (False, 30)])
def test_documents_all_count_where_settings_were_chosen_on_windows(
    tmp_path: Path, with_windows: bool, counted: int
) -> None:
    items = {"pairs": documents("pairs", [0.0, 1.0] * 30)}
    for number, (mode, percentile) in enumerate([("single", 99.0), ("single", 99.9), ("dual", 99.0)]):
        kl = BASE * (2 if percentile == 99.0 else 1)
        own = {**items, "divergence": windows(kl)} if with_windows else items
        config = {"observer": {"percentile": percentile}}
        made_run(tmp_path / str(number), mode, number=number, config=config, items=own)
    (verdict,) = verdicts(collect(tmp_path))
    assert verdict.effects[0].items == counted
    if with_windows:
        assert "dual 99 % vs single 99.9 %" in verdict.sentence
        assert verdict.effects[1].items == 12


def test_arms_are_compared_within_a_setting(tmp_path: Path) -> None:
    for number, (mode, granularity, factor) in enumerate(
        [("single", "per_tensor", 1), ("dual", "per_tensor", 0.1), ("single", "per_channel", 1),
         ("dual", "per_channel", 2)]
    ):  # fmt: skip
        made_run(
            tmp_path / str(number), mode, number=number, choices={"granularity": granularity},
            items={"divergence": windows(BASE * factor)},
        )  # fmt: skip
    tensor, channel = verdicts(collect(tmp_path))
    assert tensor.sentence.startswith("granularity per_tensor: dual vs single: KL -90.0 %")
    assert channel.sentence.startswith("granularity per_channel: dual vs single: KL +100.0 %")


def test_reference_is_what_is_named(tmp_path: Path) -> None:
    made_run(tmp_path / "aaaa1111", "single", arm="baseline", items={"divergence": windows(BASE)})
    made_run(tmp_path / "bbbb2222", "dual", arm="treatment", number=1, items={"divergence": windows(BASE)})
    made_run(tmp_path / "cccc3333", "fp16", number=2, items={"divergence": windows(0 * BASE)})
    jobs = collect(tmp_path)
    for name in ("dual", "treatment", "bbbb"):
        (verdict,) = verdicts(jobs, name)
        assert (verdict.reference.scale_mode, verdict.candidate.scale_mode) == ("dual", "single")
    assert [verdict.reference.scale_mode for verdict in verdicts(jobs, "fp16")] == ["fp16", "fp16"]
    with pytest.raises(
        ConfigError, match="reference=triple: allowed is a label, an arm, a scale mode or an id"
    ):
        verdicts(jobs, "triple")


def test_tasks_are_averaged_and_each_is_corrected(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    first, second = [], []
    for task in range(4):
        outcomes = rng.random(400) < 0.5
        better = outcomes | (rng.random(400) < 0.1) if task == 0 else outcomes
        first += documents(f"task{task}", outcomes.astype(float))
        second += documents(f"task{task}", better.astype(float))
    made_run(tmp_path / "a", "single", items={"zero_shot": first})
    made_run(tmp_path / "b", "dual", number=1, items={"zero_shot": second})
    jobs = collect(tmp_path)
    (verdict,) = verdicts(jobs)
    mean, *tasks = verdict.effects
    assert mean.metric == average_metric(jobs) == "accuracy over 4 tasks"
    assert "points over 4 tasks, 95 % CI [" in verdict.sentence
    known = [value_of(job, mean.metric) or 0.0 for job in jobs]
    assert [mean.reference, mean.candidate] == pytest.approx([100 * value for value in known])
    assert tasks[0].test == "exact McNemar"
    assert tasks[0].adjusted == pytest.approx(min(1.0, 4 * (tasks[0].p_value or 0.0)))
    assert all(task.equal and task.adjusted == 1.0 for task in tasks[1:])
    assert stands_out(jobs, mean.metric) is jobs[1]
    low, high = interval(jobs[0], mean.metric) or (0.0, 0.0)
    assert low < known[0] < high


def test_claims_over_seeds_need_agreement_of_the_seeds(tmp_path: Path) -> None:
    for seed, shift in enumerate([9e-4, -5e-4, 4e-4]):  # larger than the noise of items, but of either sign
        made_run(tmp_path / f"a{seed}", "single", seed=seed, items={"divergence": windows(BASE)})
        made_run(
            tmp_path / f"b{seed}", "dual", seed=seed, items={"divergence": windows(BASE + shift + NOISE)}
        )
    jobs = collect(tmp_path)
    (verdict,) = verdicts(jobs)
    assert verdict.effects[0].seeds == 3
    assert "no difference seen in KL" in verdict.sentence
    assert verdict.sentence.endswith("3 seeds")
    (alone,) = verdicts([job for job in jobs if job.settings["seed"] == 0])
    assert alone.effects[0].significant
    assert alone.sentence.endswith("of these two runs (one seed)")


def test_seeds_of_the_calibration_are_seeds_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    for seed in range(4):
        facts = {"calibration_tokens": f"tokens{seed}"}
        for number, (mode, factor) in enumerate([("single", 1.0), ("dual", 0.5)]):
            config = {"calibration": {"seed": seed}}
            noisy = {"divergence": windows(BASE * factor + rng.normal() * 1e-5)}
            folder = tmp_path / f"{mode}{seed}"
            made_run(folder, mode, number=number, config=config, facts=facts, items=noisy)
    (verdict,) = verdicts(collect(tmp_path))
    assert verdict.effects[0].seeds == 4
    assert verdict.effects[0].significant
    assert verdict.sentence.endswith("4 seeds")
    assert {light.state for light in verdict.lights} == {"equal"}


def test_better_than_unquantized_is_warned_of(tmp_path: Path) -> None:
    made_run(tmp_path / "f", "fp16", items={"divergence": windows(0 * BASE, [3.0] * 24)})
    made_run(tmp_path / "a", "single", number=1, items={"divergence": windows(BASE, 2.9 + BASE)})
    made_run(tmp_path / "b", "dual", number=2, items={"divergence": windows(BASE, 3.0 + BASE)})
    (warning,) = warnings(collect(tmp_path))
    assert warning.startswith("single is better than fp16: perplexity -9.3 %")


def test_only_a_winner_beyond_the_noise_stands_out(tmp_path: Path) -> None:
    latency = {f"latency/tpot/b/{part}": value for part, value in (("p10", 1.0), ("p50", 2.0), ("p90", 3.0))}
    quick = {name: value - 0.5 for name, value in latency.items()}
    made_run(tmp_path / "a", "single", items={"divergence": windows(BASE)}, metrics=latency)
    made_run(tmp_path / "b", "dual", number=1, items={"divergence": windows(BASE - 5e-4)}, metrics=quick)
    made_run(tmp_path / "f", "fp16", number=2, items={"divergence": windows(0 * BASE)})
    jobs = collect(tmp_path)
    assert stands_out(jobs, "divergence/text/kl") is jobs[1]
    assert stands_out(jobs, "latency/tpot/b/p50") is None
    near = made_run(tmp_path / "c", "affine", number=3, items={"divergence": windows(BASE - 5e-4 + NOISE)})
    assert stands_out(collect(tmp_path), "divergence/text/kl") is None
    (verdict, *_) = verdicts(jobs)
    assert "latency -25.0 % (measured once)" in verdict.sentence
    (near / "items_divergence.jsonl").write_text("{")
    assert len(verdicts(collect(tmp_path))) == 2


def test_intervals_are_of_the_metric_in_its_unit(tmp_path: Path) -> None:
    made_run(
        tmp_path, "single", items={"divergence": windows(BASE), "pairs": documents("pairs", [1, 1, 0, 1])}
    )
    (job,) = collect(tmp_path)
    for name in ("divergence/text/kl", "divergence/text/perplexity", "pairs/acc"):
        low, high = interval(job, name) or (1.0, 0.0)
        assert low < job.metrics[name] < high
    low, high = interval(job, "divergence/text/perplexity") or (0.0, 0.0)
    assert 20 < low < high < 26
    assert interval(job, "memory/weights") is None


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    rows = windows(BASE)
    rows[0]["kl"] = "nan"
    made_run(tmp_path / "a", "single", items={"divergence": windows(BASE)})
    folder = made_run(tmp_path / "b", "dual", number=1, items={"divergence": windows(BASE)})
    (folder / "items_divergence.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (verdict,) = verdicts(collect(tmp_path))
    assert "divergence/text/kl" not in [effect.metric for effect in verdict.effects]


@pytest.mark.parametrize(("slower", "said"), [(0.5, " (within its spread)"), (5.0, "")])
def test_latency_counts_only_over_several_processes(tmp_path: Path, slower: float, said: str) -> None:
    for number, (mode, more) in enumerate([("single", 0.0), ("dual", slower)] * 2):
        times = {
            f"latency/tpot/b/{part}": value + more
            for part, value in (("p10", 1.0), ("p50", 2.0), ("p90", 3.0))
        }
        made_run(
            tmp_path / str(number), mode, number=number, seed=number // 2, metrics=times,
            items={"divergence": windows(BASE)},
        )  # fmt: skip
    (verdict,) = verdicts(collect(tmp_path))
    assert f"latency {50 * slower:+.1f} %{said};" in verdict.sentence + ";"
