"""Only calibrate: save the statistics and show the code that each site would get."""

from __future__ import annotations

from dataclasses import asdict

from omegaconf import DictConfig, OmegaConf

from dualscale_mamba import environment
from dualscale_mamba.quantization.pipeline import turn_on
from dualscale_mamba.report import show_sites
from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.session import open_session

STATISTICS = "calibration.safetensors"


def run(config: DictConfig) -> None:
    """Write ``calibration.safetensors`` and ``result.json`` (without metrics) and print the sites."""
    folder = RunFolder.of(config)
    with open_session(config) as session:
        if not session.recipe.quantizes_activations:
            session.quantize()
            report = None
        else:
            calibration = session.calibrate()
            calibration.save(folder.path / STATISTICS)
            report = turn_on(session.model, calibration, session.recipe)
        content = {} if report is None else asdict(report)
        folder.write_result(
            {
                "task": "calibrate",
                "metrics": {},
                "sites": content.get("sites", []),
                "site_summary": content.get("summary", {}),
                "config": OmegaConf.to_container(config, resolve=True),
                "environment": environment.describe(str(session.device)),
                "hashes": session.hashes,
                "seconds": session.seconds,
            }
        )
    show_sites(content.get("sites", []), folder.path)
