"""Calibration: one pass over text, one histogram a site, saved and used again.

The saved statistics hold for every percentile, scale mode and set of sites: only what changes the values
themselves (weights, tokens, rotation, operators) or the grouping of the counts is part of the key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from dualscale_mamba.granularity import PerGroup
from dualscale_mamba.models.config import Mamba2Config
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.quantization.clusters import Arrangement
from dualscale_mamba.quantization.observation import observe
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.storage import stored, write_atomically
from dualscale_mamba.sites import is_ssm_input, short_name

STATISTICS_VERSION = 2


@dataclass
class Calibration:
    """Counted values of every site.

    Attributes:
        histograms: By full site name, e.g. ``layers.3.mixer.ssm_input``.
        tokens: Tokens that were run.
        key: Content hash of what the statistics depend on.
    """

    histograms: dict[str, Histogram]
    tokens: int
    key: str = ""
    reused: bool = field(default=False, compare=False)

    def save(self, path: Path) -> None:
        """Write to ``path`` (safetensors) atomically."""
        tensors = {
            f"{name}/{part}": t for name, h in self.histograms.items() for part, t in h.state().items()
        }
        metadata = {"tokens": str(self.tokens), "key": self.key, "sites": json.dumps(list(self.histograms))}
        write_atomically(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` wrote."""
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            parts = ("counts", "minimum", "maximum", "assignment", "meta")
            histograms = {
                name: Histogram.from_state({part: file.get_tensor(f"{name}/{part}") for part in parts})
                for name in json.loads(metadata["sites"])
            }
        return cls(histograms, int(metadata["tokens"]), metadata["key"], reused=True)


def calibration_key(parts: Sequence[str], recipe: Recipe) -> str:
    """Content hash of the statistics: ``parts`` (weights, tokens, types, operators) and the recipe's share."""
    own = [str(STATISTICS_VERSION), f"rotate={recipe.rotate}", f"granularity={recipe.granularity!r}"]
    own += [f"grouped={','.join(recipe.grouped_sites)}"]
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
    return Calibration(histograms, observe(model, batches, histograms, "calibrate"))


def calibrate(
    model: MambaLM,
    batches: Sequence[Tensor],
    recipe: Recipe,
    cache_dir: Path | None = None,
    key: str = "",
    arrangement: Arrangement | None = None,
) -> Calibration:
    """Statistics of every site, read from ``cache_dir`` when they are there.

    Args:
        model: Prepared, not yet converted.
        batches: Token ids, each (B, L).
        recipe: Says the granularity of each site.
        cache_dir: Where statistics are kept, or None to compute them always.
        key: From :func:`calibration_key`; required with ``cache_dir``.
        arrangement: From :func:`~dualscale_mamba.quantization.clusters.arrange`.
    """
    if cache_dir is None:
        return run_calibration(model, batches, recipe, arrangement)
    return stored(
        cache_dir / "calibration" / f"{key}.safetensors",
        Calibration,
        lambda: replace(run_calibration(model, batches, recipe, arrangement), key=key),
    )
