"""What a Mamba model remembers between calls: constant in the length of the text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """The states of one mixer, updated in place.

    Attributes:
        conv: The last W-1 inputs of the convolution, ``(B, W-1, C)``, in the type that enters it: int8 where
            the site ``conv_input`` is on, floating point elsewhere.
        ssm: h, ``(B, E, N)`` of Mamba-1, fp32, or ``(B, H, P, N)`` of Mamba-2, fp32 or fp16; or its codes, int8 or
            float8 of the same shape.
        scale: bf16, h's shape without N: the scales of the codes, where they are not constants.
        residual: What rounding has left over, under error feedback: int8, or uint8 with two codes a byte.
        count: int32 ``(B,)``, tokens seen, under stochastic rounding.
    """

    conv: Tensor
    ssm: Tensor
    scale: Tensor | None = None
    residual: Tensor | None = None
    count: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name; the first dimension of each is the batch."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def push(self, x: Tensor) -> None:
        """Remember the inputs x ``(B, L, C)`` of a convolution; L may be shorter than W-1."""
        kept = self.conv.shape[1]
        if x.shape[1] < kept:
            x = torch.cat([self.conv[:, x.shape[1] :], x], dim=1)
        self.conv.copy_(x[:, x.shape[1] - kept :])


@dataclass
class Cache:
    """The states of a model, one entry a layer, and the number of tokens seen."""

    layers: list[LayerCache] = field(default_factory=list)
    position: int = 0

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return self.layers[0].ssm.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors().values())
