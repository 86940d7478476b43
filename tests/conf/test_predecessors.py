"""The two predecessors are arms that compose as what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig

from dualscale_mamba.configuration.startup import CONF
from dualscale_mamba.configuration.validate import problems
from dualscale_mamba.formats.three_segments import ThreeSegments

Compose = Callable[..., DictConfig]
SIMULATED = sorted((CONF / "scale_mode" / "simulated").glob("*.yaml"))


@pytest.mark.parametrize("model", ["mamba1_tiny", "mamba2_tiny"])
def test_recipe_of_quamba_is_w8a8_with_a_clipped_single_scale(composed: Compose, model: str) -> None:
    config = composed("experiment=quamba", f"model={model}")
    assert problems(config) == []
    plain = composed("precision=w8a8", "scale_mode=single", "observer.percentile=99.95", f"model={model}")
    assert config.precision == plain.precision
    assert config.precision.rotate is True
    assert config.scale_mode == plain.scale_mode
    assert config.observer == plain.observer


@pytest.mark.parametrize("path", SIMULATED, ids=lambda path: path.stem)
def test_simulated_formats_compose_and_say_so(composed: Compose, path: Path) -> None:
    name = path.stem
    config = composed(f"scale_mode=simulated/{name}", "observer.percentile=99.95")
    assert problems(config) == []
    assert "simulated" in config.name
    assert "/" not in config.name


@pytest.mark.parametrize("path", SIMULATED, ids=lambda path: path.stem)
def test_simulated_formats_are_not_saved(composed: Compose, path: Path, tmp_path: Path) -> None:
    (found,) = problems(composed(f"scale_mode=simulated/{path.stem}", f"save={tmp_path / 'made'}"))
    assert "scale_mode is only simulated" in str(found)


def test_three_segments_are_the_file_of_that_name(composed: Compose) -> None:
    config = composed("scale_mode=simulated/three_segments")
    assert isinstance(instantiate(config.scale_mode), ThreeSegments)
