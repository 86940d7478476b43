"""A new format, observer, evaluation, profiler and task are one callable and one file each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from dualscale_mamba import tasks
from dualscale_mamba.configuration.validate import problems

TOY_CODE = '''
from dataclasses import dataclass
import torch
from dualscale_mamba.evaluation.base import Evaluated, Metric
from dualscale_mamba.formats.base import table_code
from dualscale_mamba.observers.percentile import Percentile

@dataclass(frozen=True)
class Ternary:
    """Three levels."""
    needs_floor: bool = False
    def fit(self, range_, histogram=None):
        inner = range_.clamped().inner[:, None]
        return table_code(torch.cat([-inner, torch.zeros_like(inner), inner], dim=1))
    def variants(self):
        return [self]

@dataclass(frozen=True)
class Median(Percentile):
    """The threshold above three quarters of the values."""
    percentile: float = 75.0

@dataclass(frozen=True)
class Parameters:
    """Counts parameters."""
    def check(self, data_root):
        return None
    def files(self, data_root):
        return []
    def __call__(self, context):
        count = sum(p.numel() for p in context.model.parameters())
        return Evaluated({"parameters": Metric(float(count), "", "")})

def profile_nothing():
    return lambda subject: {"nothing": Metric(0.0, "s", "lower")}
'''
TOY_FILES = {
    "scale_mode/ternary.yaml": "# Three levels.\n_target_: toy_extension.Ternary\n",
    "observer/median.yaml": "# Three quarters.\n_target_: toy_extension.Median\n",
    "evaluation/parameters.yaml": "# @package evaluation.parameters\n_target_: toy_extension.Parameters\n",
    "profiling/nothing.yaml": "# @package profiling.nothing\n_target_: toy_extension.profile_nothing\n",
}


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configuration files, and the module that they name."""
    for name, text in TOY_FILES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    (tmp_path / "toy_extension.py").write_text(TOY_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "conf"


def test_files_outside_the_package_run_through_the_whole_pipeline(
    composed: Callable[..., DictConfig], toys: Path
) -> None:
    config = composed(
        f"hydra.searchpath=[file://{toys}]",
        "debug=fast",
        "ops=reference",
        "precision=ssm_input",
        "scale_mode=ternary",
        "observer=median",
        "evaluation=[perplexity,divergence,parameters]",
        "profiling=[nothing]",
    )
    assert problems(config) == []
    tasks.run(config)
    result = json.loads((Path(config.paths.run) / "result.json").read_text())
    assert {site["format"] for site in result["sites"]} == {"ternary"}
    assert {site["observer"] for site in result["sites"]} == {"Median"}
    assert all(site["codes_used"] <= 3 for site in result["sites"])
    assert result["metrics"]["parameters"]["value"] > 1000
    assert result["metrics"]["nothing"] == {"value": 0.0, "unit": "s", "better": "lower"}
    assert result["metrics"]["divergence/generated_heldout/kl"]["value"] > 0


# Every study that a format may be in, with what names it there, as small as it goes.
STUDIES = {
    "isolation": ["precision=ssm_input", "quantize.sites=[B,conv_input]", "scale_mode=ternary"],
    "all but one": ["precision.activations.sites=[-z]", "quantize.sites=[all]", "scale_mode=ternary"],
    "one layer": ["precision=ssm_input", "quantize.layers=1", "scale_mode=ternary"],
    "a site's own": ["precision=w8a8", "scale_mode=dual", "quantize.formats={B: ternary}"],
    "other text": ["calibration.source=python_docs/1of2", "precision=ssm_input", "scale_mode=ternary"],
    "a channel": ["granularity=per_channel", "precision=ssm_input", "scale_mode=ternary"],
    "fidelity": ["task=fidelity", "task.formats=[ternary,dual]", "task.percentiles=[95]", "task.objective=null"],
    "stress": ["task=stress", "task.tokens=32", "task.channels=8", "task.percentiles=[99]"],
}  # fmt: skip


@pytest.mark.parametrize("study", STUDIES)
def test_a_new_format_runs_through_every_study(
    composed: Callable[..., DictConfig], toys: Path, study: str
) -> None:
    config = composed(
        f"hydra.searchpath=[file://{toys}]", "debug=fast", "ops=reference", "evaluation=[perplexity,divergence]",
        "profiling=[]", *STUDIES[study],
    )  # fmt: skip
    assert problems(config) == []
    tasks.run(config)
    run = Path(config.paths.run)
    result = json.loads((run / "result.json").read_text())
    if study in ("fidelity", "stress"):
        assert ",ternary," in (run / f"{study}.csv").read_text()
        assert (run / "figure.png").is_file()
        assert all((run / name).is_file() == (study == "fidelity") for name in ("levels.png", "drift.png"))
    else:
        assert "ternary" in {site["format"] for site in result["sites"]}
        assert result["metrics"]["divergence/generated_heldout/kl"]["value"] > 0
