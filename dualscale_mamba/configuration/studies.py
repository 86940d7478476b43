"""The multiruns of this process."""

from __future__ import annotations

from pathlib import Path

# Folder and line of each multirun that was begun: what is left to compare when a job has failed, for then
# Hydra 1.3 calls no end-of-multirun callback.
begun: list[tuple[Path, str]] = []
