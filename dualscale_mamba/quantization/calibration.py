"""Calibration: one pass over text, one histogram a site, saved and used again.

The saved statistics hold for every percentile, scale mode and set of sites: only what changes the values
themselves (weights, tokens, rotation, operators) or the grouping of the counts is part of the key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from dualscale_mamba.granularity import PerGroup
from dualscale_mamba.models.config import Mamba2Config
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.quantization.clusters import Arrangement
from dualscale_mamba.quantization.observation import observe
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.storage import read_checked, write_checked
from dualscale_mamba.sites import is_ssm_input, short_name

STATISTICS_VERSION = 3
ARRANGEMENT = "arrangement/"
_PARTS = ("counts", "minimum", "maximum", "assignment", "meta")


@dataclass
class Calibration:
    """Counted values of every site.

    Attributes:
        histograms: By full site name, e.g. ``layers.3.mixer.ssm_input``.
        tokens: Tokens that were run.
        key: Content hash of what the statistics depend on.
        arrangement: The order of channels in which they were counted; None where all stay in place.
        reused: Whether they were read from a file.
        path: That file, where they are kept in one.
    """

    histograms: dict[str, Histogram]
    tokens: int
    key: str = ""
    arrangement: Arrangement | None = None
    reused: bool = field(default=False, compare=False)
    path: Path | None = field(default=None, compare=False)

    def save(self, path: Path) -> None:
        """Write to ``path`` (safetensors) atomically.

        Raises:
            OSError: The disk is full or the folder may not be written.
        """
        tensors = {
            f"{name}/{part}": t for name, h in self.histograms.items() for part, t in h.state().items()
        }
        metadata = {"tokens": str(self.tokens), "key": self.key, "sites": json.dumps(list(self.histograms))}
        if self.arrangement is not None:
            # Copies: a histogram and the arrangement share the groups, and a file holds no tensor twice.
            tensors |= {f"{ARRANGEMENT}{name}": t.clone() for name, t in self.arrangement.state().items()}
            metadata["arranged"] = "yes"
        write_checked(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The content is not what was written.
        """
        tensors, metadata = read_checked(path)
        histograms = {
            name: Histogram.from_state({part: tensors[f"{name}/{part}"] for part in _PARTS})
            for name in json.loads(metadata["sites"])
        }
        order = {n.removeprefix(ARRANGEMENT): t for n, t in tensors.items() if n.startswith(ARRANGEMENT)}
        arrangement = Arrangement.from_state(order) if "arranged" in metadata else None
        return cls(histograms, int(metadata["tokens"]), metadata["key"], arrangement, reused=True)


def calibration_key(parts: Sequence[str], recipe: Recipe) -> str:
    """Content hash of the statistics: ``parts`` (weights, tokens, types, operators) and the recipe's share."""
    own = [str(STATISTICS_VERSION), f"rotate={recipe.rotate}", f"granularity={recipe.granularity!r}"]
    own += [f"grouped={','.join(recipe.grouped_sites)}", f"rotate_residual={recipe.rotate_residual}"]
    return sha256("\n".join([*parts, *own]).encode()).hexdigest()[:24]


def assignment_of(
    site: str, model: MambaLM, recipe: Recipe, arrangement: Arrangement | None
) -> Tensor | None:
    """The group of each channel of a site, by full name: int64 (channels,), or None for one code."""
    short = short_name(site)
    if short not in recipe.grouped_sites:
        return None
    if arrangement is None and isinstance(recipe.granularity, PerGroup):
        raise ValueError("per_group needs an arrangement: call arrange() before prepare()")
    clusters = None if arrangement is None else arrangement.clusters.get(site)
    return recipe.granularity.assignment(channels_of(model, short), clusters)


def channels_of(model: MambaLM, site: str) -> int:
    """Channels of a site that may have a code each: the SSM input, or B or C of Mamba-2."""
    config = model.config
    if isinstance(config, Mamba2Config) and not is_ssm_input(site):
        return config.n_groups * config.d_state
    return config.d_inner


def run_calibration(
    model: MambaLM, batches: Sequence[Tensor], recipe: Recipe, arrangement: Arrangement | None = None
) -> Calibration:
    """Feed ``batches`` of token ids (B, L) to the unquantized, prepared model and count every site.

    Args:
        model: Prepared with the same recipe and arrangement.
        batches: Token ids.
        recipe: Says the granularity of each site.
        arrangement: The groups of channels; required for ``per_group``.
    """
    histograms = {name: Histogram(assignment_of(name, model, recipe, arrangement)) for name in model.sites()}
    tokens = observe(model, batches, histograms, "calibrate")
    return Calibration(histograms, tokens, arrangement=arrangement)
