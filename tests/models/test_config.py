from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.models.config import Mamba2Config, MambaConfig, dtype_from_name
from dualscale_mamba.models.config_json import config_from_json
from dualscale_mamba.models.pretrained import check_source

STATE_SPACES = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "pad_vocab_size_multiple": 8,
}
MAMBA2 = {**STATE_SPACES, "ssm_cfg": {"layer": "Mamba2"}, "pad_vocab_size_multiple": 16, "attn_layer_idx": []}
TRANSFORMERS = {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
TRANSFORMERS2 = {
    **TRANSFORMERS,
    "model_type": "mamba2",
    "num_heads": 24,
    "n_groups": 1,
    "tie_word_embeddings": True,
    "vocab_size": 50288,
}
MODEL_KEYS = {
    "name",
    "family",
    "source",
    "revision",
    "implementation",
    "dtype",
    "residual_dtype",
    "state_dtype",
}
FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize(
    "raw",
    [
        STATE_SPACES,
        {**STATE_SPACES, "ssm_cfg": {"layer": "Mamba1", "dt_rank": "auto", "dt_min": 0.01}},
        TRANSFORMERS,
        {**TRANSFORMERS, "time_step_rank": 48, "intermediate_size": 1536, "expand": 16},
        {**TRANSFORMERS, **STATE_SPACES, "vocab_size": 50280},
    ],
)
def test_both_layouts(raw: dict[str, Any]) -> None:
    config = config_from_json(raw, "config.json")
    assert config == MambaConfig(d_model=768, n_layer=24, vocab_size=50280)
    assert (config.d_inner, config.dt_rank, config.d_state, config.d_conv) == (1536, 48, 16, 4)


def test_fields_of_state_spaces() -> None:
    ssm = {"d_state": 8, "d_conv": 3, "expand": 1, "dt_rank": 5, "conv_bias": False, "bias": True}
    config = config_from_json({**STATE_SPACES, "ssm_cfg": ssm, "tie_embeddings": False}, "config.json")
    expected = MambaConfig(
        768,
        24,
        50280,
        d_state=8,
        d_conv=3,
        expand=1,
        dt_rank=5,
        tie_embeddings=False,
        conv_bias=False,
        bias=True,
    )
    assert config == expected


def test_fields_of_transformers() -> None:
    fields = {
        "state_size": 8,
        "conv_kernel": 3,
        "intermediate_size": 768,
        "layer_norm_epsilon": 1e-6,
        "use_conv_bias": False,
        "use_bias": True,
        "tie_word_embeddings": False,
    }
    config = config_from_json({**TRANSFORMERS, **fields}, "config.json")
    expected = MambaConfig(
        768, 24, 50280, d_state=8, d_conv=3, expand=1, norm_eps=1e-6,
        tie_embeddings=False, conv_bias=False, bias=True,
    )  # fmt: skip
    assert config == expected


@pytest.mark.parametrize(
    "raw",
    [
        MAMBA2,
        {**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "d_ssm": None, "rmsnorm": True, "D_has_hdim": False}},
        {**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "dt_max": 0.2, "A_init_range": [1, 8], "conv_init": None}},
        {**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.0, math.inf], "headdim": 64}},
        TRANSFORMERS2,
        {**TRANSFORMERS2, "norm_before_gate": True, "rms_norm": True, "residual_in_fp32": True},
        {**TRANSFORMERS2, "time_step_limit": [0.0, {"__float__": "Infinity"}], "state_size": 128},
        {**TRANSFORMERS2, "time_step_limit": [0.0, "inf"], "head_dim": 64, "time_step_rank": 256},
    ],
)
def test_both_layouts_of_mamba2(raw: dict[str, Any]) -> None:
    config = config_from_json(raw, "config.json")
    assert config == Mamba2Config(d_model=768, n_layer=24, vocab_size=50288)
    assert isinstance(config, Mamba2Config)
    assert (config.d_inner, config.n_heads, config.conv_channels) == (1536, 24, 1792)
    assert (config.d_state, config.head_dim, config.chunk_size, config.norm_group_size) == (
        128,
        64,
        256,
        1536,
    )
    assert (config.delta_min, config.delta_max) == (0.0, math.inf)


