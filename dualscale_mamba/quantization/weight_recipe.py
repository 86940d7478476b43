"""Widths of the weights of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.weights import Grid


@dataclass(frozen=True)
class WeightRecipe:
    """Widths of the weights.

    Args:
        bits: Of the projections: 8, 4, or None to leave them as they are.
        group_size: Inputs that share a scale in 4 bits, a power of two in 32 to 1024.
        embedding: Bits of the embedding.
        head: Bits of the head.
    """

    bits: int | None = 8
    group_size: int = 128
    embedding: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        for key, bits in (("bits", self.bits), ("embedding", self.embedding), ("head", self.head)):
            if bits not in (8, 4, None):
                raise ConfigError(f"precision.weights.{key}", bits, "8, 4 or null")
        self.grid(4)

    def grid(self, bits: int | None) -> Grid | None:
        """The grid of a weight with so many bits."""
        return None if bits is None else Grid(bits, self.group_size if bits == 4 else None)
