"""Lights: what differs, what may differ, and what nobody has written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import FACTS, made_run, windows

from dualscale_mamba.report.collect import collect
from dualscale_mamba.report.fairness import lights

KL = [0.1, 0.2, 0.3]


def states(folder: Path) -> dict[str, str]:
    return {light.name: light.state for light in lights(collect(folder))}


def pair(folder: Path, facts: dict[str, Any], **second: Any) -> dict[str, str]:
    made_run(folder / "a", "single", items={"divergence": windows(KL)})
    made_run(folder / "b", "dual", number=1, items={"divergence": windows(KL)}, facts=facts, **second)
    return states(folder)


def test_equal_runs_have_equal_lights(tmp_path: Path) -> None:
    assert set(pair(tmp_path, {}).values()) == {"equal"}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("weights", {"weights": "other"}),
        ("weights", {"weights_bits": 4.2}),
        ("widths", {"widths": {**FACTS["widths"], "in_proj": "w8a8, w4a8 in 3 4"}}),
        ("widths", {"rounding": "Gptq()"}),
        ("calibration data", {"calibration_tokens": "other"}),
        ("calibration data", {"calibration": {**FACTS["calibration"], "samples": 5}}),
        ("batch size", {"calibration": {**FACTS["calibration"], "batch_size": 5}}),
        ("batch size", {"evaluation": {"divergence": {"source": "text", "tokens_hash": "t" * 8, "batch_size": 2,
                                                      "request_order": "o"}}}),
        ("order", {"evaluation": {"divergence": {"source": "text", "tokens_hash": "t" * 8, "batch_size": 4,
                                                 "request_order": "p"}}}),
        ("evaluation data", {"evaluation": {"divergence": {"source": "text", "tokens_hash": "u", "batch_size": 4,
                                                           "request_order": "o"}}}),
        ("kernel path", {"kernels": "other"}),
        ("kernel path", {"device": "cuda:0"}),
        ("kernel path", {"ops": "reference"}),
        ("x_proj reader", {"x_proj_product": "decoded"}),
        ("hardware", {"threads": 2}),
        ("dtype", {"dtype": "float16"}),
        ("recipe", {"rotate": False}),
        ("recipe", {"rotate_residual": True}),
        ("something new", {"something new": 1}),
    ],
)  # fmt: skip
def test_a_fact_that_differs_turns_its_light_and_no_other(
    tmp_path: Path, name: str, facts: dict[str, Any]
) -> None:
    found = pair(tmp_path, facts)
    if name == "something new":
        assert found.pop(name) == "unknown"  # one of the two does not say
    else:
        assert found.pop(name) == "different"
    assert set(found.values()) == {"equal"}


def test_bits_may_differ_where_the_scale_mode_does(tmp_path: Path) -> None:
    assert pair(tmp_path, {"bits_per_value": 9.0})["bits"] == "by design"
    made_run(tmp_path / "c", "dual", number=2, facts={"bits_per_value": 8.5})
    assert states(tmp_path)["bits"] == "different"


def test_bits_that_follow_the_precision_are_no_design(tmp_path: Path) -> None:
    found = pair(tmp_path, {"bits_per_value": 4.0}, choices={"precision": "w4a8"})
    assert found["bits"] == "different"


def test_numbers_of_devices_do_not_matter(tmp_path: Path) -> None:
    for number in (0, 1):
        made_run(tmp_path / str(number), "single", number=number, facts={"device": f"cuda:{number}"})
    assert states(tmp_path)["kernel path"] == "equal"


def test_an_unquantized_run_has_no_calibration_to_differ_in(tmp_path: Path) -> None:
    facts = {"sites": [], "bits_per_value": None, "calibration_tokens": None, "x_proj_product": "decoded"}
    facts |= {"widths": {**FACTS["widths"], "x_proj": "w8a16"}}
    made_run(tmp_path / "a", "single", items={"divergence": windows(KL)})
    made_run(tmp_path / "f", "fp16", number=1, items={"divergence": windows(KL)}, facts=facts)
    assert set(states(tmp_path).values()) == {"equal"}


def test_seeds_are_equal_where_every_arm_has_all_of_them(tmp_path: Path) -> None:
    for seed in (0, 1):
        made_run(tmp_path / f"a{seed}", "single", seed=seed)
        made_run(tmp_path / f"b{seed}", "dual", seed=seed)
    assert states(tmp_path)["seed"] == "equal"
    made_run(tmp_path / "b2", "dual", seed=2)
    assert states(tmp_path)["seed"] == "different"


def test_values_are_told_by_label(tmp_path: Path) -> None:
    pair(tmp_path, {"kernels": "other"})
    light = next(light for light in lights(collect(tmp_path)) if light.name == "kernel path")
    assert light.values == {"single": "kkkkkkkk", "dual": "other"}


def test_lists_are_told_by_what_not_all_have(tmp_path: Path) -> None:
    pair(tmp_path, {"sites": ["ssm_input", "z"]})
    light = next(light for light in lights(collect(tmp_path)) if light.name == "bits")
    assert light.values == {"single": "without", "dual": "with z"}


def test_how_x_proj_reads_codes_says_nothing_of_a_run_without_them(tmp_path: Path) -> None:
    made_run(tmp_path / "a", "single")
    made_run(tmp_path / "f", "fp16", number=1, facts={"sites": ["z"], "x_proj_product": "decoded"})
    assert states(tmp_path)["x_proj reader"] == "equal"


def test_nothing_finished_has_no_state_to_tell(tmp_path: Path) -> None:
    made_run(tmp_path, "single", state="failed")
    assert all(not light.values for light in lights(collect(tmp_path)))
