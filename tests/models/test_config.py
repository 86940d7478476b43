from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.models.config import MambaConfig, dtype_from_name
from dualscale_mamba.models.config_json import config_from_json
from dualscale_mamba.models.pretrained import check_source

STATE_SPACES = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "pad_vocab_size_multiple": 8,
}
TRANSFORMERS = {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
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
    source = content["source"].replace("${paths.checkpoints}", str(tmp_path))
    if source != content["source"]:
        with pytest.raises(ConfigError, match=r"paths\.checkpoints=DIR"):
            check_source(source)
    else:
        check_source(source)
