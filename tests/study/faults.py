"""A task whose seed says how it goes wrong: 0 not at all, 1 by a defect, 2 for want of memory."""

from __future__ import annotations

import resource
from pathlib import Path

from omegaconf import DictConfig

from dualscale_mamba.tasks import ptq

ROOM = 64 << 20  # bytes that may still be had


def run(config: DictConfig) -> None:
    if config.seed == 1:
        raise RuntimeError("deliberate")
    if config.seed == 2:
        exhaust_memory()
    ptq.run(config)


def exhaust_memory() -> None:
    """Ask for what the system will not give, as a job does whose model is too large."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    try:
        bytearray(ROOM * 64)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
