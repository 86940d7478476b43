"""The task as it is run: what it writes can be run, and what it predicts is what it gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from dualscale_mamba import tasks
from dualscale_mamba.configuration import instantiate, startup
from dualscale_mamba.configuration.validate import problems
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.quantization import sensitivity
from dualscale_mamba.sites import EMBEDDING, HEAD

Compose = Callable[..., DictConfig]
SMALL = [
    "debug=fast", "ops=reference", "task=allocate", "task.windows=2", "task.length=24",
    "precision.weights.group_size=32",
    "evaluation=[divergence]", "profiling=[]",
]  # fmt: skip
MODELS = {"mamba1": "random_tiny", "mamba2": "random_mamba2_tiny"}


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """Compose overrides, perhaps with a folder for --config-dir; everything is written below ``tmp_path``."""
    startup.register()

    def make(*overrides: str, extra: Path | None = None) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(startup.CONF), version_base="1.3"):
            more = [f"hydra.searchpath=[file://{extra}]"] if extra else []
            places = [f"paths.run={tmp_path / 'run'}", f"paths.cache={tmp_path / 'cache'}"]
            config = compose("config", [*places, *more, *overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(config.copy())
            with open_dict(config):
                del config["hydra"]
            return config

    yield make
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("family", MODELS)
def test_what_it_writes_can_be_run(
    family: str, composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"model={MODELS[family]}"
    tasks.run(composed(*SMALL, model, "task.budget.bits=6"))
    run, result = tmp_path / "run", read(tmp_path / "run" / "result.json")
    assert "predicted KL" in capsys.readouterr().out
    assert (run / "figure.png").stat().st_size > 10_000
    found = result["allocation"]
    assert set(found["widths"]) == set(
        load_pretrained(f"random:{'tiny' if family == 'mamba1' else 'mamba2-tiny'}").model.weight_layers()
    )
    assert found["bits"] <= 6
    assert result["metrics"]["allocation/bits"]["value"] == found["bits"]
    assert read(run / "sensitivity.json")["kl"] == found["sensitivity"]

    header = (run / "precision" / "allocated.yaml").read_text().splitlines()[:3]
    assert all(line.startswith("# ") for line in header)
    assert "--config-dir" in header[1]
    config = composed("debug=fast", "ops=reference", model, "precision=allocated", "profiling=[]", extra=run)
    assert not problems(config)
    recipe = instantiate.recipe(config)
    for layer, word in found["widths"].items():
        assert recipe.width_of(layer).startswith(word[:2]), layer
    assert recipe.width_of(HEAD) == found["widths"][HEAD]
    with open_dict(config):
        config.paths.run = str(tmp_path / "second")
    tasks.run(config)
    metrics = read(tmp_path / "second" / "result.json")["metrics"]
    name = "divergence/generated_heldout/kl"
    assert metrics[name]["value"] == pytest.approx(found["checked"]["allocated"]["kl"][name], rel=1e-6)


def test_a_killed_run_and_another_budget_measure_nothing_twice(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    true = sensitivity.Bench.divergence

    def counted(bench: sensitivity.Bench, start: int = 0) -> float:
        asked.append("")
        if len(asked) == 5:
            raise KeyboardInterrupt
        return true(bench, start)

    monkeypatch.setattr(sensitivity.Bench, "divergence", counted)
    settings = [*SMALL, "task.verify=false", "task.unit=block", "task.budget.bits=6"]
    with pytest.raises(KeyboardInterrupt):
        tasks.run(composed(*settings))
    tasks.run(composed(*settings))
    whole = 1 + 2 * 2 + 2 * 4  # the sites; embedding and head at two widths; two blocks at four
    assert len(asked) == whole + 1
    first = read(tmp_path / "run" / "result.json")["allocation"]
    tasks.run(composed(*settings[:-1], "task.budget.bits=null", "task.budget.latency=0.8"))
    assert len(asked) == whole + 1
    second = read(tmp_path / "run" / "result.json")["allocation"]
    assert second["sensitivity"] == first["sensitivity"]
    assert second["cost"] <= 0.8


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        (
            "task.budget.bits=3",
            r"task\.budget\.bits=3: allowed is at least 4\.\d+, the cheapest choice of all",
        ),
        (
            "task.budget.bits=null task.budget.bytes=1000",
            r"task\.budget\.bytes=1000: allowed is at least 202\d{3}",
        ),
        (
            "task.budget.bits=null task.budget.latency=0.1",
            r"task\.budget\.latency=0\.1: allowed is at least 0\.\d+",
        ),
    ],
)
def test_a_budget_that_nothing_meets_is_refused(budget: str, sentence: str, composed: Compose) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tasks.run(composed(*SMALL, "task.unit=block", *budget.split()))


def test_embedding_and_head_can_stay_as_they_are(composed: Compose, tmp_path: Path) -> None:
    tasks.run(
        composed(
            *SMALL, "task.outer=[]", "task.widths=[w8a8,w4a8]", "task.budget.bits=9", "task.verify=false"
        )
    )
    found = read(tmp_path / "run" / "result.json")["allocation"]
    assert not {EMBEDDING, HEAD} & set(found["widths"])
    assert set(found["widths"].values()) == {"w8a8"}
