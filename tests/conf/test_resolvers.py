"""What a run says it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.configuration.resolvers import chosen_options
from dualscale_mamba.tasks.record import RunFolder


def test_choices_are_plain_and_without_hydras_own() -> None:
    ours = {"model": "mamba1_tiny", "debug": None, "evaluation": ["a", "b"]}
    found = chosen_options(OmegaConf.create({"hydra/launcher": "basic", "hydra": "default", **ours}))
    assert found == ours
    assert json.loads(json.dumps(found)) == found


def test_a_run_and_the_line_that_it_belongs_to_name_the_same_choices(
    composed: Callable[..., DictConfig],
) -> None:
    config = composed("precision=w4a8")
    own = RunFolder.of(config).identity["choices"]
    assert own == chosen_options(HydraConfig.get().runtime.choices)
    assert (own["precision"], own["rounding"]) == ("w4a8", "nearest")
    assert not [group for group in own if group.startswith("hydra")]
