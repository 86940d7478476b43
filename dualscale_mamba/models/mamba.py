"""Mamba-1 (Gu & Dao 2023, arXiv:2312.00752): the mixer of Figure 3, Algorithm 2, and the language model.

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
``V``    rows of the embedding
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

from typing import Any

import torch
from torch import Tensor, nn

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.cache import Cache, LayerCache
from dualscale_mamba.models.config import MambaConfig
from dualscale_mamba.models.layers import CausalConv, Embedding, RMSNorm, parameter
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.operands import operand, operands
from dualscale_mamba.quantization.site import SILU_FLOOR, Activation, Coded, Site
from dualscale_mamba.sites import MAMBA1_SITES

SITE_NAMES = tuple(MAMBA1_SITES)
X_PROJ_READS = ("codes", "conv_output")


class MambaMixer(nn.Module):
    """The selective state space layer, Figure 3 of the paper.

    Official implementation: ``Mamba.forward`` and ``Mamba.step`` in ``mamba_ssm/modules/mamba_simple.py``.
    Here activations are channels-last and both are one method.

    Attributes:
        rotation: fp32 ``(m, m)`` Hadamard base, present when out_proj's input is rotated.
        x_proj_reads: ``codes`` (what the scan reads) or ``conv_output`` (the values before encoding).
    """

    state_matrix: Tensor | None
    rotation: Tensor | None

    def __init__(self, config: MambaConfig, dtype: torch.dtype) -> None:
        super().__init__()
        D, E, N, R = config.d_model, config.d_inner, config.d_state, config.dt_rank
        self.dtype = dtype
        self.in_proj = Linear(D, 2 * E, bias=config.bias, dtype=dtype)
        self.conv1d = CausalConv(E, config.d_conv, config.conv_bias)
        self.x_proj = Linear(E, R + 2 * N, bias=False, dtype=dtype)
        self.dt_proj = Linear(R, E, bias=False, dtype=dtype)
        self.dt_bias = parameter(E)  # added in fp32 inside the scan, not by dt_proj
        self.A_log = parameter(E, N)
        self.D = parameter(E)
        self.out_proj = Linear(E, D, bias=config.bias, dtype=dtype)
        self.splits = ((E, E), (R, N, N))
        self.x_proj_reads = X_PROJ_READS[0]
        self.in_proj_input = Site()
        self.conv_input = Site()
        self.z = Site()
        self.ssm_input = Site(SILU_FLOOR)
        self.dt_input = Site()
        self.delta = Site()
        self.B = Site()
        self.C = Site()
        self.out_proj_input = Site()
        self.register_buffer("rotation", None, persistent=False)
        self.register_buffer("state_matrix", None, persistent=False)

    def forward(self, hidden: Activation, state: LayerCache | None = None) -> Tensor:
        """hidden (B, L, D), or (B, D) with a state for one token -> the same shape."""
        x, z = self.in_proj(hidden, (self.conv_input, self.z), self.splits[0])  # (B, L, E), (B, L, E)
        u, readable = self._convolve(x, state)  # (B, L, E); the same twice unless x_proj reads conv_output
        dt, B, C = self.x_proj(readable, (self.dt_input, self.B, self.C), self.splits[1])  # (B, L, R | N | N)
        (delta,) = self.dt_proj(dt, (self.delta,), self.splits[0][:1])  # (B, L, E)
        y = self._scan(u, delta, B, C, z, state)  # (B, L, E)
        (out,) = self.out_proj(self._rotate(y))  # (B, L, D)
        assert isinstance(out, Tensor)
        return out

    def _convolve(self, x: Activation, state: LayerCache | None) -> tuple[Activation, Activation]:
        """u = SiLU(conv(x)) for the scan and for x_proj."""
        fused = self.x_proj_reads == "codes"
        value, x_code = operand(x, self.dtype)
        weight, bias, code = (
            self.conv1d.weight,
            self.conv1d.bias,
            self.ssm_input.output_code() if fused else None,
        )
        if value.dim() == 2:
            assert state is not None, "a one-token step needs a state"
            u = ops.causal_conv1d_update(value, x_code, state.conv, weight, bias, code, self.dtype)
        else:
            initial = None if state is None else state.conv
            u = ops.causal_conv1d_encode(value, x_code, weight, bias, initial, code, self.dtype)
            if state is not None:
                state.push(value)
        if fused or self.ssm_input.rows is None:
            wrapped = self.ssm_input.wrap(u)
            return wrapped, wrapped
        return self.ssm_input.wrap(ops.encode(u, self.ssm_input.rows)), u

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
        u, u_code = (u.codes, u.code.rows) if isinstance(u, Coded) else (u, None)
        (delta, delta_code), (B, B_code), (C, C_code), (z, z_code) = operands((delta, B, C, z), self.dtype)
        A, bias = self.decay(), self.dt_bias
        if u.dim() == 2:
            assert state is not None, "a one-token step needs a state"
            return ops.selective_state_update(
                state.ssm, u, u_code, delta, delta_code, A, B, B_code, C, C_code,
                self.D, z, z_code, bias, self.dtype,
            )  # fmt: skip
        h = None if state is None else state.ssm
        y, h = ops.selective_scan(
            u, u_code, delta, delta_code, A, B, B_code, C, C_code, self.D, z, z_code, bias, h, self.dtype
        )
        if state is not None:
            state.ssm.copy_(h)
        return y

    def _rotate(self, y: Tensor) -> Activation:
        """out_proj's input: y, rotated where a rotation is set, int8 where the site is on."""
        site = self.out_proj_input
        code = site.output_code()
        if self.rotation is not None:
            return site.wrap(*ops.hadamard_quant(y, self.rotation, code, site.per_token, self.dtype))
        if site.per_token:
            key, allowed = "precision.linear_input_scale", "static where out_proj's input is not rotated"
            raise ConfigError(key, "per_token", allowed, "Set precision.rotate=true.")
        return site.wrap(y if code is None else ops.encode(y, code))

    def decay(self) -> Tensor:
        """A = -exp(A_log), fp32 (E, N); computed once."""
        if self.state_matrix is None:
            self.state_matrix = -torch.exp(self.A_log)
        return self.state_matrix

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.state_matrix = None  # it belongs to the weights that are replaced
        super()._load_from_state_dict(*arguments)

    def allocate_state(self, batch_size: int) -> LayerCache:
        """The state before the first token: zeros, in the type that enters the convolution."""
        E, N = self.A_log.shape
        conv = self.A_log.new_zeros(batch_size, self.conv1d.weight.shape[1] - 1, E, dtype=self.dtype)
        site = self.conv_input
        if site.code is not None and site.code.is_scalar_knee:
            assert site.rows is not None
            conv = ops.encode(conv, site.rows)
        return LayerCache(conv, self.A_log.new_zeros(batch_size, E, N))


