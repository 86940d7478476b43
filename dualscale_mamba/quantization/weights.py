"""Weights on an integer grid: int8 with one scale an output channel, int4 with one a group of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.ops.reference import unpack_int4
from dualscale_mamba.ops.rounding import round_half_away

LEVELS = {8: (-127, 127), 4: (-8, 7)}
GROUP_SIZES = (32, 64, 128, 256, 512, 1024)
SMALLEST_SCALE = 2.0**-24  # the smallest fp16 number above zero
LARGEST_SCALE = 65504.0  # the largest finite fp16 number
PACKED_TOGETHER = 8  # neighbouring int4 codes that share four bytes


@dataclass(frozen=True)
class Grid:
    """How wide a weight's codes are and how many of them share a scale.

    Args:
        bits: 8 or 4.
        group_size: Neighbouring inputs that share a scale with 4 bits; None with 8, where all do.
    """

    bits: int
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in LEVELS:
            raise ConfigError("precision.weights.bits", self.bits, "8, 4 or null")
        if self.bits == 4 and self.group_size not in GROUP_SIZES:
            allowed = f"a power of two in {GROUP_SIZES[0]} to {GROUP_SIZES[-1]} with 4 bits"
            raise ConfigError("precision.weights.group_size", self.group_size, allowed)
        if self.bits == 8 and self.group_size is not None:
            allowed = "null with 8 bits, where a scale belongs to an output channel"
            raise ConfigError("precision.weights.group_size", self.group_size, allowed)

    @property
    def levels(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return LEVELS[self.bits]

    def width(self, in_features: int) -> int:
        """Inputs that share a scale."""
        return self.group_size or in_features

    def groups(self, in_features: int) -> int:
        """Scales of an output channel; the last of them may serve fewer inputs."""
        return -(-in_features // self.width(in_features))

    def grouped(self, weight: Tensor) -> Tensor:
        """weight (N, K) -> (N, groups, width), the last group filled up with zeros."""
        rows, inputs = weight.shape
        groups, width = self.groups(inputs), self.width(inputs)
        return F.pad(weight, (0, groups * width - inputs)).reshape(rows, groups, width)

    def stored_scale(self, scale: Tensor) -> Tensor:
        """Scales (N, groups) fp32 in the type and shape that are kept: fp32 (N,), or fp16 (N, groups)."""
        if self.bits == 8:
            return scale.reshape(-1)
        magnitude = scale.abs().clamp(SMALLEST_SCALE, LARGEST_SCALE)
        return torch.where(scale < 0, -magnitude, magnitude).half()

    def scale_of_inputs(self, scale: Tensor, in_features: int) -> Tensor:
        """Kept scales -> fp32 (N, K), or (N, 1) where all inputs share one."""
        if self.group_size is None:
            return scale[:, None]
        return scale.float().repeat_interleave(self.group_size, dim=1)[:, :in_features]

    def codes(self, values: Tensor, scale: Tensor) -> Tensor:
        """The nearest codes of ``values`` at fp32 ``scale``, which broadcasts; floating point."""
        return round_half_away(values / scale).clamp(*self.levels)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix on a grid.

    Attributes:
        codes: int8 ``(N, K)`` within ``grid.levels``.
        scale: 8 bits: fp32 ``(N,)``. 4 bits: fp16 ``(N, G)``, of either sign.
        grid: What the codes mean.
    """

    codes: Tensor
    scale: Tensor
    grid: Grid

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, ``(N, K)``."""
        return (self.codes.float() * self.grid.scale_of_inputs(self.scale, self.codes.shape[1])).to(dtype)

    def stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and sums as the operators take them.

        Returns:
            8 bits: int8 (N, K), fp32 (N,), and int32 (N,), the sum of a row's codes. 4 bits: packed uint8 (N, K/2),
            fp16 (N, G), and fp32 (N,), the sum of a row's values.

        Raises:
            ConfigError: 4 bits and a number of inputs that 8 does not divide.
        """
        if self.grid.bits == 8:
            return self.codes.contiguous(), self.scale, self.codes.sum(1, dtype=torch.int32)
        sums = self.grid.grouped(self.codes).sum(2, dtype=torch.int32)
        return pack_int4(self.codes), self.scale, (self.scale.float() * sums).sum(1)

    @classmethod
    def from_stored(cls, codes: Tensor, scale: Tensor, grid: Grid, in_features: int) -> QuantizedWeight:
        """What :meth:`stored` gave.

        Raises:
            ValueError: The shapes are not those of a weight with ``in_features`` inputs.
        """
        made = codes if grid.bits == 8 else unpack_int4(codes)
        shape = (made.shape[0],) if grid.bits == 8 else (made.shape[0], grid.groups(in_features))
        if made.shape[1] != in_features or tuple(scale.shape) != shape:
            raise ValueError(
                f"codes {tuple(codes.shape)} and scales {tuple(scale.shape)} are not {grid} of {in_features} inputs"
            )
        return cls(made, scale, grid)


def on_grid(weight: Tensor, scale: Tensor, grid: Grid) -> QuantizedWeight:
    """The nearest codes at given scales: weight (N, K) float, scale (N, groups) fp32.

    The scales are brought to the type that is kept first, so that the codes fit what will be decoded.
    """
    kept = grid.stored_scale(scale)
    codes = grid.codes(weight.detach().float(), grid.scale_of_inputs(kept, weight.shape[1]))
    return QuantizedWeight(codes.to(torch.int8), kept, grid)


def pack_int4(codes: Tensor) -> Tensor:
    """codes int8 (N, K) in [-8, 7] -> uint8 (N, K/2).

    Eight neighbours take four bytes: byte j holds the code j in its low nibble and the code j + 4 in its high one, in
    two's complement, so that one mask and one shift of a 32-bit word give four neighbours each.

    Raises:
        ConfigError: 8 does not divide K.
    """
    rows, inputs = codes.shape
    if inputs % PACKED_TOGETHER:
        raise ConfigError(
            "precision.weights.bits", 4, f"8 or null for a layer of {inputs} inputs",
            f"int4 needs a multiple of {PACKED_TOGETHER}; name the layer in precision.layers.",
        )  # fmt: skip
    low, high = (codes.reshape(rows, inputs // 8, 2, 4) & 0xF).to(torch.uint8).unbind(2)
    return (low | (high << 4)).reshape(rows, inputs // 2)
