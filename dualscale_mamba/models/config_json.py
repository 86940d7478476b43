"""The sizes of a model from a checkpoint's ``config.json``.

Two layouts exist and are told apart by content: transformers files carry ``model_type``, state-spaces files
carry ``d_model`` only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dualscale_mamba.errors import CheckpointError
from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig

# Options of the official mixers by layer: those that are sizes here, by their names here; and those that only shape
# the initial weights or choose a code path.
_SHARED = {name: name for name in ("d_state", "d_conv", "expand", "conv_bias", "bias")}
_OPTIONS: dict[str, dict[str, str]] = {
    "Mamba1": {**_SHARED, "dt_rank": "dt_rank"},
    "Mamba2": {
        **_SHARED,
        "headdim": "head_dim",
        "ngroups": "n_groups",
        "chunk_size": "chunk_size",
        "norm_before_gate": "norm_before_gate",
    },
}
_WITHOUT_EFFECT: dict[str, set[str]] = {
    "Mamba1": {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"},
    "Mamba2": {
        *("dt_min", "dt_max", "dt_init_floor", "A_init_range", "conv_init"),
        *("use_mem_eff_path", "sequence_parallel"),
    },
}
# Options of Mamba-2 that have one value only here; they are the defaults of the official mixer.
_FIXED: dict[str, object] = {"rmsnorm": True, "D_has_hdim": False, "d_ssm": None}


def config_from_json(raw: Mapping[str, Any], where: str) -> ModelConfig:
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
        _check_sizes(config, where)
        if isinstance(config, Mamba2Config):
            _check_mamba2(config, where)
    except KeyError as error:
        raise CheckpointError(f"{where}: the field {error} is missing") from error
    except TypeError as error:
        raise CheckpointError(f"{where}: a field has the wrong type ({error})") from error
    return config


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A ``config.json`` in the state-spaces layout from which :func:`config_from_json` makes the same sizes.

    Raises:
        CheckpointError: That layout has no field for one of them.
    """
    layer = "Mamba1" if config.family == "mamba1" else "Mamba2"
    options = {theirs: getattr(config, ours) for theirs, ours in _OPTIONS[layer].items()}
    if isinstance(config, Mamba2Config):
        options["dt_limit"] = [str(config.delta_min), str(config.delta_max)]
    made = {
        **{name: getattr(config, name) for name in ("d_model", "n_layer", "vocab_size", "tie_embeddings")},
        **{"ssm_cfg": {"layer": layer, **options}, "rms_norm": True, "pad_vocab_size_multiple": 1},
    }
    if config_from_json(made, "config.json") != config:
        raise CheckpointError(f"the state-spaces layout of config.json has no field for all of {config}")
    return made


def _unsupported(where: str, what: str) -> CheckpointError:
    return CheckpointError(f"{where}: {what} is not supported yet; Mamba-1 and Mamba-2 language models are")


def _check_sizes(config: ModelConfig, where: str) -> None:
    names = ["d_model", "n_layer", "vocab_size", "d_state", "d_conv", "expand"]
    names += ["dt_rank"] if config.family == "mamba1" else ["head_dim", "n_groups", "chunk_size"]
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{where}: {name} must be a positive whole number, it is {value!r}")
    if not 2 <= config.d_conv <= 4:
        raise _unsupported(where, f"a convolution of width {config.d_conv} (2 to 4 are)")


def _check_mamba2(config: Mamba2Config, where: str) -> None:
    channels, heads, groups = config.d_inner, config.n_heads, config.n_groups
    if channels % config.head_dim:
        raise CheckpointError(f"{where}: head_dim {config.head_dim} does not divide the {channels} channels")
    if heads % groups:
        raise CheckpointError(f"{where}: n_groups {groups} does not divide the {heads} heads")
    if not 0.0 <= config.delta_min <= config.delta_max:
        limits = (config.delta_min, config.delta_max)
        raise CheckpointError(f"{where}: the limits of delta must be 0 <= low <= high, they are {limits}")


