"""The command: ``python run.py key=value ...`` for one run, ``python run.py -m ...`` for a study.

Composition and one call; torch is imported by the task, so that --help, --cfg and completion answer at once.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from dualscale_mamba.configuration import startup


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Run the task that the configuration names."""
    from dualscale_mamba import tasks

    return tasks.run(config)


if __name__ == "__main__":
    startup.register()
    sys.exit(startup.launch(main))
