"""What a Mamba model remembers between calls: constant in the length of the text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """The states of one mixer, updated in place.

    Attributes:
        conv: The last W-1 inputs of the convolution, ``(B, W-1, C)``, in the type that enters it: int8 where
            the site ``conv_input`` is on, floating point elsewhere.
        ssm: h, ``(B, E, N)`` of Mamba-1, fp32, or ``(B, H, P, N)`` of Mamba-2, fp32 or fp16.
    """

    conv: Tensor
    ssm: Tensor

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
        return sum(state.nbytes for layer in self.layers for state in (layer.conv, layer.ssm))
