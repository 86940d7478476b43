"""The language model around the mixers: embedding, blocks, final norm, head.

In the shapes B is the batch, L the length (absent from a one-token step), D the width of the residual stream and V the
rows of the embedding. The order in a block is the official "add, norm, mix".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.cache import Cache, LayerCache
from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig, name_of_dtype
from dualscale_mamba.models.joined import StepWorkspaces, joined_step
from dualscale_mamba.models.layers import Embedding, RMSNorm
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.mamba import MambaMixer
from dualscale_mamba.models.mamba2 import Mamba2Mixer
from dualscale_mamba.models.mixer import Mixer
from dualscale_mamba.models.weight_layer import WeightLayer
from dualscale_mamba.quantization.site import Site
from dualscale_mamba.sites import EMBEDDING, HEAD


def make_mixer(config: ModelConfig, dtype: torch.dtype, state_dtype: torch.dtype) -> Mixer:
    """The mixer of the configuration's family.

    Raises:
        ConfigError: The family has no such state.
    """
    if isinstance(config, MambaConfig):
        if state_dtype != torch.float32:
            raise ConfigError("model.state_dtype", name_of_dtype(state_dtype), "float32 for Mamba-1")
        return MambaMixer(config, dtype)
    assert isinstance(config, Mamba2Config)
    if state_dtype not in (torch.float32, torch.float16):
        raise ConfigError("model.state_dtype", name_of_dtype(state_dtype), "float32 or float16")
    return Mamba2Mixer(config, dtype, state_dtype)


class Block(nn.Module):
    """norm -> mixer; the residual is added by the next norm (the official "add, norm, mix" order).

    One token of an int8 layer is one kernel where a GPU has that.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        residual_dtype: torch.dtype,
        state_dtype: torch.dtype,
        workspaces: StepWorkspaces,
    ) -> None:
        super().__init__()
        self.workspaces = workspaces
        self.norm = RMSNorm(config.d_model, config.norm_eps, dtype, residual_dtype)
        self.mixer = make_mixer(config, dtype, state_dtype)

    def forward(self, x: Tensor, residual: Tensor | None, state: LayerCache | None) -> tuple[Tensor, Tensor]:
        """x, residual (B, L, D) or (B, D) -> the same two for the next block."""
        joined = joined_step(self.norm, self.mixer, x, residual, state, self.workspaces)
        if joined is not None:
            return joined
        hidden, residual = self.norm(x, residual, self.mixer.in_proj_input)
        mixed: Tensor = self.mixer(hidden, state)
        return mixed, residual


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, residual_dtype: torch.dtype, state_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.d_model, dtype)
        workspaces = StepWorkspaces()  # one for all layers, as these follow each other
        self.layers = nn.ModuleList(
            Block(config, dtype, residual_dtype, state_dtype, workspaces) for _ in range(config.n_layer)
        )
        self.norm_f = RMSNorm(config.d_model, config.norm_eps, dtype, residual_dtype)


class MambaLM(nn.Module):
    """A Mamba language model for inference; parameters are named as in the state-spaces checkpoints.

    Args:
        config: Sizes.
        dtype: Type of linear weights and of floating-point activations. Norms, the convolution, A, D and
            the bias of delta are fp32 always.
        residual_dtype: Type of the residual stream.
        state_dtype: Type of the state of the state space between calls.

    Attributes:
        residual_is_rotated: Whether the weights are those of a rotated residual stream.

    Raises:
        ConfigError: The family has no state of that type.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        residual_dtype: torch.dtype = torch.float32,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.residual_dtype = residual_dtype
        self.state_dtype = state_dtype
        self.residual_is_rotated = False
        self.backbone = Backbone(config, dtype, residual_dtype, state_dtype)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False, dtype=dtype)
        self.tie()

    def tie(self) -> None:
        """Make the head the embedding, where the configuration says so; also when both hold codes of one grid.

        Tensors that were loaded or moved one by one are two; call this again then.
        """
        embedding = self.backbone.embedding
        if not self.config.tie_embeddings or self.lm_head.grid != embedding.grid:
            return
        if embedding.is_quantized:
            self.lm_head.share(embedding)
        else:
            self.lm_head.weight = embedding.weight

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
            for name in block.mixer.site_names
        }

    def weight_layers(self) -> dict[str, WeightLayer]:
        """Every layer whose weight may be quantized, e.g. ``layers.3.mixer.in_proj``, in the order of the data flow."""
        projections = {
            f"layers.{index}.mixer.{name}": layer
            for index, block in enumerate(self.blocks())
            for name, layer in block.mixer.named_projections().items()
        }
        return {EMBEDDING: self.backbone.embedding, **projections, HEAD: self.lm_head}

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
