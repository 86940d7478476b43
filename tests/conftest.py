"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

Compose = Callable[..., DictConfig]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; CUDA is skipped, aloud, where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Checkpoints with golden outputs and third-party evaluation data, which the project does not ship."""
    path = Path(os.environ.get("DUALSCALE_SHARED", ROOT.parent / "shared"))
    if not (path / "checkpoints").is_dir():
        pytest.skip(
            f"no checkpoints at {path}: set DUALSCALE_SHARED to the folder that holds checkpoints/ and data/"
        )
    return path


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """Compose configurations as the command does, without running anything; the run's folder is below ``tmp_path``."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from dualscale_mamba.configuration import startup

    startup.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(startup.CONF), version_base="1.3"):

        def make(*overrides: str) -> DictConfig:
            config = compose(
                "config", [f"paths.run={tmp_path / 'run'}", *overrides], return_hydra_config=True
            )
            HydraConfig.instance().set_config(config.copy())
            with open_dict(config):
                del config["hydra"]
            return config

        yield make
    HydraConfig.instance().cfg = None
