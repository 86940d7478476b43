"""One token of a whole Mamba-1 layer: eight operators, or one kernel that joins them.

Arguments, with B sequences, a residual stream of width D, E channels, R the rank of delta and W taps. Codes are fp32
``(1, 8)``; those of the inputs of in_proj, dt_proj and out_proj have no knee. Weights are int8 ``(N, K)`` with scales
fp32 ``(N,)`` and sums of rows int32 ``(N,)``, or, all four, packed uint8 ``(N, K/2)`` with scales fp16 ``(N, groups)``
and sums fp32 ``(N,)``.

* ``hidden (B, D)``, what the layer before has made; ``residual (B, D)`` or None, what it is added to, in
  ``residual_dtype``; ``norm_weight`` fp32 ``(D,)`` and ``eps`` of the norm; ``in_code`` of its result.
* ``in_weight (2E, D)``: rows of x, then of z; ``x_code`` of what is convolved, ``z_code`` of the gate.
* ``conv_state`` int8 ``(B, W-1, E)``, shifted in place; ``conv_weight`` fp32 ``(E, W)``; ``conv_bias`` fp32 ``(E,)`` or
  None; ``u_code`` of the convolution's result, and whether it has a ``knee``.
* ``x_proj_weight (R+32, E)``: rows of dt, B and C, with ``dt_code``, ``B_code`` and ``C_code``.
* ``dt_proj_weight (E, R)``, which may be int8 where the others are packed; ``delta_code`` of its result, before
  ``delta_bias`` fp32 ``(E,)`` or None.
* ``state`` fp32 ``(B, E, 16)``, changed in place; ``A`` fp32 ``(E, 16)``; ``D`` fp32 ``(E,)`` or None.
* ``base`` fp32 ``(m, m)`` of the transform, ``out_code`` of its result, ``out_weight (D, E)``.
* ``group_size`` of 4-bit weights, 0 with 8 bits; ``workspace`` from :func:`layer_workspace`, not used on a CPU.
* ``reads_ahead`` promises that the kernel queued just before writes nothing here but hidden, residual, states and
  workspace. The rest is then read while that kernel still runs.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from dualscale_mamba.ops.composed import STATES
from dualscale_mamba.ops.dispatch import kernel

MOST_SEQUENCES = 4
WIDTH_STEP, MOST_WIDTH = 256, 2560  # of the residual stream
MOST_BLOCKS, OWN_STEP, MOST_OWN = 128, 8, 40  # of a launch, and channels of one
RANK_STEP, MOST_RANKS = 8, 256
GROUP_SIZES = (None, 128, 256, 512)
MADE_SEGMENTS, SEGMENT_COLUMNS, MOST_SEGMENTS = 16, (128, 256), 32  # of the Hadamard transform
# Data center GPUs since Hopper, which have the copies and the shared memory that the kernel is made of.
CAPABILITIES = (9, 10)
EPOCH_WORDS, SUM_COPIES, SUM_KINDS = 64, 2, 4  # of a workspace


def fits_layer_step(hidden: Tensor, channels: int, states: int, rank: int, order: int) -> bool:
    """Whether one kernel of this device does :func:`mamba_layer_step` for this type and these sizes.

    Args:
        hidden: ``(B, D)``.
        channels: Of the mixer.
        states: Of a channel.
        rank: Of delta.
        order: Of the base of the Hadamard transform.
    """
    device, blocks = hidden.device, layer_blocks(channels)
    if device.type != "cuda" or hidden.dtype != torch.float16 or blocks is None:
        return False
    if torch.cuda.get_device_capability(device)[0] not in CAPABILITIES:
        return False
    sequences, width = hidden.shape
    segments = MADE_SEGMENTS if order == 1 else order
    return (
        1 <= sequences <= MOST_SEQUENCES
        and width % WIDTH_STEP == 0
        and width <= MOST_WIDTH
        and channels == 2 * width
        and states == STATES
        and rank % RANK_STEP == 0
        and rank <= MOST_RANKS
        and segments <= MOST_SEGMENTS
        and channels in [segments * columns for columns in SEGMENT_COLUMNS]
        # Two launches lie side by side, a block of each on a multiprocessor.
        and torch.cuda.get_device_properties(device).multi_processor_count >= blocks
    )


def layer_blocks(channels: int) -> int | None:
    """How many blocks share the channels; None where they cannot."""
    for own in range(OWN_STEP, MOST_OWN + 1, OWN_STEP):
        if channels % own == 0 and channels // own <= MOST_BLOCKS:
            return channels // own
    return None


def layer_workspace(device: torch.device | str, channels: int, rank: int) -> Tensor:
    """What launches hand on from one to the next: zeros at first, never to be written but by them.

    Launches that may be under way at the same time, on different streams, need workspaces of their own; and of more
    than two such streams some may wait for each other without end.
    """
    half = SUM_COPIES * MOST_SEQUENCES * SUM_KINDS * (rank + 2 * STATES) + MOST_SEQUENCES * channels // 4
    half = -(-half // EPOCH_WORDS) * EPOCH_WORDS
    with torch.inference_mode(False):  # calls outside inference mode write to it too
        return torch.zeros(EPOCH_WORDS + 2 * half, dtype=torch.int64, device=device)


# fmt: off
def mamba_layer_step(
    hidden: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, in_code: Tensor, in_weight: Tensor,
    in_scale: Tensor, in_sum: Tensor, x_code: Tensor, z_code: Tensor, conv_state: Tensor, conv_weight: Tensor,
    conv_bias: Tensor | None, u_code: Tensor, knee: bool, x_proj_weight: Tensor, x_proj_scale: Tensor,
    x_proj_sum: Tensor, dt_code: Tensor, B_code: Tensor, C_code: Tensor, dt_proj_weight: Tensor,
    dt_proj_scale: Tensor, dt_proj_sum: Tensor, delta_code: Tensor, state: Tensor, A: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, base: Tensor, out_code: Tensor, out_weight: Tensor, out_scale: Tensor,
    out_sum: Tensor, group_size: int, residual_dtype: torch.dtype, workspace: Tensor, reads_ahead: bool = False,
) -> tuple[Tensor, Tensor]:
    """A layer of Mamba-1 (Gu & Dao 2023, Figure 3) for one token: norm, in_proj, convolution, state space, out_proj.

    The same as rms_norm_quant, in_proj, causal_conv1d_update, x_proj, dt_proj, selective_state_update, hadamard_quant
    and out_proj one after the other, but for the order of some sums. The module says what the arguments are.

    Returns:
        What out_proj makes, ``(B, D)`` of hidden's type, and hidden + residual, ``(B, D)``.

    Raises:
        RuntimeError: An argument is of another type, shape or device, or a GPU has no kernel for the sizes (see
            :func:`fits_layer_step`; hidden must be fp16 there); the message says what is allowed.
    """
    # fmt: on
    run = kernel("mamba_layer_step", hidden)
    before = (hidden, residual, norm_weight, eps, in_code, in_weight, in_scale, in_sum, x_code, z_code)
    conv = (conv_state, conv_weight, conv_bias, u_code, knee)
    mixing = (x_proj_weight, x_proj_scale, x_proj_sum, dt_code, B_code, C_code)
    stepping = (dt_proj_weight, dt_proj_scale, dt_proj_sum, delta_code, state, A, D, delta_bias)
    after = (base, out_code, out_weight, out_scale, out_sum, group_size)
    result = run(*before, *conv, *mixing, *stepping, *after, residual_dtype, workspace, reads_ahead)
    return cast("tuple[Tensor, Tensor]", result)
