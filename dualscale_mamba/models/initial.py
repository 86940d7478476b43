"""Random weights with the statistics of the official initialization, for tests and debugging."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig
from dualscale_mamba.models.language_model import MambaLM

# Models of `random:NAME`; the vocabulary is that of the embedded tokenizer.
RANDOM_SIZES: dict[str, ModelConfig] = {
    "tiny": MambaConfig(d_model=64, n_layer=2, vocab_size=4096),
    "mamba2-tiny": Mamba2Config(d_model=64, n_layer=2, vocab_size=4096, d_state=16, head_dim=16, n_groups=2),
}
DELTA_RANGE = (1e-3, 1e-1)
DECAY_RANGE = (1.0, 16.0)  # of -A in Mamba-2


def initialize(config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """fp32 weights of a :class:`MambaLM` by name, the same for the same seed on every machine's ``device``."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in MambaLM(config).state_dict().items()}
    weights = {name: _initial(name, shape, config, generator) for name, shape in sorted(shapes.items())}
    if config.tie_embeddings:
        weights["lm_head.weight"] = weights["backbone.embedding.weight"]
    return weights


def _initial(name: str, shape: torch.Size, config: ModelConfig, generator: torch.Generator) -> Tensor:
    last = name.rsplit(".", 1)[-1]
    if last == "A_log" and config.family == "mamba2":
        low, high = DECAY_RANGE
        return torch.log(torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low)
    if last == "A_log":
        rates = torch.arange(1, shape[1] + 1, dtype=torch.float32, device=generator.device)
        return torch.log(rates).repeat(shape[0], 1)
    if last == "D" or "norm" in name:
        return torch.ones(shape, device=generator.device)
    if last == "dt_bias":
        low, high = (math.log(bound) for bound in DELTA_RANGE)
        delta = torch.exp(
            torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low
        )
        return torch.log(torch.expm1(delta))  # the inverse of softplus
    if "embedding" in name or "lm_head" in name:
        return torch.randn(shape, generator=generator, device=generator.device) * 0.02
    fan_in = config.d_conv if "conv1d" in name else shape[-1]
    values = (torch.rand(shape, generator=generator, device=generator.device) * 2 - 1) / math.sqrt(fan_in)
    return values / math.sqrt(config.n_layer) if "out_proj" in name else values
