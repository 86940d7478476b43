"""Random Mamba-1 layers for ops.mamba_layer_step, such that every activation fills its code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import knee_code
from dualscale_mamba.quantization.rotation import base_for
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight

STATES, GROUP_SIZE = 16, 128
CHANGED = ("conv_state", "state")  # in place; the workspace is nobody's result


@dataclass(frozen=True)
class Size:
    """Of a layer: width of the residual stream, rank of delta; the kinds of its codes and weights."""

    width: int
    rank: int
    bits: int = 8
    knee: bool = True
    batch: int = 1
    taps: int = 4
    has_residual: bool = True
    has_extras: bool = True  # conv_bias, D and delta_bias
    residual_dtype: torch.dtype = torch.float32
    knee_at: float = 31.0  # of u's code
    delta_bits: int | None = None  # of dt_proj's weights, if not those of the others

    @property
    def channels(self) -> int:
        """Of the mixer."""
        return 2 * self.width

    def __str__(self) -> str:
        bits = f"{self.bits}" if self.delta_bits is None else f"{self.bits} dt w{self.delta_bits}"
        return f"{self.width} w{bits} knee {self.knee_at if self.knee else None} batch {self.batch}"


# mamba-2.8b, 130m, 370m and 1.4b, in the order of the issue.
SIZES = (Size(2560, 160), Size(768, 48), Size(1024, 64), Size(2048, 128))


class Layer:
    """One random layer on a device; ``arguments`` are those of the operator, by name.

    Args:
        size: Of it.
        device: Where it lies.
        seed: Of the random numbers.
        workspace: Of another layer of the same size, or None for a new one.
    """

    def __init__(
        self, size: Size, device: torch.device | str = "cpu", seed: int = 0, workspace: Tensor | None = None
    ) -> None:
        self.size, self.device = size, torch.device(device)
        self.random = torch.Generator().manual_seed(seed)
        E, R, B = size.channels, size.rank, size.batch
        if workspace is None:
            workspace = ops.layer_workspace(device, E, R)
        extras = size.has_extras
        self.arguments: dict[str, Any] = {
            "hidden": self.normal(B, size.width).half(),
            "residual": self.normal(B, size.width).to(size.residual_dtype) if size.has_residual else None,
            "norm_weight": 1 + 0.1 * self.normal(size.width),
            "eps": 1e-5,
            "in_code": self.plain(3.5),
            **self.weight("in", 2 * E, size.width),
            "x_code": self.plain(4.0),
            "z_code": self.plain(4.0),
            "conv_state": self.codes(B, size.taps - 1, E),
            "conv_weight": 0.5 * self.normal(E, size.taps),
            "conv_bias": 0.1 * self.normal(E) if extras else None,
            "u_code": self.knee() if size.knee else self.plain(3.0),
            "knee": size.knee,
            **self.weight("x_proj", R + 2 * STATES, E, 0.5),
            "dt_code": self.plain(4.0),
            "B_code": self.plain(4.0),
            "C_code": self.plain(4.0),
            **self.weight("dt_proj", E, R, bits=size.delta_bits),
            "delta_code": self.plain(4.0),
            "state": self.normal(B, E, STATES),
            "A": -torch.arange(1, STATES + 1).float().repeat(E, 1).to(self.device),
            "D": self.normal(E) if extras else None,
            "delta_bias": self.normal(E) - 3 if extras else None,
            "base": base_for(E).to(self.device),
            "out_code": self.plain(5.0),
            **self.weight("out", size.width, E, 2.0),
            "group_size": 0 if size.bits == 8 else GROUP_SIZE,
            "residual_dtype": size.residual_dtype,
            "workspace": workspace,
        }

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return torch.randn(shape, generator=self.random).to(self.device)

    def codes(self, *shape: int) -> Tensor:
        """Codes of roughly normal values."""
        values = (torch.randn(shape, generator=self.random) * 40).round().clamp(-128, 127)
        return values.to(torch.int8).to(self.device)

    def plain(self, largest: float) -> Tensor:
        """The row of a symmetric code."""
        one = torch.ones(1, dtype=torch.float64)
        return knee_code(one * largest / 127, 0 * one, 127 * one, one, has_knee=False).rows.to(self.device)

    def knee(self) -> Tensor:
        """The row of a code as u has it."""
        one = torch.ones(1, dtype=torch.float64)
        return knee_code(0.004 * one, -56 * one, self.size.knee_at * one, 9 * one).rows.to(self.device)

    def weight(
        self, name: str, rows: int, columns: int, spread: float = 1.0, bits: int | None = None
    ) -> dict[str, Tensor]:
        """Weights that turn values of this spread into those of spread one."""
        largest, grid = (127, Grid(8)) if (bits or self.size.bits) == 8 else (7, Grid(4, GROUP_SIZE))
        codes = torch.randint(-largest, largest + 1, (rows, columns), generator=self.random, dtype=torch.int8)
        unit = 1.7 / (largest * spread * columns**0.5)
        shape = (rows,) if grid.group_size is None else (rows, grid.groups(columns))
        scale = unit * (0.5 + torch.rand(shape, generator=self.random))
        if grid.group_size is not None:
            scale = scale.half()
        stored = QuantizedWeight(codes, scale, grid).stored()
        names = (f"{name}_weight", f"{name}_scale", f"{name}_sum")
        return {key: tensor.to(self.device) for key, tensor in zip(names, stored, strict=True)}

    def copied(self) -> dict[str, Any]:
        """The arguments with states of their own; the workspace stays the same."""
        own = dict(self.arguments)
        return own | {name: own[name].clone() for name in CHANGED}


def sizes(batches: tuple[int, ...] = (1, 4)) -> list[Size]:
    """Every published size with weights of 8 and 4 bits, with and without a knee, at every batch."""
    return [
        replace(size, bits=bits, knee=knee, batch=batch)
        for size in SIZES
        for bits in (8, 4)
        for knee in (True, False)
        for batch in batches
    ]


def run(arguments: dict[str, Any], reads_ahead: bool = False) -> dict[str, Tensor]:
    """What the operator returns and changes."""
    out, total = ops.mamba_layer_step(**arguments, reads_ahead=reads_ahead)
    return {"out": out, "total": total, **{name: arguments[name] for name in CHANGED}}
