"""Overwriting a device's caches, so that what is timed next reads from memory."""

from __future__ import annotations

import re
from pathlib import Path

import torch

# The last level of the first core's caches, where Linux tells it.
LAST_LEVEL = "/sys/devices/system/cpu/cpu0/cache/index3/size"
# Of a processor that does not tell.
ASSUMED = 64 * 2**20


class Flush:
    """Write twice the bytes of the last-level cache.

    Args:
        device: Whose cache.
    """

    def __init__(self, device: torch.device) -> None:
        self._bytes = torch.empty(2 * last_level_bytes(device), dtype=torch.int8, device=device)

    def __call__(self) -> None:
        """Overwrite it."""
        self._bytes.zero_()


def last_level_bytes(device: torch.device) -> int:
    """Size of the largest cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        found = re.fullmatch(r"(\d+)([KM])", Path(LAST_LEVEL).read_text(encoding="ascii").strip())
    except OSError:
        found = None
    return int(found[1]) * {"K": 2**10, "M": 2**20}[found[2]] if found else ASSUMED
