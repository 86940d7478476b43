"""The sizes of a language model, one class a family; the letters are those of the modules of the mixers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from dualscale_mamba.errors import ConfigError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelConfig:
    """What both families have.

    Attributes:
        d_model: Width D of the residual stream.
        n_layer: Number of blocks.
        vocab_size: Rows of the embedding, padding included.
        d_state: State size N.
        d_conv: Convolution width W.
        expand: E / D.
        norm_eps: Added to the mean square in RMSNorm.
        tie_embeddings: Whether the head is the embedding.
        conv_bias: Whether the convolution has a bias.
        bias: Whether in_proj and out_proj have one.
        family: A key of :data:`dualscale_mamba.sites.SITES`.
    """

    family: ClassVar[str]

    d_model: int
    n_layer: int
    vocab_size: int
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    conv_bias: bool = True
    bias: bool = False

    @property
    def d_inner(self) -> int:
        """Number of channels E."""
        return self.expand * self.d_model


@dataclass(frozen=True)
class MambaConfig(ModelConfig):
    """Mamba-1.

    Attributes:
        dt_rank: Rank R of delta; 0 means ceil(D / 16).
    """

    family: ClassVar[str] = "mamba1"

    dt_rank: int = 0

    def __post_init__(self) -> None:
        if self.dt_rank == 0:
            object.__setattr__(self, "dt_rank", math.ceil(self.d_model / 16))


@dataclass(frozen=True)
class Mamba2Config(ModelConfig):
    """Mamba-2.

    Attributes:
        head_dim: Channels P of a head.
        n_groups: Groups G of heads that share B and C.
        chunk_size: Most tokens of one matrix product of the scan; changes rounding only.
        delta_min: Lower limit of delta after softplus.
        delta_max: Upper limit.
        norm_before_gate: Whether the mixer's norm gates the normed values rather than norms the gated ones.
        norm_group_size: Channels that share one mean square in that norm; 0 means E / G.
    """

    family: ClassVar[str] = "mamba2"

    d_state: int = 128
    head_dim: int = 64
    n_groups: int = 1
    chunk_size: int = 256
    delta_min: float = 0.0
    delta_max: float = math.inf
    norm_before_gate: bool = False
    norm_group_size: int = 0

    def __post_init__(self) -> None:
        if self.norm_group_size == 0:
            object.__setattr__(self, "norm_group_size", self.d_inner // max(self.n_groups, 1))

    @property
    def n_heads(self) -> int:
        """Number of heads H."""
        return self.d_inner // self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels E + 2GN of the convolution: x, B and C."""
        return self.d_inner + 2 * self.n_groups * self.d_state


def name_of_dtype(dtype: torch.dtype) -> str:
    """As a configuration spells it, e.g. ``float16``."""
    return str(dtype).removeprefix("torch.")


def dtype_from_name(name: str, device: torch.device, key: str = "model.dtype") -> torch.dtype:
    """``auto`` (float16 on CUDA, float32 elsewhere) or a floating type by name.

    Raises:
        ConfigError: The name is none of these.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(key, name, "one of auto, " + ", ".join(DTYPES))
    return DTYPES[name]