def _from_state_spaces(raw: Mapping[str, Any], where: str) -> ModelConfig:
    if "d_model" not in raw:
        raise CheckpointError(
            f"{where}: neither the state-spaces layout (no d_model) nor that of transformers (no model_type)."
            f" Its fields are {', '.join(sorted(raw)) or 'none'}"
        )
    if raw.get("attn_layer_idx"):
        raise _unsupported(where, f"a hybrid with attention (attn_layer_idx {raw['attn_layer_idx']})")
    if raw.get("d_intermediate"):
        raise _unsupported(where, f"an MLP in each block (d_intermediate {raw['d_intermediate']})")
    if not raw.get("rms_norm", True):
        raise _unsupported(where, "LayerNorm (rms_norm false)")
    ssm = dict(raw.get("ssm_cfg") or {})
    layer = ssm.pop("layer", "Mamba1")
    if layer not in _OPTIONS:
        raise _unsupported(where, f"the layer {layer}")
    multiple = raw.get("pad_vocab_size_multiple") or 8
    shared = {
        "d_model": raw["d_model"],
        "n_layer": raw["n_layer"],
        "vocab_size": math.ceil(raw["vocab_size"] / multiple) * multiple,
        "tie_embeddings": raw.get("tie_embeddings", True),
    }
    options = _official_options(layer, ssm, where)
    return MambaConfig(**shared, **options) if layer == "Mamba1" else Mamba2Config(**shared, **options)


def _official_options(layer: str, ssm: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments of the official mixer under this package's names; what cannot be run is refused by name."""
    found: dict[str, Any] = {ours: ssm.pop(name) for name, ours in _OPTIONS[layer].items() if name in ssm}
    if found.get("dt_rank") == "auto":
        del found["dt_rank"]
    if layer == "Mamba2":
        for name, value in _FIXED.items():
            if (given := ssm.pop(name, value)) != value:
                raise _unsupported(where, f"ssm_cfg with {name} {given}")
        if "dt_limit" in ssm:
            found["delta_min"], found["delta_max"] = _limits(ssm.pop("dt_limit"))
    unknown = sorted(set(ssm) - _WITHOUT_EFFECT[layer])
    if unknown:
        raise _unsupported(where, f"ssm_cfg with {', '.join(unknown)}")
    return found


def _limits(pair: Any) -> tuple[float, float]:
    """Two numbers; JSON has no infinity, so that it may be a word, or transformers' tagged object."""
    try:
        low, high = (value["__float__"] if isinstance(value, dict) else value for value in pair)
        return float(low), float(high)
    except (ValueError, KeyError) as error:
        raise TypeError(f"limits {pair}: {error}") from error


def _from_transformers(raw: Mapping[str, Any], where: str) -> ModelConfig:
    if raw["model_type"] not in ("mamba", "mamba2"):
        raise _unsupported(where, f"the model type {raw['model_type']}")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _unsupported(where, f"the activation {raw['hidden_act']}")
    shared = {
        "d_model": raw["hidden_size"],
        "n_layer": raw["num_hidden_layers"],
        "vocab_size": raw["vocab_size"],
        "d_conv": raw.get("conv_kernel", 4),
        "norm_eps": raw.get("layer_norm_epsilon", 1e-5),
        "conv_bias": raw.get("use_conv_bias", True),
        "bias": raw.get("use_bias", False),
    }
    if raw["model_type"] == "mamba2":
        return _mamba2_from_transformers(raw, shared, where)
    d_model = raw["hidden_size"]
    d_inner = raw.get("intermediate_size") or raw.get("expand", 2) * d_model
    if d_inner % d_model:
        raise _unsupported(where, f"intermediate_size {d_inner}, no multiple of hidden_size {d_model},")
    rank = raw.get("time_step_rank", "auto")
    return MambaConfig(
        **shared,
        d_state=raw.get("state_size", 16),
        expand=d_inner // d_model,
        dt_rank=0 if rank == "auto" else rank,
        tie_embeddings=raw.get("tie_word_embeddings", True),
    )


def _mamba2_from_transformers(raw: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> Mamba2Config:
    """Defaults are that library's, which differ from the official ones.

    A field ``norm_before_gate`` is not read: the model there gates first whatever its file says, and so do the weights
    of published files that say true.
    """
    low, high = _limits(raw.get("time_step_limit", (0.0, math.inf)))
    config = Mamba2Config(
        **shared,
        d_state=raw.get("state_size", 128),
        expand=raw.get("expand", 2),
        tie_embeddings=raw.get("tie_word_embeddings", False),
        head_dim=raw.get("head_dim", 64),
        n_groups=raw.get("n_groups", 8),
        chunk_size=raw.get("chunk_size", 256),
        delta_min=low,
        delta_max=high,
    )
    heads = raw.get("num_heads", 128)
    if heads * config.head_dim != config.d_inner:
        raise CheckpointError(
            f"{where}: num_heads {heads} times head_dim {config.head_dim} is not the {config.d_inner} channels"
            " that expand and hidden_size make"
        )
    return config
