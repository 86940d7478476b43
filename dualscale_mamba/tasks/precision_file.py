"""An allocation as a file of the group ``precision``, for Hydra's ``--config-dir``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.report.tables import near
from dualscale_mamba.study.files import write_text

NAME = "allocated"
HEADER = """\
# A width for each layer of {model}, chosen by task=allocate within {budget}.
# Type: python run.py --config-dir {folder} model={model} precision={name}
# The layers are those of this model; all else is as the precision from which it was made ({base}) says.
"""


def write_precision(folder: Path, config: DictConfig, widths: Mapping[str, str]) -> Path:
    """Write ``precision/allocated.yaml`` below a run's folder.

    Args:
        folder: Of the run.
        config: Its configuration: everything but the widths is taken from its precision.
        widths: By layer name.
    """
    precision: Any = OmegaConf.to_container(config.precision, resolve=True)
    base = precision["name"]
    content = {**precision, "name": NAME, "layers": dict(widths)}
    limit = next((f"{key}={value}" for key, value in config.task.budget.items() if value is not None), "")
    head = HEADER.format(
        model=config.model.name, budget=f"task.budget.{limit}", folder=near(folder), name=NAME, base=base
    )
    path = folder / "precision" / f"{NAME}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, head + OmegaConf.to_yaml(OmegaConf.create(content)))
    return path
