"""Launchers with a fresh process for each job: ``local_gpus``, each on a GPU of its own, and ``isolated``.

It lies here because Hydra takes launchers from the name space package ``hydra_plugins`` only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dualscale_mamba.configuration import resolvers
from dualscale_mamba.errors import ConfigError

if TYPE_CHECKING:
    from dualscale_mamba.study.processes import End, Job, Slot

RUN = Path(__file__).resolve().parents[5] / "run.py"
VISIBLE = "CUDA_VISIBLE_DEVICES"
NAME_LENGTH = 8

# Workers of other launchers (joblib, submitit, ray) never run run.py's own lines. They import this module while they
# read Hydra's list of plugins, before they compose anything.
resolvers.register()


class JobFailedError(RuntimeError):
    """A job's process that did not end well."""


class ProcessLauncher(Launcher):
    """Runs each job as the ordinary command of a single run, in a process of its own.

    Args:
        gpus: Numbers (as torch counts them) or UUIDs of the GPUs to use; None for all that are visible.
        per_gpu: Jobs at a time on one GPU; more than one spoils measured latency.
        processes: Jobs at a time on whatever device they choose themselves; no GPU is assigned then.
    """

    def __init__(
        self, gpus: Sequence[int | str] | None = None, per_gpu: int = 1, processes: int | None = None
    ) -> None:
        self.gpus, self.per_gpu, self.processes = gpus, per_gpu, processes
        self.slots: list[Slot] = []
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See :class:`hydra.plugins.launcher.Launcher`.

        Raises:
            ConfigError: There is no such GPU, or a number that is not above 0.
        """
        self.hydra_context, self.config = hydra_context, config
        self.slots = slots(self.gpus, self.per_gpu, self.processes)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs and wait for them.

        Args:
            job_overrides: Of each job.
            initial_job_idx: Number of the first.

        Returns:
            In the order of the jobs; a job that failed has status FAILED and an exception that says why.
        """
        from dualscale_mamba.study.processes import run_all

        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = [self._config(list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        jobs = [
            self._job(config, overrides) for config, overrides in zip(configs, job_overrides, strict=True)
        ]
        # On a terminal the lines of several jobs would bury what the study says of itself.
        show = None if sys.stdout.isatty() else _show
        ends = run_all(jobs, self.slots, show)
        return [_returned(config, end) for config, end in zip(configs, ends, strict=True)]

    def _config(self, overrides: list[str], number: int) -> DictConfig:
        assert self.config is not None
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _job(self, config: DictConfig, overrides: Sequence[str]) -> Job:
        from dualscale_mamba.study.command import config_flags, job_arguments
        from dualscale_mamba.study.processes import Job

        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # the folder's name may ask for any part of it
        try:
            sweep, hydra = config.hydra.sweep, config.hydra
            folder, subdir = str(sweep.dir), str(sweep.subdir)
            arguments = job_arguments(overrides, folder, subdir, list(hydra.overrides.hydra), hydra.job.num)
            identity = {
                **{key: config.get(key) for key in ("name", "arm", "group")},
                "number": hydra.job.num,
                "overrides": list(hydra.overrides.task),
                "choices": resolvers.chosen_options(hydra.runtime.choices),
            }
        finally:
            HydraConfig.instance().cfg = before
        command = (sys.executable, str(RUN), *config_flags(sys.argv[1:]), *arguments)
        return Job(Path(subdir).name[:NAME_LENGTH], command, Path(folder).absolute() / subdir, identity)


def slots(gpus: Sequence[int | str] | None, per_gpu: int, processes: int | None) -> list[Slot]:
    """The places for jobs, each with the environment of its processes.

    Raises:
        ConfigError: There is no such GPU, or a number that is not above 0.
    """
    from dualscale_mamba.study.processes import Slot

    for key, value in (("per_gpu", per_gpu), ("processes", 1 if processes is None else processes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"hydra.launcher.{key}", value, "a whole number above 0")
    # Without buffers, so that the last lines before a kill are in the job's output.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)  # set by our own start; a job's mistake is one sentence
    if processes is not None:
        return [Slot(f"slot{number}", environment) for number in range(processes)]
    names = visible_gpus() if gpus is None else chosen_gpus(gpus, os.environ.get(VISIBLE))
    shown = [f"gpu{number}" for number in (range(len(names)) if gpus is None else gpus)]
    pairs = list(zip(shown, names, strict=True)) * per_gpu
    return [Slot(label, {**environment, VISIBLE: name}) for label, name in pairs]


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each GPU that torch sees.

    Raises:
        ConfigError: It sees none.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise ConfigError(
            "hydra/launcher",
            "local_gpus",
            "a launcher that needs no GPU, for none is visible here",
            "On CPUs use hydra/launcher=isolated (a fresh process per job) or hydra/launcher=joblib.",
        )
    return _named(os.environ.get(VISIBLE), count)


def chosen_gpus(gpus: Sequence[int | str], visible: str | None) -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls the chosen GPUs, where it may already hide some.

    Args:
        gpus: Numbers among the visible ones, or UUIDs.
        visible: Value of ``CUDA_VISIBLE_DEVICES`` in this process; None if it is not set.

    Raises:
        ConfigError: A number beyond the visible ones, or no GPU at all.
    """
    names = None if visible is None else _named(visible, len(visible.split(",")))
    if not gpus:
        raise ConfigError("hydra.launcher.gpus", "[]", "null or a list of GPUs as in [0,1]")
    for gpu in gpus:
        if isinstance(gpu, int) and not 0 <= gpu < (sys.maxsize if names is None else len(names)):
            among = "numbers from 0" if names is None else f"numbers below {len(names)} ({VISIBLE}={visible})"
            raise ConfigError("hydra.launcher.gpus", list(gpus), among)
    return [names[gpu] if names is not None and isinstance(gpu, int) else str(gpu) for gpu in gpus]


def _named(visible: str | None, count: int) -> list[str]:
    names = [str(number) for number in range(count)] if visible is None else visible.split(",")
    return [name.strip() for name in names if name.strip()][:count]


def _show(slot: str, job: str, line: str) -> None:
    sys.stdout.write(f"[{slot} {job}] {line}\n")
    sys.stdout.flush()


def _returned(config: DictConfig, end: End) -> JobReturn:
    from dualscale_mamba.study.files import read_json
    from dualscale_mamba.study.folder import RESULT

    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task)
    hydra = OmegaConf.create({"hydra": config.hydra})
    with open_dict(config):
        del config["hydra"]
    returned = JobReturn(overrides, config, hydra, str(Path.cwd()), "run")  # type: ignore[arg-type]
    if end.error:
        returned.status = JobStatus.FAILED
        returned.return_value = JobFailedError(end.error)
        return returned
    metrics = (read_json(end.job.folder / RESULT) or {}).get("metrics", {})
    returned.status = JobStatus.COMPLETED
    returned.return_value = metrics.get(config.get("objective"), {}).get("value")
    return returned


_TARGET = f"{__name__}.{ProcessLauncher.__name__}"
ConfigStore.instance().store(
    group="hydra/launcher",
    name="local_gpus",
    node={"_target_": _TARGET, "gpus": None, "per_gpu": 1},
    provider="dualscale_mamba",
)
ConfigStore.instance().store(
    group="hydra/launcher",
    name="isolated",
    node={"_target_": _TARGET, "processes": 1},
    provider="dualscale_mamba",
)
