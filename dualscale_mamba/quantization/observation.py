"""Run a model over text while chosen sites show their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.progress import bar
from dualscale_mamba.quantization.site import Statistic


def observe(
    model: MambaLM, batches: Sequence[Tensor], statistics: Mapping[str, Statistic], label: str
) -> int:
    """Feed ``batches`` of token ids (B, L) to the model; the sites are released whatever happens.

    Args:
        model: Not converted.
        batches: Token ids.
        statistics: What sees the values of a site, by full site name.
        label: Of the progress bar.

    Returns:
        Tokens that were run.
    """
    sites = model.sites()
    for name, statistic in statistics.items():
        sites[name].statistic = statistic
    tokens = 0
    try:
        with torch.inference_mode():
            for batch in bar(batches, label, "batch"):
                model(batch.to(model.device), last_only=True)
                tokens += batch.numel()
    finally:
        for name in statistics:
            sites[name].statistic = None
    return tokens
