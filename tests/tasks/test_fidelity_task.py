"""The task as it is run: a line for every format, and proposals that can be run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba import tasks
from dualscale_mamba.configuration import instantiate
from dualscale_mamba.configuration.validate import problems
from dualscale_mamba.observers.per_layer import PerLayer

Compose = Callable[..., DictConfig]
SMALL = [
    "debug=fast", "ops=reference", "task=fidelity", "task.windows=2", "task.length=24", "task.batch_size=2",
    "task.percentiles=[95,99.9]", "task.candidates=2", "task.formats=[single,dual,fp8_e4m3]", "evaluation=[]",
    "profiling=[]",
]  # fmt: skip


@pytest.mark.parametrize(("model", "site"), [("random_tiny", "ssm_input"), ("random_mamba2_tiny", "x")])
def test_what_it_proposes_can_be_run(
    model: str, site: str, composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    granularities = "task.granularities=[per_tensor,per_channel,per_group]"
    config = composed(*SMALL, f"model={model}", granularities)
    tasks.run(config)
    run = tmp_path / "run"
    lines = list(csv.DictReader((run / "fidelity.csv").open()))
    assert len(lines) == 2 * 3 * 3 * 2  # layers, granularities, formats, percentiles
    assert {line["site"] for line in lines} == {f"layers.{i}.mixer.{site}" for i in range(2)}
    result = json.loads((run / "result.json").read_text())
    assert len(result["fidelity"]["means"]) == 3 * 3 * 2
    assert (run / "figure.png").stat().st_size > 10_000
    assert "observer=proposed" in capsys.readouterr().out
    shares: dict[str, list[float]] = {}
    for row in csv.DictReader((run / "channels.csv").open()):
        shares.setdefault(row["site"], []).append(float(row["outlier_share"]))
    assert len(shares) == 2
    for own in shares.values():  # one in a hundred lies beyond the threshold of 99 %, to a bin's width
        assert sum(own) / len(own) == pytest.approx(0.01, abs=0.006)
    assert (run / "channels.png").stat().st_size > 5_000

    proposed = OmegaConf.load(run / "observer" / "proposed.yaml")
    again = composed("debug=fast", "ops=reference", f"model={model}", "profiling=[]", "evaluation=[]")
    again.observer = proposed
    assert problems(again) == []
    observer = instantiate.recipe(again).observer
    assert isinstance(observer, PerLayer)
    tasks.run(again)
    rows = {row["name"]: row for row in json.loads((run / "result.json").read_text())["sites"]}
    for name, settings in observer.sites.items():
        assert rows[name]["percentile"] == settings["percentile"]


def test_without_an_objective_the_model_is_not_asked(composed: Compose, tmp_path: Path) -> None:
    tasks.run(composed(*SMALL, "task.objective=null", "task.granularities=[per_tensor]"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "proposals" not in result["fidelity"]
    assert not (tmp_path / "run" / "observer").exists()


def test_a_format_of_the_users_own_takes_part(composed: Compose, tmp_path: Path) -> None:
    """One file beside the project's own, found by --config-dir or hydra.searchpath."""
    (tmp_path / "more" / "scale_mode").mkdir(parents=True)
    source = "_target_: dualscale_mamba.formats.dual.Dual\nfine_codes: 128\nheadroom: 1.0\n"
    (tmp_path / "more" / "scale_mode" / "mine.yaml").write_text(source)
    own = [*SMALL, "task.objective=null", "task.formats=[dual,mine]"]
    assert "task.formats=mine: allowed is one of affine" in problems(composed(*own))[0]
    config = composed(*own, f"hydra.searchpath=[file://{tmp_path / 'more'}]")
    assert problems(config) == []
    tasks.run(config)
    lines = list(csv.DictReader((tmp_path / "run" / "fidelity.csv").open()))
    assert {line["format"] for line in lines} == {"dual", "mine"}
