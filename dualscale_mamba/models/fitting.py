"""From the tensors of a checkpoint to the weights of a model: names, shapes and types, complete and finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dualscale_mamba.errors import CheckpointError
from dualscale_mamba.models import names
from dualscale_mamba.models.config import ModelConfig
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.weights import fit_report


def fitted(
    config: ModelConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, where: str
) -> dict[str, Tensor]:
    """Weights under this package's names, shapes and types, complete and finite.

    Args:
        config: The sizes that they must have.
        weights: As read, in either layout.
        dtype: Of linear weights.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: Weights are missing, unexpected, of a wrong shape or not finite.
    """
    found = {names.rename(name, names.FROM_CHECKPOINT): value for name, value in weights.items()}
    for name, value in found.items():
        if names.is_conv_weight(name) and value.dim() == 3 and value.shape[1] == 1:
            found[name] = value[:, 0]
    _check_tie(config, found, where)
    with torch.device("meta"):
        expected = MambaLM(config, dtype).state_dict()
    if faults := fit_report(expected, found):
        raise CheckpointError(
            f"{where}: the weights do not fit config.json: {'; '.join(faults[:8])}. Check that both"
            " files belong to the same checkpoint"
        )
    converted = {name: found[name].to(expected[name].dtype).contiguous() for name in expected}
    broken = [name for name, value in converted.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{where}: not finite as {dtype}: {', '.join(broken[:6])}. Try another model.dtype"
        )
    return converted


def _check_tie(config: ModelConfig, found: dict[str, Tensor], where: str) -> None:
    """Complete a tied head, or refuse one that is not the embedding."""
    embedding, head = found.get(names.EMBEDDING), found.get(names.HEAD)
    if not config.tie_embeddings or embedding is None:
        return
    if head is not None and not torch.equal(head, embedding):
        raise CheckpointError(
            f"{where}: config.json ties the embeddings, but {names.HEAD} differs from {names.EMBEDDING}; if"
            " the head is its own matrix, set tie_embeddings (tie_word_embeddings) to false"
        )
    found[names.HEAD] = embedding
