"""The multiruns of this process."""

from __future__ import annotations

from pathlib import Path

# Folders of the multiruns that were begun: what is left to compare when a job has failed, for then
# Hydra 1.3 calls no end-of-multirun callback.
begun: list[Path] = []
