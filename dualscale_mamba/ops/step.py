"""One token of a Mamba-1 mixer between its two large projections: five operators, or one kernel that joins them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from dualscale_mamba.ops.composed import STATES
from dualscale_mamba.ops.dispatch import kernel

FEWEST_CHANNELS, MOST_CHANNELS, CHANNEL_STEP = 512, 6144, 512
SHORTEST_SEGMENT = 128  # of the Hadamard transform
RANK_STEP, MOST_RANKS = 16, 256
# Every sequence is worked on by sixteen multiprocessors; from more sequences on, each operator fills the chip alone.
MOST_SEQUENCES = 8


def is_joined(
    device: torch.device, sequences: int, channels: int, states: int, rank: int, order: int
) -> bool:
    """Whether one kernel of this device does :func:`selective_step` for these sizes; ``order`` is that of the base."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return (
        1 <= sequences <= MOST_SEQUENCES
        and states == STATES
        and FEWEST_CHANNELS <= channels <= MOST_CHANNELS
        and channels % CHANNEL_STEP == 0
        and channels // order >= SHORTEST_SEGMENT
        and rank % RANK_STEP == 0
        and rank <= MOST_RANKS
    )


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
    reads_ahead: bool = False,
) -> Tensor:
    """u = SiLU(conv(x)); dt, B, C = x_proj(u); y = one step of the state, gated by z; its Hadamard transform, int8.

    The same as causal_conv1d_update, two linear layers, selective_state_update and hadamard_quant one after the other
    (Gu & Dao 2023, Algorithm 2, one token), but for the order of sums. Codes are fp32 ``(1, 8)`` unless said.

    Args:
        x: int8 ``(B, E)``, what is convolved.
        x_code: Its code.
        z: int8 ``(B, E)``, the gate.
        z_code: Its code.
        conv_state: int8 ``(B, W-1, E)``, shifted in place.
        conv_weight: fp32 ``(E, W)``.
        conv_bias: fp32 ``(E,)`` or None.
        u_code: Of the convolution's result.
        knee: Whether it has a knee.
        x_proj_weight: int8 ``(R+32, E)``, or packed uint8 ``(R+32, E/2)``, to dt, B and C side by side.
        x_proj_scale: fp32 ``(R+32,)``, or fp16 ``(R+32, groups)``.
        x_proj_sum: int32 or, with 4 bits, fp32 ``(R+32,)``: sums of rows.
        x_proj_group: Columns that share a scale; 0 with 8 bits.
        x_proj_code: fp32 ``(R+32, 8)``; all of dt, of B and of C have one code each, that of dt without a knee.
        dt_proj_weight: int8 ``(E, R)``, or packed uint8 ``(E, R/2)``; scale, sum and group as those of x_proj.
        dt_proj_scale: See there.
        dt_proj_sum: See there.
        dt_proj_group: See there.
        delta_code: Of dt_proj's result.
        state: fp32 ``(B, E, 16)``, changed in place.
        A: fp32 ``(E, 16)``.
        D: fp32 ``(E,)`` or None.
        delta_bias: fp32 ``(E,)`` or None.
        base: fp32 ``(m, m)``, of the transform.
        code: fp32 ``(1 or E, 8)``, of the result.
        dtype: That y is rounded to before the transform.
        reads_ahead: A promise: the kernel queued just before writes nothing of all this but x and z. It is then read
            while that kernel still runs.

    Returns:
        int8 ``(B, E)``.

    Raises:
        RuntimeError: An argument is of another type, shape or device, or a GPU has no kernel for the sizes (see
            :func:`is_joined`); the message says what is allowed.
    """
    run = kernel("selective_step", x)
    before = (x, x_code, z, z_code, conv_state, conv_weight, conv_bias, u_code, knee)
    mixing = (x_proj_weight, x_proj_scale, x_proj_sum, x_proj_group, x_proj_code)
    stepping = (dt_proj_weight, dt_proj_scale, dt_proj_sum, dt_proj_group, delta_code)
    after = (state, A, D, delta_bias, base, code, dtype, reads_ahead)
    return cast(Tensor, run(*before, *mixing, *stepping, *after))
