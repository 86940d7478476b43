"""A quantized checkpoint in the place of a model: it runs in the types in which it was saved, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.config import DTYPES, ModelConfig, name_of_dtype
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.quantization.checkpoint import restore
from dualscale_mamba.quantization.manifest import Manifest

TYPES = ("dtype", "residual_dtype", "state_dtype")


def reload(
    manifest: Manifest,
    config: ModelConfig,
    types: Sequence[torch.dtype | None],
    implementation: str = "native",
    device: torch.device | str = "cpu",
) -> MambaLM:
    """The model as it was saved.

    Args:
        manifest: Of the checkpoint.
        config: Its sizes.
        types: What is asked for: ``dtype``, ``residual_dtype``, ``state_dtype``; None takes that of the checkpoint.
        implementation: Only ``native`` runs quantized models.
        device: Where the model shall lie.

    Raises:
        ConfigError: Another type or implementation is asked for.
        CheckpointError: The checkpoint is not what was written.
    """
    if implementation != "native":
        raise ConfigError("model.implementation", implementation, f"native: {manifest.folder} is quantized")
    for name, asked in zip(TYPES, types, strict=True):
        if asked not in (None, DTYPES[manifest[name]]):
            raise ConfigError(
                f"model.{name}", name_of_dtype(asked), f"{manifest[name]}, in which {manifest.folder} was saved",
                "Its logits are those of that type; quantize its source again in another one.",
            )  # fmt: skip
    return restore(manifest, config, device)
