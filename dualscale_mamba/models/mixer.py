"""What the mixers of both families share: projections, convolution, sites, the way out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dualscale_mamba import ops
from dualscale_mamba.formats.base import NO_SIDE_DATA, SideData
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.config import ModelConfig
from dualscale_mamba.models.layers import CausalConv, parameter
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.quantization.site import SILU_FLOOR, Activation, Site
from dualscale_mamba.sites import SITES
from dualscale_mamba.states.store import StateStore


class Mixer(nn.Module):
    """in_proj, causal convolution, a state space, out_proj; a family adds its own weights and the forward pass.

    Every site of the family is an attribute by its name. Letters as in the module of the family.

    Args:
        config: Sizes.
        dtype: Type of linear weights and of floating-point activations.
        widths: Columns that in_proj computes for each of its sites.
        channels: Of the convolution.
        state_shape: Of A_log, ``(E, N)`` or ``(H,)``.

    Attributes:
        family: A key of :data:`dualscale_mamba.sites.SITES`.
        site_names: Its sites, in the order of the data flow.
        rotation: fp32 ``(m, m)`` Hadamard base, present when out_proj's input is rotated.
        widths: Columns of in_proj for each site that it feeds.
        state_store: How the state is kept between calls.
    """

    family: ClassVar[str]
    site_names: ClassVar[tuple[str, ...]]
    in_proj_input: Site
    conv_input: Site
    out_proj_input: Site
    state_matrix: Tensor | None
    rotation: Tensor | None

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        widths: tuple[int, ...],
        channels: int,
        state_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.dtype, self.widths = dtype, widths
        self.in_proj = Linear(config.d_model, sum(widths), bias=config.bias, dtype=dtype)
        self.conv1d = CausalConv(channels, config.d_conv, config.conv_bias)
        self.dt_bias = parameter(state_shape[0])
        self.A_log = parameter(*state_shape)
        self.D = parameter(state_shape[0])
        self.out_proj = Linear(config.d_inner, config.d_model, bias=config.bias, dtype=dtype)
        for name, after_silu in SITES[self.family].items():
            self.add_module(name, Site(SILU_FLOOR if after_silu else None))
        self.state_store = StateStore()
        self.register_buffer("rotation", None, persistent=False)
        self.register_buffer("state_matrix", None, persistent=False)

    def forward(self, hidden: Activation, state: LayerCache | None = None) -> Tensor:
        """hidden (B, L, D), or (B, D) with a state for one token -> the same shape."""
        raise NotImplementedError

    def projections(self) -> tuple[tuple[Linear, Site | None], ...]:
        """Every linear layer, each with the one site that alone feeds it; None where it may read floats in any case."""
        raise NotImplementedError

    def named_projections(self) -> dict[str, Linear]:
        """The linear layers by their names."""
        names = {id(layer): name for name, layer in self.named_children()}
        return {names[id(layer)]: layer for layer, _ in self.projections()}

    def decay(self) -> Tensor:
        """A = -exp(A_log), fp32 of A_log's shape; computed once."""
        if self.state_matrix is None:
            self.state_matrix = -torch.exp(self.A_log)
        return self.state_matrix

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.state_matrix = None  # it belongs to the weights that are replaced
        super()._load_from_state_dict(*arguments)

    def _conv(
        self,
        value: Tensor,
        value_code: Tensor | None,
        state: LayerCache | None,
        code: Tensor | None,
        channels: slice | None = None,
        side: SideData = NO_SIDE_DATA,
    ) -> Tensor:
        """SiLU(conv(value)), of some channels if asked, int8 where there is a code for them, and what lies beside it.

        A step shifts the state of these channels; after a prefill :meth:`_remember` does it for all at once.
        """
        weight: Tensor = self.conv1d.weight
        bias: Tensor | None = self.conv1d.bias
        before = None if state is None else state.conv
        if channels is not None:
            value, weight = value[..., channels], weight[channels]
            bias = None if bias is None else bias[channels]
            before = None if before is None else before[..., channels]
        if value.dim() == 3:
            return ops.causal_conv1d_encode(value, value_code, weight, bias, before, code, self.dtype, *side)
        assert before is not None, "a one-token step needs a state"
        return ops.causal_conv1d_update(value, value_code, before, weight, bias, code, self.dtype, *side)

    def _remember(self, value: Tensor, state: LayerCache | None) -> None:
        """Keep the last inputs of the convolution after a prefill (B, L, C)."""
        if value.dim() == 3 and state is not None:
            state.push(value)

    def _project_out(self, y: Activation) -> Tensor:
        """out_proj (B, L, E) -> (B, L, D)."""
        (out,) = self.out_proj(y)
        assert isinstance(out, Tensor)
        return out

    def _rotated(self, y: Tensor) -> Activation:
        """out_proj's input from the values y (..., E) where a rotation is set: rotated, int8 where the site is on."""
        assert self.rotation is not None
        site = self.out_proj_input
        return site.wrap(
            *ops.hadamard_quant(y, self.rotation, site.output_code(), site.per_token, self.dtype)
        )

    def allocate_state(self, batch_size: int) -> LayerCache:
        """The state before the first token: zeros."""
        raise NotImplementedError

    def _empty_conv_state(self, batch_size: int) -> Tensor:
        """Zeros (B, W-1, C) in the type that enters the convolution."""
        channels, width = self.conv1d.weight.shape
        conv = self.A_log.new_zeros(batch_size, width - 1, channels, dtype=self.dtype)
        site = self.conv_input
        if site.code is not None and site.code.is_scalar_knee:
            assert site.rows is not None
            conv = ops.encode(conv, site.rows)
        return conv
