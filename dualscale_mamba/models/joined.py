"""One token of a Mamba-1 layer as one kernel, where everything between its two ends is int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.layers import RMSNorm
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.mamba import MambaMixer
from dualscale_mamba.ops.layer_step import GROUP_SIZES
from dualscale_mamba.quantization.site import Site
from dualscale_mamba.quantization.weights import Grid

if TYPE_CHECKING:
    from dualscale_mamba.models.mixer import Mixer


# Sequences times channels up to which one kernel is faster than eight: every block of it transforms all of y.
MOST_VALUES = 10240


class StepWorkspaces:
    """What the steps of a model's layers hand on from launch to launch: one tensor a stream, or streams would meet."""

    def __init__(self) -> None:
        self._made: dict[tuple[torch.device, int, int, int], Tensor] = {}

    def of(self, device: torch.device, channels: int, rank: int) -> Tensor:
        """The one of the current stream."""
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        key = (device, stream, channels, rank)
        if key not in self._made:
            self._made[key] = ops.layer_workspace(device, channels, rank)
        return self._made[key]


def joined_step(
    norm: RMSNorm,
    mixer: Mixer,
    x: Tensor,
    residual: Tensor | None,
    state: LayerCache | None,
    workspaces: StepWorkspaces,
) -> tuple[Tensor, Tensor] | None:
    """A block's results for a token (B, D) by ops.mamba_layer_step; None where that does not serve."""
    if state is None or x.dim() != 2 or not isinstance(mixer, MambaMixer) or not _is_joined(mixer, x):
        return None
    grid, u = mixer.in_proj.grid, mixer.ssm_input.code
    assert grid is not None
    assert u is not None
    assert mixer.rotation is not None
    weights = [_weights(layer) for layer, _ in mixer.projections()]
    own = {
        f"{name}_{part}": tensor
        for name, tensors in zip(("in", "x_proj", "dt_proj", "out"), weights, strict=True)
        for part, tensor in zip(("weight", "scale", "sum"), tensors, strict=True)
    }
    return ops.mamba_layer_step(
        hidden=x,
        residual=residual,
        norm_weight=norm.weight,
        eps=norm.eps,
        in_code=_rows(mixer.in_proj_input),
        x_code=_rows(mixer.conv_input),
        z_code=_rows(mixer.z),
        conv_state=state.conv,
        conv_weight=mixer.conv1d.weight,
        conv_bias=mixer.conv1d.bias,
        u_code=_rows(mixer.ssm_input),
        knee=u.has_knee,
        dt_code=_rows(mixer.dt_input),
        B_code=_rows(mixer.B),
        C_code=_rows(mixer.C),
        delta_code=_rows(mixer.delta),
        state=state.ssm,
        A=mixer.decay(),
        D=mixer.D,
        delta_bias=mixer.dt_bias,
        base=mixer.rotation,
        out_code=_rows(mixer.out_proj_input),
        group_size=grid.group_size or 0,
        residual_dtype=norm.residual_dtype,
        workspace=workspaces.of(x.device, mixer.A_log.shape[0], mixer.ranks[0]),
        reads_ahead=mixer.in_proj.constant_weight,
        **own,
    )


def _is_joined(mixer: MambaMixer, x: Tensor) -> bool:
    if mixer.rotation is None or mixer.x_proj_reads != "codes" or ops.current_implementation() != "compiled":
        return False
    E, N = mixer.A_log.shape
    if len(x) * E > MOST_VALUES or not ops.fits_layer_step(x, E, N, mixer.ranks[0], mixer.rotation.shape[0]):
        return False
    if mixer.state_store.is_on:  # the kernel reads and writes fp32 states in place
        return False
    straight = (mixer.in_proj_input, mixer.dt_input, mixer.out_proj_input)
    bent = (mixer.conv_input, mixer.z, mixer.ssm_input, mixer.delta, mixer.B, mixer.C)
    return (
        all(_is_static(site) for site in (*straight, *bent))
        and not any(_has_knee(site) for site in straight)
        and _have_one_grid(mixer)
    )


def _is_static(site: Site) -> bool:
    return site.output_code() is not None and site.code is not None and site.code.is_scalar_knee


def _has_knee(site: Site) -> bool:
    return site.code is not None and site.code.has_knee


def _have_one_grid(mixer: MambaMixer) -> bool:
    """Whether projections multiply codes, with weights of one width, or eight bits for dt_proj, and add nothing."""
    layers, grid = [layer for layer, _ in mixer.projections()], mixer.in_proj.grid
    return (
        grid is not None
        and grid.group_size in GROUP_SIZES
        and all(not layer.decodes and layer.bias is None for layer in layers)
        and all(layer.grid == grid or (layer is mixer.dt_proj and layer.grid == Grid(8)) for layer in layers)
    )


def _rows(site: Site) -> Tensor:
    rows = site.output_code()
    assert rows is not None
    return rows


def _weights(layer: Linear) -> tuple[Tensor, Tensor, Tensor]:
    assert layer.weight_codes is not None
    assert layer.weight_scale is not None
    assert layer.weight_sum is not None
    return layer.weight_codes, layer.weight_scale, layer.weight_sum
