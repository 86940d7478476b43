"""The sizes of a model from a checkpoint's ``config.json``.

Two layouts exist and are told apart by content: transformers files carry ``model_type``, state-spaces files
carry ``d_model`` only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dualscale_mamba.errors import CheckpointError
from dualscale_mamba.models.config import MambaConfig

# Options of the official mixer that only shape the initial weights or choose a code path.
_WITHOUT_EFFECT = frozenset({"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"})


def config_from_json(raw: Mapping[str, Any], where: str) -> MambaConfig:
    """The model's sizes from the content of a ``config.json`` in either layout.

    Args:
        raw: The parsed file.
        where: Its path, for messages.

    Raises:
        CheckpointError: A family that is not supported yet, or a field that is missing or not understood.
    """
    if "quantization_config" in raw:
        raise CheckpointError(f"{where}: the checkpoint is quantized already; give the original weights")
    try:
        config = _from_transformers(raw, where) if "model_type" in raw else _from_state_spaces(raw, where)
    except KeyError as error:
        raise CheckpointError(f"{where}: the field {error} is missing") from error
    except TypeError as error:
        raise CheckpointError(f"{where}: a field has the wrong type ({error})") from error
    _check_sizes(config, where)
    return config


def _unsupported(where: str, what: str) -> CheckpointError:
    return CheckpointError(f"{where}: {what} is not supported yet; Mamba-1 language models are")


def _check_sizes(config: MambaConfig, where: str) -> None:
    for name in ("d_model", "n_layer", "vocab_size", "d_state", "d_conv", "expand", "dt_rank"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{where}: {name} must be a positive whole number, it is {value!r}")
    if not 2 <= config.d_conv <= 4:
        raise _unsupported(where, f"a convolution of width {config.d_conv} (2 to 4 are)")


def _from_state_spaces(raw: Mapping[str, Any], where: str) -> MambaConfig:
    if "d_model" not in raw:
        raise CheckpointError(
            f"{where}: neither the state-spaces layout (no d_model) nor that of transformers (no model_type)."
            f" Its fields are {', '.join(sorted(raw)) or 'none'}"
        )
    ssm = dict(raw.get("ssm_cfg") or {})
    layer = ssm.pop("layer", "Mamba1")
    if raw.get("attn_layer_idx"):
        raise _unsupported(where, f"a hybrid with attention (attn_layer_idx {raw['attn_layer_idx']})")
    if layer != "Mamba1":
        raise _unsupported(where, f"the layer {layer}")
    if raw.get("d_intermediate"):
        raise _unsupported(where, f"an MLP in each block (d_intermediate {raw['d_intermediate']})")
    if not raw.get("rms_norm", True):
        raise _unsupported(where, "LayerNorm (rms_norm false)")
    multiple = raw.get("pad_vocab_size_multiple") or 8
    rank = ssm.pop("dt_rank", "auto")
    known = {
        name: ssm.pop(name) for name in ("d_state", "d_conv", "expand", "conv_bias", "bias") if name in ssm
    }
    unknown = sorted(set(ssm) - _WITHOUT_EFFECT)
    if unknown:
        raise _unsupported(where, f"ssm_cfg with {', '.join(unknown)}")
    return MambaConfig(
        d_model=raw["d_model"],
        n_layer=raw["n_layer"],
        vocab_size=math.ceil(raw["vocab_size"] / multiple) * multiple,
        dt_rank=0 if rank == "auto" else rank,
        tie_embeddings=raw.get("tie_embeddings", True),
        **known,
    )


def _from_transformers(raw: Mapping[str, Any], where: str) -> MambaConfig:
    if raw["model_type"] != "mamba":
        raise _unsupported(where, f"the model type {raw['model_type']}")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _unsupported(where, f"the activation {raw['hidden_act']}")
    d_model = raw["hidden_size"]
    d_inner = raw.get("intermediate_size") or raw.get("expand", 2) * d_model
    if d_inner % d_model:
        raise _unsupported(where, f"intermediate_size {d_inner}, no multiple of hidden_size {d_model},")
    rank = raw.get("time_step_rank", "auto")
    return MambaConfig(
        d_model=d_model,
        n_layer=raw["num_hidden_layers"],
        vocab_size=raw["vocab_size"],
        d_state=raw.get("state_size", 16),
        d_conv=raw.get("conv_kernel", 4),
        expand=d_inner // d_model,
        dt_rank=0 if rank == "auto" else rank,
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        conv_bias=raw.get("use_conv_bias", True),
        bias=raw.get("use_bias", False),
    )