class Block(nn.Module):
    """norm -> mixer; the residual is added by the next norm (the official "add, norm, mix" order)."""

    def __init__(self, config: MambaConfig, dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.norm_eps, dtype, residual_dtype)
        self.mixer = MambaMixer(config, dtype)

    def forward(self, x: Tensor, residual: Tensor | None, state: LayerCache | None) -> tuple[Tensor, Tensor]:
        """x, residual (B, L, D) or (B, D) -> the same two for the next block."""
        hidden, residual = self.norm(x, residual, self.mixer.in_proj_input)
        return self.mixer(hidden, state), residual


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: MambaConfig, dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.d_model, dtype)
        self.layers = nn.ModuleList(Block(config, dtype, residual_dtype) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps, dtype, residual_dtype)


class MambaLM(nn.Module):
    """A Mamba-1 language model for inference; parameters are named as in the state-spaces checkpoints.

    Args:
        config: Sizes.
        dtype: Type of linear weights and of floating-point activations. Norms, the convolution, A, D and
            the bias of delta are fp32 always.
        residual_dtype: Type of the residual stream.
    """

    def __init__(
        self,
        config: MambaConfig,
        dtype: torch.dtype = torch.float32,
        residual_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.residual_dtype = residual_dtype
        self.backbone = Backbone(config, dtype, residual_dtype)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False, dtype=dtype)
        self.tie()

    def tie(self) -> None:
        """Make the head the embedding, where the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.backbone.embedding.weight.device

    def blocks(self) -> list[Block]:
        """The blocks in order."""
        return [block for block in self.backbone.layers if isinstance(block, Block)]

    def sites(self) -> dict[str, Site]:
        """Every site by name, e.g. ``layers.3.mixer.ssm_input``, in the order of the data flow."""
        return {
            f"layers.{index}.mixer.{name}": getattr(block.mixer, name)
            for index, block in enumerate(self.blocks())
            for name in SITE_NAMES
        }

    def allocate_cache(self, batch_size: int) -> Cache:
        """Empty states for ``batch_size`` sequences; allocate after the sites have their codes."""
        return Cache([block.mixer.allocate_state(batch_size) for block in self.blocks()])

    @torch.no_grad()
    def forward(self, input_ids: Tensor, cache: Cache | None = None, last_only: bool = False) -> Tensor:
        """Logits of every position, or of the last one.

        Args:
            input_ids: int64 ``(B, L)``.
            cache: States before the first of these tokens; updated to those after the last.
            last_only: Compute the head for the last position alone.

        Returns:
            Logits of type ``dtype``, ``(B, L, V)`` or ``(B, 1, V)``.
        """
        x, residual = self._blocks(input_ids, cache)
        if last_only:
            x, residual = x[:, -1:], residual[:, -1:]
        return self._head(x, residual)

    @torch.no_grad()
    def step(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """One token: input_ids int64 (B,) -> logits (B, V); the cache is updated."""
        return self._head(*self._blocks(input_ids, cache))

    def _blocks(self, input_ids: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        x = self.backbone.embedding(input_ids)  # (B, L, D), or (B, D) in a step
        residual: Tensor | None = None
        for index, block in enumerate(self.blocks()):
            x, residual = block(x, residual, None if cache is None else cache.layers[index])
        if cache is not None:
            cache.position += input_ids.shape[1] if input_ids.dim() == 2 else 1
        assert residual is not None
        return x, residual

    def _head(self, x: Tensor, residual: Tensor) -> Tensor:
        hidden, _ = self.backbone.norm_f(x, residual)
        (logits,) = self.lm_head(hidden)
        assert isinstance(logits, Tensor)
        return logits
