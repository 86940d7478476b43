"""The official package (mamba_ssm) behind this one's interface: the floating-point reference arm on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models import names
from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig, name_of_dtype
from dualscale_mamba.quantization.site import Site

KEY, NAME = "model.implementation", "mamba_ssm"
NORM_EPS = 1e-5  # fixed in the official model


@dataclass
class OfficialCache:
    """States of the official model; ``parameters`` is its ``InferenceParams``."""

    parameters: Any
    batch_size: int
    position: int = 0


class OfficialLM(nn.Module):
    """``MambaLMHeadModel`` with the weights of a checkpoint; it has no sites and cannot be quantized.

    The states of Mamba-2 between calls are of the weights' type there.

    Args:
        config: Sizes.
        weights: By this package's names.
        dtype: Type of its weights.
        residual_dtype: Type of its residual stream: float32, or ``dtype``.
        device: A CUDA device.

    Raises:
        ConfigError: The package is not installed, the device is no GPU, or the model cannot be expressed.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        residual_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        check_available(device)
        if config.norm_eps != NORM_EPS:
            raise ConfigError(KEY, NAME, f"native for a model whose norm_eps is {config.norm_eps}")
        if residual_dtype not in (torch.float32, dtype):
            raise ConfigError("model.residual_dtype", residual_dtype, f"float32 or {dtype} with {KEY}={NAME}")
        self.config, self.dtype, self.residual_dtype = config, dtype, residual_dtype
        self.lm = _build(config, residual_dtype == torch.float32, dtype, device)
        self.lm.load_state_dict(
            {
                names.rename(name, names.TO_STATE_SPACES[config.family]): value[:, None]
                if names.is_conv_weight(name)
                else value
                for name, value in weights.items()
            }
        )
        self.lm.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        weight: Tensor = next(self.lm.parameters())
        return weight.device

    def sites(self) -> dict[str, Site]:
        """None: the official model is the unquantized reference."""
        return {}

    def allocate_cache(self, batch_size: int, max_length: int = 1 << 20) -> OfficialCache:
        """Empty states for ``batch_size`` sequences."""
        from mamba_ssm.utils.generation import InferenceParams

        return OfficialCache(InferenceParams(max_seqlen=max_length, max_batch_size=batch_size), batch_size)

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, cache: OfficialCache | None = None, last_only: bool = False
    ) -> Tensor:
        """Logits (B, L, V), or (B, 1, V) of the last position; a prefill must start from an empty cache."""
        if cache is not None and cache.position and input_ids.shape[1] > 1:
            raise ConfigError(KEY, NAME, "native for a prefill that continues a cache")
        parameters = None if cache is None else cache.parameters
        output = self.lm(input_ids, inference_params=parameters, num_last_tokens=int(last_only))
        if cache is not None:
            cache.position += input_ids.shape[1]
            cache.parameters.seqlen_offset = cache.position
        logits: Tensor = output.logits
        return logits

    def step(self, input_ids: Tensor, cache: OfficialCache) -> Tensor:
        """One token: input_ids int64 (B,) -> logits (B, V); the cache is updated."""
        return self.forward(input_ids[:, None], cache)[:, 0]


def check_available(device: torch.device, state_dtype: torch.dtype = torch.float32) -> None:
    """Refuse early where the official package cannot run.

    Raises:
        ConfigError: No CUDA device, a type of the state was chosen, or the package cannot be imported.
    """
    if device.type != "cuda":
        raise ConfigError(KEY, NAME, f"native on {device.type}", "The official kernels need a CUDA device.")
    if state_dtype != torch.float32:
        raise ConfigError("model.state_dtype", name_of_dtype(state_dtype), f"float32 with {KEY}={NAME}")
    try:
        import mamba_ssm  # noqa: F401 - only whether it can be imported
    except ImportError as error:
        hint = f"It cannot be imported ({error}): pip install --no-build-isolation 'dualscale_mamba[mamba]'."
        raise ConfigError(KEY, NAME, "native without the package mamba_ssm", hint) from error


def _build(config: ModelConfig, fp32_residual: bool, dtype: torch.dtype, device: torch.device) -> Any:
    from mamba_ssm.models.config_mamba import MambaConfig as OfficialConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    official = OfficialConfig(
        d_model=config.d_model,
        n_layer=config.n_layer,
        vocab_size=config.vocab_size,
        ssm_cfg=_options(config),
        residual_in_fp32=fp32_residual,
        pad_vocab_size_multiple=1,
        tie_embeddings=config.tie_embeddings,
    )
    return MambaLMHeadModel(official, device=device, dtype=dtype).eval()


def _options(config: ModelConfig) -> dict[str, Any]:
    """The arguments of the official mixer."""
    shared = {name: getattr(config, name) for name in ("d_state", "d_conv", "expand", "conv_bias", "bias")}
    if isinstance(config, MambaConfig):
        return {"layer": "Mamba1", "dt_rank": config.dt_rank, **shared}
    assert isinstance(config, Mamba2Config)
    if config.norm_group_size * config.n_groups != config.d_inner:
        wanted = f"native for a model with norm_group_size={config.norm_group_size}"
        raise ConfigError(KEY, NAME, wanted)
    return {
        "layer": "Mamba2",
        "headdim": config.head_dim,
        "ngroups": config.n_groups,
        "chunk_size": config.chunk_size,
        "dt_limit": (config.delta_min, config.delta_max),
        "norm_before_gate": config.norm_before_gate,
        **shared,
    }
