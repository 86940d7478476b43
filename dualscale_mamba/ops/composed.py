"""The operator that joins others, made of those: what it is defined by, and what runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

STATES = 16  # of a channel
Operators = Callable[[str], Callable[..., Any]]


def composed(operator: Operators) -> Callable[..., Tensor]:
    """selective_step made of the operators that ``operator`` gives by name."""

    def product(
        x: Tensor, x_code: Tensor, knee: bool, weight: tuple[Tensor, Tensor, Tensor], group: int, code: Tensor
    ) -> Tensor:
        size, name = ((group,), "linear_w4a8") if group else ((), "linear_w8a8")
        y = operator(name)(x, x_code, knee, None, *weight, *size, None, code, torch.float32, False)
        return cast(Tensor, y)

    def selective_step(
        x: Tensor,
        x_code: Tensor,
        z: Tensor,
        z_code: Tensor,
        conv_state: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor | None,
        u_code: Tensor,
        knee: bool,
        x_proj_weight: Tensor,
        x_proj_scale: Tensor,
        x_proj_sum: Tensor,
        x_proj_group: int,
        x_proj_code: Tensor,
        dt_proj_weight: Tensor,
        dt_proj_scale: Tensor,
        dt_proj_sum: Tensor,
        dt_proj_group: int,
        delta_code: Tensor,
        state: Tensor,
        A: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        base: Tensor,
        code: Tensor,
        dtype: torch.dtype,
        reads_ahead: bool,
    ) -> Tensor:
        u = operator("causal_conv1d_update")(x, x_code, conv_state, conv_weight, conv_bias, u_code, dtype)
        weight = (x_proj_weight, x_proj_scale, x_proj_sum)
        mixed = product(u, u_code, knee, weight, x_proj_group, x_proj_code)
        rank = mixed.shape[-1] - 2 * STATES
        dt, B, C = torch.split(mixed, [rank, STATES, STATES], dim=-1)
        B_code, C_code = (x_proj_code[at : at + 1] for at in (rank, rank + STATES))
        weight = (dt_proj_weight, dt_proj_scale, dt_proj_sum)
        delta = product(dt, x_proj_code[:1], False, weight, dt_proj_group, delta_code)
        y = operator("selective_state_update")(
            state, u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias, dtype
        )
        coded, _ = operator("hadamard_quant")(y, base, code, False, dtype)
        return cast(Tensor, coded)

    return selective_step
