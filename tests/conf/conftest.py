"""Compose configurations as the command does, without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from dualscale_mamba.configuration import startup

Compose = Callable[..., DictConfig]


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """Compose ``overrides``; the run's folder is below ``tmp_path``."""
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
