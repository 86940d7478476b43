"""Mamba-2 (Dao & Gu 2024, arXiv:2405.21060): the mixer of section 7 around state space duality.

Glossary; one-letter names are used for these alone:

======== ==============================================================================================
symbol   meaning
======== ==============================================================================================
``B``    in shapes the batch; as a tensor the input matrix of the state space, ``(B, L, G*N)``
``L``    length of the sequence; absent from the shapes of a one-token step
``D``    in shapes the width of the residual stream; as a tensor the skip weight, ``(H,)``
``E``    number of channels of the mixer (d_inner), H*P
``H``    number of heads
``P``    channels of a head (head_dim)
``G``    groups of heads that share B and C (n_groups)
``N``    state size of a channel (d_state)
``W``    width of the causal convolution (d_conv)
``x``    input of the state space, ``(B, L, E)``
``z``    the gate, ``(B, L, E)``
``dt``   step size before bias and softplus, ``(B, L, H)``
``A``    state matrix, one negative number a head, ``(H,)``
``C``    output matrix of the state space, ``(B, L, G*N)``
``h``    state of the state space, ``(B, H, P, N)``
======== ==============================================================================================

    [z, xBC, dt] = in_proj(hidden)      [x, B, C] = SiLU(conv(xBC))      delta = clamp(softplus(dt + dt_bias))
    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t^T          y_t = h_t C_t + D x_t
    out = out_proj(norm(y * SiLU(z)))

As in Mamba-1 the sites alone know of quantization, and a call with ``(B, D)`` in place of ``(B, L, D)`` is one token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.code_rows import Codes, MadeOfCodes, join_rows
from dualscale_mamba.models.config import Mamba2Config
from dualscale_mamba.models.layers import GatedRMSNorm
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.mixer import Mixer
from dualscale_mamba.models.operands import any_operand, operand
from dualscale_mamba.quantization.site import Activation, Site
from dualscale_mamba.sites import MAMBA2_SITES

Run = tuple[slice, Tensor | None, list[int]]


def conv_runs(codes: Codes, widths: Sequence[int]) -> Iterator[Run]:
    """Neighbouring channels that one call of the convolution can emit: which, their code rows, their widths.

    A call emits one family of codes, or floating point. The convolution is depthwise, so that calls on some of the
    channels each compute the same as one on all of them.
    """
    start = 0
    parts = zip(codes, widths, strict=True)
    for _, run in groupby(parts, key=lambda part: None if part[0] is None else part[0].shape[1]):
        found, columns = (list(column) for column in zip(*run, strict=True))
        rows = None if found[0] is None else join_rows(found, columns)
        yield slice(start, start + sum(columns)), rows, columns
        start += sum(columns)


class Mamba2Mixer(Mixer):
    """The layer of Figure 6, right, of the paper: all inputs of the state space come from one projection.

    Official implementation: ``Mamba2.forward`` and ``Mamba2.step`` in ``mamba_ssm/modules/mamba2.py``.

    Args:
        config: Sizes.
        dtype: Type of linear weights and of floating-point activations.
        state_dtype: Type of h between calls, float32 or float16; inside a call it is fp32.
    """

    family: ClassVar[str] = "mamba2"
    site_names: ClassVar[tuple[str, ...]] = tuple(MAMBA2_SITES)
    z: Site
    x: Site
    B: Site
    C: Site
    dt: Site

    def __init__(self, config: Mamba2Config, dtype: torch.dtype, state_dtype: torch.dtype) -> None:
        E, GN, H = config.d_inner, config.n_groups * config.d_state, config.n_heads
        widths = (E, config.conv_channels, H)
        super().__init__(config, dtype, widths, channels=config.conv_channels, state_shape=(H,))
        self.norm = GatedRMSNorm(E, config.norm_eps, config.norm_group_size, config.norm_before_gate, dtype)
        self.n_groups, self.chunk_size = config.n_groups, config.chunk_size
        self.delta_limits = (config.delta_min, config.delta_max)
        self.state_shape, self.state_dtype = (H, config.head_dim, config.d_state), state_dtype
        self.conv_widths = (E, GN, GN)
        self._runs = MadeOfCodes[list[Run]]()

    def forward(self, hidden: Activation, state: LayerCache | None = None) -> Tensor:
        """hidden (B, L, D), or (B, D) with a state for one token -> the same shape."""
        z, xbc, dt = self.in_proj(hidden, (self.z, self.conv_input, self.dt), self.widths)
        x, B, C = self._convolve(xbc, state)  # (B, L, E | G*N | G*N)
        y = self._scan(x, dt, B, C, state)  # (B, L, E)
        return self._project_out(self._gate(y, z))  # (B, L, D)

    def projections(self) -> tuple[tuple[Linear, Site | None], ...]:
        """Both linear layers, each with the one site that alone feeds it."""
        return (self.in_proj, self.in_proj_input), (self.out_proj, self.out_proj_input)

    def _convolve(self, xbc: Activation, state: LayerCache | None) -> tuple[Activation, ...]:
        """x, B, C = SiLU(conv(xbc)), each emitted for its site."""
        value, code = operand(xbc, self.dtype)
        codes = [site.output_code() for site in (self.x, self.B, self.C)]
        runs = self._runs(codes, lambda: list(conv_runs(codes, self.conv_widths)))
        parts: list[Tensor] = []
        for channels, rows, widths in runs:
            y = self._conv(value, code, state, rows, channels if len(runs) > 1 else None)
            parts += torch.split(y, widths, dim=-1)
        self._remember(value, state)
        return tuple(site.wrap(part) for site, part in zip((self.x, self.B, self.C), parts, strict=True))

    def _scan(
        self, x: Activation, dt: Activation, B: Activation, C: Activation, state: LayerCache | None
    ) -> Tensor:
        """State space duality; the operator decodes each of its inputs on load."""
        (x, x_code), (B, B_code), (C, C_code) = any_operand(x), any_operand(B), any_operand(C)
        delta, delta_code = operand(dt, self.dtype)
        inputs = (x, x_code, delta, delta_code, self.decay(), B, B_code, C, C_code)
        weights = (self.D, self.dt_bias, *self.delta_limits, self.n_groups)
        if x.dim() == 2:
            assert state is not None, "a one-token step needs a state"
            h = self.state_store.values(state)
            y = ops.ssd_state_update(h, *inputs, *weights, self.dtype)
            self.state_store.keep(state, h, tokens=1)
            return y
        initial = None if state is None else self.state_store.values(state)
        y, h = ops.ssd_scan(*inputs, *weights, initial, self.chunk_size, self.state_dtype, self.dtype)
        if state is not None:
            self.state_store.keep(state, h, tokens=x.shape[1])
        return y

    def _gate(self, y: Tensor, z: Activation) -> Activation:
        """out_proj's input: norm(y * SiLU(z)), rotated where a rotation is set, int8 where the site is on."""
        gate = operand(z, self.dtype)
        site = self.out_proj_input
        if self.rotation is None:
            return site.wrap(*self.norm(y, gate, site.output_code(), site.per_token))
        normed, _ = self.norm(y, gate)
        return self._rotated(normed)

    def allocate_state(self, batch_size: int) -> LayerCache:
        """The state before the first token: zeros; that of the state space (B, H, P, N), ``state_dtype`` or codes."""
        h = self.A_log.new_zeros(batch_size, *self.state_shape, dtype=self.state_dtype)
        return self.state_store.empty(self._empty_conv_state(batch_size), h)
