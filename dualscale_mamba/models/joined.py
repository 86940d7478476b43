"""One token of a Mamba-1 mixer as one kernel between its large projections, where everything there is int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.quantization.site import Activation, Coded, Site

if TYPE_CHECKING:
    from dualscale_mamba.models.mamba import MambaMixer


def joined_step(
    mixer: MambaMixer, x: Activation, z: Activation, state: LayerCache | None
) -> Activation | None:
    """out_proj's input (B, E) from the halves of in_proj, by ops.selective_step; None where it does not serve."""
    if state is None or not isinstance(x, Coded) or not isinstance(z, Coded) or not _is_joined(mixer, x, z):
        return None
    ends = (mixer.dt_input, mixer.B, mixer.C)
    u, delta, out = (site.output_code() for site in (mixer.ssm_input, mixer.delta, mixer.out_proj_input))
    mixed = mixer.x_proj.joint_code(ends, mixer.ranks)
    assert u is not None
    assert mixer.ssm_input.code is not None
    assert mixer.rotation is not None
    codes = ops.selective_step(
        *(x.codes, x.code.rows, z.codes, z.code.rows, state.conv, mixer.conv1d.weight, mixer.conv1d.bias),
        *(u, mixer.ssm_input.code.has_knee, *_weights(mixer.x_proj), mixed, *_weights(mixer.dt_proj), delta),
        *(state.ssm, mixer.decay(), mixer.D, mixer.dt_bias, mixer.rotation, out, mixer.dtype),
        reads_ahead=mixer.x_proj.constant_weight,
    )  # fmt: skip
    return mixer.out_proj_input.wrap(codes)


def _is_joined(mixer: MambaMixer, x: Coded, z: Coded) -> bool:
    if mixer.rotation is None or mixer.x_proj_reads != "codes" or ops.current_implementation() != "compiled":
        return False
    if mixer.state_store.is_on:  # the kernel reads and writes fp32 states in place
        return False
    sizes = (*mixer.A_log.shape, mixer.ranks[0], mixer.rotation.shape[0])
    if x.codes.dim() != 2 or not ops.is_joined(x.codes.device, x.codes.shape[0], *sizes):
        return False
    sites = (mixer.ssm_input, mixer.dt_input, mixer.B, mixer.C, mixer.delta, mixer.out_proj_input)
    return (
        all(_is_static(site) for site in sites)
        and all(each.row_scale is None and each.code.is_scalar_knee for each in (x, z))
        and mixer.dt_input.code is not None
        and not mixer.dt_input.code.has_knee
        and mixer.x_proj.multiplies_codes(mixer.ssm_input.code)
        and mixer.dt_proj.multiplies_codes(mixer.dt_input.code)
    )


def _is_static(site: Site) -> bool:
    return site.output_code() is not None and site.code is not None and site.code.is_scalar_knee


def _weights(layer: Linear) -> tuple[Tensor, Tensor, Tensor, int]:
    assert layer.grid is not None
    assert layer.weight_codes is not None
    assert layer.weight_scale is not None
    assert layer.weight_sum is not None
    return layer.weight_codes, layer.weight_scale, layer.weight_sum, layer.grid.group_size or 0
