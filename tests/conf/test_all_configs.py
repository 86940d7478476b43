"""Every file of conf/ and sweeps/ composes, is valid and can be made into objects."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.configuration import instantiate
from dualscale_mamba.configuration.startup import CONF
from dualscale_mamba.configuration.validate import problems

Compose = Callable[..., DictConfig]
ROOT = CONF.parent
LISTS = ("evaluation", "profiling")
# A search has no jobs before it runs.
SWEEPS = sorted(
    path.stem for path in (ROOT / "sweeps").glob("*.yaml") if "  search:\n" not in path.read_text()
)
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml") if path.parent.name != "hydra")
# What a machine may lack: third-party data, local checkpoints, the packages of other trackers.
NEEDS = ("data.root=None", "paths.checkpoints=None", "model.source=", "dualscale_mamba[trackers]")
SECONDS_OF_CPU = 2.0
# What a file asks of others, as its first line says.
COMPANIONS = {
    "scale_mode/dual_channel": ["granularity=per_channel"],
    "scale_mode/dual_mask": ["precision.x_proj_reads=decoded"],
    "scale_mode/dual_sparse": ["precision.x_proj_reads=decoded"],
}


def test_every_file_begins_with_what_it_is() -> None:
    headless = [
        path
        for path in [*CONF.rglob("*.yaml"), *(ROOT / "sweeps").glob("*.yaml")]
        if path.read_text()[0] != "#"
    ]
    assert not headless


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_composes_and_instantiates(composed: Compose, path: Path) -> None:
    group, name = path.parent.name, path.stem
    option = f"{group}=[{name}]" if group in LISTS else f"{group}={name}"
    config = composed(option, *COMPANIONS.get(f"{group}/{name}", []))
    found = [problem for problem in problems(config) if not any(need in problem for need in NEEDS)]
    assert found == []
    assert instantiate.recipe(config) is not None
    assert callable(instantiate.task(config))
    assert isinstance(config.name, str)


def expanded(sweep: str, composed: Compose) -> list[list[str]]:
    """The overrides of every job of a stored study, by the sweeper that runs it."""
    whole = composed(f"sweeps={sweep}")
    settings = HydraConfig.get().sweeper
    made: Any = Plugins.instance().class_name_to_class[settings["_target_"]]
    sweeper = made(settings.max_batch_size, settings.params, settings.grids)
    parsed = OverridesParser.create().parse_overrides([*sweeper._parse_config(), f"sweeps={sweep}"])
    (jobs,) = sweeper.split_arguments(parsed, None)
    assert whole.group == sweep
    return list(jobs)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweep_expands_into_valid_jobs(composed: Compose, sweep: str) -> None:
    jobs = expanded(sweep, composed)
    assert len(jobs) >= 3
    configs = [composed(*job) for job in jobs]
    assert all(problems(config) == [] for config in configs)
    different = {OmegaConf.to_yaml(config) for config in configs}
    assert len(different) == len(jobs)
    assert {"baseline", "treatment"} <= {config.arm for config in configs}


def test_demo_compares_five_modes(composed: Compose) -> None:
    modes = {
        override
        for job in expanded("scale_modes", composed)
        for override in job
        if override.startswith("scale_mode=")
    }
    assert {
        "scale_mode=fp16",
        "scale_mode=single",
        "scale_mode=control",
        "scale_mode=affine",
        "scale_mode=dual",
    } <= modes


@pytest.mark.parametrize(
    "arguments", [["--cfg", "job"], ["--help"], ["--info", "searchpath"], ["-sc", "query=bash"]]
)
def test_composition_is_fast_and_without_torch(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{str(ROOT / 'run.py')!r}, *{arguments!r}]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": "python run.py scale_m"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS_OF_CPU


def test_sweeps_are_a_group_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "sweeps=three_groups", "--cfg", "hydra"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "experiment: baseline,control,treatment" in done.stdout, done.stderr
