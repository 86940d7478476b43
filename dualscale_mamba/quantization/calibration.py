"""Calibration: one pass over text, one histogram a site, saved and used again.

The saved statistics hold for every percentile, scale mode and set of sites: only what changes the values
themselves (weights, tokens, rotation, operators) or the grouping of the counts is part of the key.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.site import Site

log = logging.getLogger(__name__)
STATISTICS_VERSION = 1


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
            f"{name}/{part}": t.contiguous()
            for name, h in self.histograms.items()
            for part, t in h.state().items()
        }
        metadata = {"tokens": str(self.tokens), "key": self.key, "sites": json.dumps(list(self.histograms))}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, str(partial), metadata)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` wrote."""
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            parts = ("counts", "minimum", "maximum", "meta")
            histograms = {
                name: Histogram.from_state({part: file.get_tensor(f"{name}/{part}") for part in parts})
                for name in json.loads(metadata["sites"])
            }
        return cls(histograms, int(metadata["tokens"]), metadata["key"], reused=True)


def calibration_key(parts: Sequence[str], recipe: Recipe) -> str:
    """Content hash of the statistics: ``parts`` (weights, tokens, types, operators) and the recipe's share."""
    own = [str(STATISTICS_VERSION), f"rotate={recipe.rotate}", f"granularity={recipe.granularity.name}"]
    own += [f"grouped={','.join(recipe.scale_mode_sites)}"]
    return sha256("\n".join([*parts, *own]).encode()).hexdigest()[:24]


@contextmanager
def observing(
    sites: dict[str, Site], recipe: Recipe, channels: dict[str, int]
) -> Iterator[dict[str, Histogram]]:
    """Attach a histogram to every site, and detach them whatever happens."""
    histograms: dict[str, Histogram] = {}
    for name, site in sites.items():
        short = name.rsplit(".", 1)[-1]
        histograms[name] = Histogram(recipe.groups_of(short, channels[short]))
        site.histogram = histograms[name]
    try:
        yield histograms
    finally:
        for site in sites.values():
            site.histogram = None


def run_calibration(model: MambaLM, batches: Sequence[Tensor], recipe: Recipe) -> Calibration:
    """Feed ``batches`` of token ids (B, L) to the unquantized (already rotated) model and count every site."""
    channels = {"ssm_input": model.config.d_inner}
    sites = model.sites()
    shorts = {name.rsplit(".", 1)[-1] for name in sites}
    with (
        observing(sites, recipe, {s: channels.get(s, 1) for s in shorts}) as histograms,
        torch.inference_mode(),
    ):
        tokens = 0
        for batch in tqdm(batches, desc="calibrate", unit="batch", disable=None, leave=False):
            model(batch.to(model.device), last_only=True)
            tokens += batch.numel()
    return Calibration(histograms, tokens)


def calibrate(
    model: MambaLM,
    batches: Sequence[Tensor],
    recipe: Recipe,
    cache_dir: Path | None = None,
    key: str = "",
) -> Calibration:
    """Statistics of every site, read from ``cache_dir`` when they are there.

    Args:
        model: Prepared, not yet converted.
        batches: Token ids, each (B, L).
        recipe: Says the granularity of each site.
        cache_dir: Where statistics are kept, or None to compute them always.
        key: From :func:`calibration_key`; required with ``cache_dir``.
    """
    if cache_dir is None:
        return run_calibration(model, batches, recipe)
    path = cache_dir / "calibration" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        if path.exists():
            try:
                return Calibration.load(path)
            except Exception as error:  # a damaged file must not stop a run that can compute it again
                log.warning(
                    "calibration statistics %s cannot be read (%s); computing them again", path, error
                )
        calibration = run_calibration(model, batches, recipe)
        calibration.key = key
        calibration.save(path)
    return calibration
