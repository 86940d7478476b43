"""Memory of this process, and of the device as torch allocates it: now, and at its worst."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
# Writing 5 there sets the peak of the resident set back (Linux, proc_pid_clear_refs(5)).
CLEAR = Path("/proc/self/clear_refs")

logger = logging.getLogger(__name__)


class Watched:
    """Bytes in use while something runs; made before it, asked after it.

    On CUDA ``reserved`` and ``peak`` are torch's own, of the device. On the CPU ``resident`` and ``resident_peak`` are
    the process's, as Linux counts them; elsewhere there are none.

    Args:
        device: Where the work is done. Its counter of the peak is set back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            CLEAR.write_text("5", encoding="ascii")
        except OSError as error:  # a container may forbid it: the peak is then that of the whole process
            logger.info("the peak of memory counts from the process's beginning (%s)", error)

    def bytes(self) -> dict[str, int]:
        """What is held now and what was at most."""
        if self._device.type == "cuda":
            reserved = torch.cuda.memory_reserved(self._device)
            return {"reserved": reserved, "peak": torch.cuda.max_memory_allocated(self._device)}
        found = _status()
        names = {"resident": "VmRSS", "resident_peak": "VmHWM"}
        return {name: found[key] for name, key in names.items() if key in found}


def _status() -> dict[str, int]:
    try:
        text = STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
