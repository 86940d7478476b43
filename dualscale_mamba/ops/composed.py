"""The operator that joins others, made of those: what it is defined by, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

STATES = 16  # of a channel
Operators = Callable[[str], Callable[..., Any]]
Join = Callable[..., Tensor]


def joined(*parts: tuple[Tensor, int]) -> Tensor:
    """A row for every column: each code and how many columns it has."""
    return torch.cat([code.expand(columns, -1) for code, columns in parts])


class Composed:
    """mamba_layer_step made of other operators.

    Args:
        operator: Gives them by name.
        join: Makes a row for every column of codes and how many columns each has; one that keeps what it has made
            saves a kernel.
    """

    def __init__(self, operator: Operators, join: Join = joined) -> None:
        self.operator, self.join = operator, join

    # fmt: off
    def mamba_layer_step(
        self, hidden: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, in_code: Tensor,
        in_weight: Tensor, in_scale: Tensor, in_sum: Tensor, x_code: Tensor, z_code: Tensor, conv_state: Tensor,
        conv_weight: Tensor, conv_bias: Tensor | None, u_code: Tensor, knee: bool, x_proj_weight: Tensor,
        x_proj_scale: Tensor, x_proj_sum: Tensor, dt_code: Tensor, B_code: Tensor, C_code: Tensor,
        dt_proj_weight: Tensor, dt_proj_scale: Tensor, dt_proj_sum: Tensor, delta_code: Tensor, state: Tensor,
        A: Tensor, D: Tensor | None, delta_bias: Tensor | None, base: Tensor, out_code: Tensor, out_weight: Tensor,
        out_scale: Tensor, out_sum: Tensor, group_size: int, residual_dtype: torch.dtype, workspace: Tensor,
        reads_ahead: bool,
    ) -> tuple[Tensor, Tensor]:
        """One operator after the other; see :func:`dualscale_mamba.ops.mamba_layer_step`."""
        # fmt: on
        dtype, channels, rank = hidden.dtype, A.shape[0], x_proj_weight.shape[0] - 2 * STATES
        normed, total, _ = self.operator("rms_norm_quant")(
            hidden, residual, norm_weight, eps, in_code, False, residual_dtype, dtype
        )
        end = (group_size, reads_ahead)
        weight = (in_weight, in_scale, in_sum)
        both = self._product(
            normed, in_code, False, weight, *end, self.join((x_code, channels), (z_code, channels))
        )
        x, z = torch.split(both, channels, dim=-1)
        conv = self.operator("causal_conv1d_update")
        u = conv(x, x_code, conv_state, conv_weight, conv_bias, u_code, dtype)
        weight = (x_proj_weight, x_proj_scale, x_proj_sum)
        codes = self.join((dt_code, rank), (B_code, STATES), (C_code, STATES))
        mixed = self._product(u, u_code, knee, weight, *end, codes)
        dt, B, C = torch.split(mixed, [rank, STATES, STATES], dim=-1)
        weight = (dt_proj_weight, dt_proj_scale, dt_proj_sum)
        delta = self._product(dt, dt_code, False, weight, *end, delta_code)
        y = self.operator("selective_state_update")(
            state, u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias, dtype
        )
        coded, _ = self.operator("hadamard_quant")(y, base, out_code, False, dtype)
        weight = (out_weight, out_scale, out_sum)
        return self._product(coded, out_code, False, weight, *end, None, dtype), total

    def _product(
        self,
        x: Tensor,
        x_code: Tensor,
        knee: bool,
        weight: tuple[Tensor, Tensor, Tensor],
        group_size: int,
        reads_ahead: bool,
        code: Tensor | None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        packed = weight[0].dtype == torch.uint8
        size, name = ((group_size,), "linear_w4a8") if packed else ((), "linear_w8a8")
        y = self.operator(name)(x, x_code, knee, None, *weight, *size, None, code, dtype, reads_ahead)
        return cast(Tensor, y)
