"""Mamba-1 (Gu & Dao 2023, arXiv:2312.00752): the mixer of Figure 3 and Algorithm 2.

Glossary; one-letter names are used for these alone:

======== ==============================================================================================
symbol   meaning
======== ==============================================================================================
``B``    in shapes the batch; as a tensor the input matrix of the state space, ``(B, L, N)``
``L``    length of the sequence; absent from the shapes of a one-token step
``D``    in shapes the width of the residual stream; as a tensor the skip weight, ``(E,)``
``E``    number of channels of the mixer (d_inner)
``N``    state size of a channel (d_state)
``R``    rank of delta (dt_rank)
``W``    width of the causal convolution (d_conv)
``x z``  the two halves of in_proj: what is convolved, and the gate
``u``    input of the state space: SiLU(conv(x))
``delta`` step size before bias and softplus
``A``    state matrix, diagonal, negative, ``(E, N)``
``C``    output matrix of the state space, ``(B, L, N)``
``h``    state of the state space, ``(B, E, N)``
======== ==============================================================================================

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t          y_t = C_t h_t + D u_t

Quantization enters at the sites only (:mod:`dualscale_mamba.quantization.site`): the same forward runs a
floating-point model, observes one and runs an int8 one. A call with ``(B, D)`` in place of ``(B, L, D)`` is
one token of decoding and needs a state.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import NO_SIDE_DATA
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.config import MambaConfig
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.mixer import Mixer
from dualscale_mamba.models.operands import any_operand, operand, operands
from dualscale_mamba.quantization.site import Activation, Coded, Site
from dualscale_mamba.sites import MAMBA1_SITES

X_PROJ_READS = ("codes", "decoded", "conv_output")


class MambaMixer(Mixer):
    """The selective state space layer, Figure 3 of the paper.

    Official implementation: ``Mamba.forward`` and ``Mamba.step`` in ``mamba_ssm/modules/mamba_simple.py``.
    Here activations are channels-last and both are one method. The bias of delta is added in fp32 inside the scan, not
    by dt_proj.

    Attributes:
        x_proj_reads: ``codes`` (what the scan reads), ``decoded`` (the same as values) or ``conv_output`` (the values
            before encoding).
    """

    family: ClassVar[str] = "mamba1"
    site_names: ClassVar[tuple[str, ...]] = tuple(MAMBA1_SITES)
    z: Site
    ssm_input: Site
    dt_input: Site
    delta: Site
    B: Site
    C: Site

    def __init__(self, config: MambaConfig, dtype: torch.dtype) -> None:
        E, N, R = config.d_inner, config.d_state, config.dt_rank
        super().__init__(config, dtype, widths=(E, E), channels=E, state_shape=(E, N))
        self.ranks = (R, N, N)
        self.x_proj = Linear(E, R + 2 * N, bias=False, dtype=dtype)
        self.dt_proj = Linear(R, E, bias=False, dtype=dtype)
        self.x_proj_reads = X_PROJ_READS[0]

    def forward(self, hidden: Activation, state: LayerCache | None = None) -> Tensor:
        """hidden (B, L, D), or (B, D) with a state for one token -> the same shape."""
        x, z = self.in_proj(hidden, (self.conv_input, self.z), self.widths)  # (B, L, E), (B, L, E)
        u, readable = self._convolve(x, state)  # (B, L, E); the same twice unless x_proj reads conv_output
        dt, B, C = self.x_proj(readable, (self.dt_input, self.B, self.C), self.ranks)  # (B, L, R | N | N)
        (delta,) = self.dt_proj(dt, (self.delta,), self.widths[:1])  # (B, L, E)
        y = self._scan(u, delta, B, C, z, state)  # (B, L, E)
        return self._project_out(self._emit(y))  # (B, L, D)

    def projections(self) -> tuple[tuple[Linear, Site | None], ...]:
        """Every linear layer, each with the one site that alone feeds it; None where it may read floats in any case."""
        u = None if self.x_proj_reads == "conv_output" else self.ssm_input
        return (
            (self.in_proj, self.in_proj_input),
            (self.x_proj, u),
            (self.dt_proj, self.dt_input),
            (self.out_proj, self.out_proj_input),
        )

    def _convolve(self, x: Activation, state: LayerCache | None) -> tuple[Activation, Activation]:
        """u = SiLU(conv(x)) for the scan and for x_proj."""
        fused, site = self.x_proj_reads != "conv_output", self.ssm_input
        value, x_code = operand(x, self.dtype)
        side = site.side_data(value) if fused else NO_SIDE_DATA
        u = self._conv(value, x_code, state, site.output_code() if fused else None, side=side)
        self._remember(value, state)
        if fused or site.rows is None:
            wrapped = site.wrap(u, side=side)
            return wrapped, wrapped
        return site.encode(u), u

    def _scan(
        self,
        u: Activation,
        delta: Activation,
        B: Activation,
        C: Activation,
        z: Activation,
        state: LayerCache | None,
    ) -> Tensor:
        """Algorithm 2, gated: y = (C h + D u) * SiLU(z)."""
        side = u.side if isinstance(u, Coded) else NO_SIDE_DATA
        u, u_code = any_operand(u)
        (delta, delta_code), (B, B_code), (C, C_code), (z, z_code) = operands((delta, B, C, z), self.dtype)
        A, bias = self.decay(), self.dt_bias
        if u.dim() == 2:
            assert state is not None, "a one-token step needs a state"
            h = self.state_store.values(state)
            y = ops.selective_state_update(
                h, u, u_code, delta, delta_code, A, B, B_code, C, C_code, self.D, z, z_code, bias, self.dtype,
                *side,
            )  # fmt: skip
            self.state_store.keep(state, h, tokens=1)
            return y
        initial = None if state is None else self.state_store.values(state)
        y, h = ops.selective_scan(
            u, u_code, delta, delta_code, A, B, B_code, C, C_code, self.D, z, z_code, bias, initial, self.dtype,
            *side,
        )  # fmt: skip
        if state is not None:
            self.state_store.keep(state, h, tokens=u.shape[1])
        return y

    def _emit(self, y: Tensor) -> Activation:
        """out_proj's input: y, rotated where a rotation is set, int8 where the site is on."""
        site = self.out_proj_input
        if self.rotation is not None:
            return self._rotated(y)
        if site.per_token:
            key, allowed = "precision.linear_input_scale", "static where out_proj's input is not rotated"
            raise ConfigError(key, "per_token", allowed, "Set precision.rotate=true.")
        code = site.output_code()
        return site.wrap(y if code is None else ops.encode(y, code))

    def allocate_state(self, batch_size: int) -> LayerCache:
        """The state before the first token: zeros; that of the state space (B, E, N), fp32 or codes."""
        h = self.A_log.new_zeros(batch_size, *self.A_log.shape)
        return self.state_store.empty(self._empty_conv_state(batch_size), h)