def test_fields_of_mamba2_in_both_layouts() -> None:
    ssm = {
        "layer": "Mamba2", "d_state": 64, "headdim": 32, "ngroups": 4, "d_conv": 3, "expand": 1, "bias": True,
        "conv_bias": False, "chunk_size": 128, "dt_limit": [0.01, 0.5], "norm_before_gate": True,
    }  # fmt: skip
    expected = Mamba2Config(
        768, 24, 50280, d_state=64, d_conv=3, expand=1, norm_eps=1e-5, tie_embeddings=False, conv_bias=False,
        bias=True, head_dim=32, n_groups=4, chunk_size=128, delta_min=0.01, delta_max=0.5, norm_before_gate=True,
    )  # fmt: skip
    official = {**STATE_SPACES, "ssm_cfg": ssm, "tie_embeddings": False}
    assert config_from_json(official, "config.json") == expected
    assert expected.norm_group_size == 192
    fields = {
        "state_size": 64, "head_dim": 32, "n_groups": 4, "conv_kernel": 3, "expand": 1, "use_bias": True,
        "use_conv_bias": False, "chunk_size": 128, "time_step_limit": [0.01, 0.5], "layer_norm_epsilon": 1e-6,
        "num_heads": 24, "tie_word_embeddings": False, "vocab_size": 50280,
    }  # fmt: skip
    converted = config_from_json({**TRANSFORMERS2, **fields}, "config.json")
    assert converted == dataclasses.replace(expected, norm_eps=1e-6, norm_before_gate=False)


def test_transformers_defaults_are_that_librarys() -> None:
    """A file may leave out what equals them: Codestral's sizes."""
    raw = {"model_type": "mamba2", "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 32768}
    expected = Mamba2Config(4096, 64, 32768, n_groups=8, tie_embeddings=False)
    assert config_from_json(raw, "config.json") == expected
    assert expected.norm_group_size == 1024


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({**STATE_SPACES, "ssm_cfg": {"layer": "Mamba3"}}, "the layer Mamba3 is not supported yet"),
        ({**STATE_SPACES, "attn_layer_idx": [3, 9]}, r"hybrid with attention \(attn_layer_idx \[3, 9\]\)"),
        ({**STATE_SPACES, "d_intermediate": 512}, "MLP"),
        ({**STATE_SPACES, "rms_norm": False}, "LayerNorm"),
        ({**STATE_SPACES, "ssm_cfg": {"headdim": 64}}, "headdim"),
        ({**STATE_SPACES, "ssm_cfg": {"d_conv": 7}}, "width 7"),
        ({**STATE_SPACES, "d_model": "wide"}, "config.json"),
        ({**STATE_SPACES, "n_layer": 0}, "n_layer must be a positive"),
        ({"d_model": 768, "n_layer": 2}, "'vocab_size' is missing"),
        ({**TRANSFORMERS, "model_type": "falcon_mamba"}, "falcon_mamba is not supported yet"),
        ({**TRANSFORMERS, "model_type": "bamba"}, "bamba is not supported yet"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "ssm_cfg with rmsnorm False"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg with D_has_hdim True"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "d_ssm": 512}}, "ssm_cfg with d_ssm 512"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "dt_rank": 8}}, "ssm_cfg with dt_rank"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "headdim": 100}}, "head_dim 100 does not divide"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "ngroups": 5}}, "n_groups 5 does not divide the 24 heads"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "ngroups": 0}}, "n_groups must be a positive"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "headdim": 0}}, "head_dim must be a positive"),
        (
            {**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.5, 0.1]}},
            r"limits of delta .*\(0\.5, 0\.1\)",
        ),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.5, "high"]}}, "wrong type .*high"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "dt_limit": 0.5}}, "wrong type"),
        ({**MAMBA2, "ssm_cfg": {"layer": "Mamba2", "dt_limit": [0, 1, 2]}}, "limits"),
        ({**TRANSFORMERS2, "num_heads": 12}, "num_heads 12 times head_dim 64 is not the 1536 channels"),
        ({**TRANSFORMERS, "hidden_act": "gelu"}, "gelu"),
        ({**TRANSFORMERS, "intermediate_size": 1000}, "no multiple"),
        ({**TRANSFORMERS, "quantization_config": {}}, "quantized already"),
        ({"n_embd": 3}, "neither the state-spaces layout"),
        ({}, "its fields are none|Its fields are none"),
    ],
)
def test_what_is_not_understood_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        config_from_json(raw, "here/config.json")
    assert "here/config.json" in str(caught.value)


def test_dtype_names() -> None:
    assert dtype_from_name("auto", torch.device("cpu")) == torch.float32
    assert dtype_from_name("auto", torch.device("cuda")) == torch.float16
    assert dtype_from_name("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"model\.residual_dtype=int8"):
        dtype_from_name("int8", torch.device("cpu"), "model.residual_dtype")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_model_file(path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert set(content) == MODEL_KEYS
    assert content["name"] == path.stem
    assert content["family"] == ("mamba2" if re.search("mamba2|codestral", path.stem) else "mamba1")
    source = content["source"].replace("${paths.checkpoints}", str(tmp_path))
    if source != content["source"]:
        with pytest.raises(ConfigError, match=r"paths\.checkpoints=DIR"):
            check_source(source)
    else:
        check_source(source)
