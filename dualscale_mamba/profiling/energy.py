"""Energy of a GPU, by the counter that NVML reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.models.graphs import graphed
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.latency import Drive, wait

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Energy:
    """Joules a token while prompts are read and while tokens are made, and the mean power of each.

    The counter moves some ten times a second and counts the whole GPU, idle draw included: the work is repeated for
    ``seconds``, and nothing else may run there. Without a GPU, or without the package ``nvidia-ml-py``, there is
    nothing to measure and no metric.

    Args:
        batch_sizes: Sequences at once.
        prompt_lengths: Tokens of the prompt.
        seconds: Of work, at least, for each number.
        cuda_graphs: Whether the model replays CUDA graphs of its steps and prefills, where it can.
    """

    batch_sizes: tuple[int, ...] = (1,)
    prompt_lengths: tuple[int, ...] = (128,)
    seconds: float = 3.0
    cuda_graphs: bool = True

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> dict[str, Metric]:
        """See :class:`~dualscale_mamba.profiling.base.Profiler`."""
        counter = counter_of(subject.device)
        metrics: dict[str, Metric] = {}
        if counter is None or not hasattr(subject.model, "allocate_cache"):
            return metrics
        model, _ = graphed(subject.model, self.cuda_graphs)
        for batch_size in self.batch_sizes:
            for length in self.prompt_lengths:
                drive = Drive(model, batch_size, length, subject.device)
                drive.fill()
                for kind, work, tokens in (
                    ("prefill", drive.prefill, batch_size * length),
                    ("decode", drive.step, batch_size),
                ):
                    metrics |= self._measure(f"{kind}/{drive.name}", work, tokens, counter, drive.device)
        return metrics

    def _measure(
        self,
        where: str,
        work: Callable[[], object],
        tokens: int,
        counter: Callable[[], float],
        device: torch.device,
    ) -> dict[str, Metric]:
        work()
        wait(device)
        calls, joules, began = 0, counter(), time.perf_counter()
        while (spent := time.perf_counter() - began) < self.seconds:
            work()
            wait(device)
            calls += 1
        joules = counter() - joules
        return {
            f"energy/{where}/joules_per_token": Metric(joules / (calls * tokens), "J/token", "lower"),
            f"energy/{where}/watts": Metric(joules / spent, "W", "lower"),
        }


def counter_of(device: torch.device) -> Callable[[], float] | None:
    """Joules since the driver was loaded, as a function; None, with a word in the log, where it cannot be read."""
    if device.type != "cuda":
        logger.info("energy is measured on GPUs alone: skipped")
        return None
    try:
        import pynvml
    except ImportError:
        logger.warning("energy needs the package nvidia-ml-py (pip install nvidia-ml-py): skipped")
        return None
    library: Any = pynvml
    try:
        library.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = library.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError as error:
        logger.warning("NVML does not tell the energy of %s (%s): skipped", device, error)
        return None
    return lambda: float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
