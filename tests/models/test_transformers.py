"""Checkpoints in the layout of transformers, and that library's own models on the same files, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from coded import IDS
from safetensors.torch import load_file, save_file

from dualscale_mamba.models import names
from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig
from dualscale_mamba.models.pretrained import ASSETS, Pretrained, load_pretrained

TINY = {"mamba1": "tiny", "mamba2": "tiny2"}
CLASSES = {"mamba1": "MambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}


@pytest.fixture(params=TINY)
def loaded(request: pytest.FixtureRequest) -> Pretrained:
    """The embedded model of each family."""
    found: Pretrained = request.getfixturevalue(TINY[request.param])
    return found


def fields(config: ModelConfig) -> dict[str, Any]:
    """What that library writes into config.json."""
    shared = {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layer,
        "vocab_size": config.vocab_size,
        "state_size": config.d_state,
        "conv_kernel": config.d_conv,
        "expand": config.expand,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "eos_token_id": 0,
    }
    if isinstance(config, MambaConfig):
        own = {"intermediate_size": config.d_inner, "time_step_rank": config.dt_rank}
        return {"model_type": "mamba", **shared, **own}
    assert isinstance(config, Mamba2Config)
    return {
        "model_type": "mamba2",
        **shared,
        "num_heads": config.n_heads,
        "head_dim": config.head_dim,
        "n_groups": config.n_groups,
        "chunk_size": config.chunk_size,
        "time_step_limit": [config.delta_min, {"__float__": "Infinity"}],
        "norm_before_gate": True,  # in files, without effect
    }


def to_transformers(folder: Path, config: ModelConfig) -> None:
    """Write the embedded checkpoint of the family in the transformers layout."""
    source = ASSETS / f"{config.family}-tiny"
    tensors = load_file(source / "model.safetensors")
    ours = {names.rename(name, names.FROM_CHECKPOINT): value for name, value in tensors.items()}
    table = names.TO_TRANSFORMERS[config.family]
    save_file(
        {names.rename(name, table): value for name, value in ours.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    architectures = {"architectures": [CLASSES[config.family]]}
    (folder / "config.json").write_text(json.dumps({**fields(config), **architectures}))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())


def test_the_layout_gives_the_same_logits(loaded: Pretrained, tmp_path: Path) -> None:
    to_transformers(tmp_path, loaded.config)
    found = load_pretrained(str(tmp_path))
    assert found.config == loaded.config
    torch.testing.assert_close(found.model(IDS), loaded.model(IDS), atol=0, rtol=0)


def test_transformers_agrees_on_our_weights(loaded: Pretrained, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    to_transformers(tmp_path, loaded.config)
    other = getattr(transformers, CLASSES[loaded.config.family])
    with torch.no_grad():
        expected = other.from_pretrained(tmp_path, dtype=torch.float32)(IDS).logits
    torch.testing.assert_close(loaded.model(IDS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_groups": 1},
        {"n_groups": 2, "tie_word_embeddings": True},
        {"n_groups": 1, "time_step_limit": (0.02, 0.03), "chunk_size": 8},
        {"n_groups": 1, "use_bias": True, "use_conv_bias": False, "expand": 1, "num_heads": 4},
    ],
    ids=str,
)
def test_we_agree_on_their_weights(sizes: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(5)
    shape = {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 16, "num_hidden_layers": 2}
    config = transformers.Mamba2Config(vocab_size=4096, eos_token_id=0, **{**shape, **sizes})
    other = transformers.Mamba2ForCausalLM(config).eval()
    for name, value in other.named_parameters():  # its biases and gains start at 0 and 1
        if name.endswith(("bias", "norm.weight", ".D")):
            value.data.add_(torch.randn_like(value) * 0.2)
    other.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((ASSETS / "mamba2-tiny" / "tokenizer.json").read_bytes())
    model = load_pretrained(str(tmp_path), family="mamba2").model
    with torch.no_grad():
        expected = other(IDS).logits
    torch.testing.assert_close(model(IDS), expected, atol=1e-4, rtol=0)
    if "time_step_limit" not in sizes:  # that library and the official package do not limit delta in steps
        first = other(IDS[:, :9], use_cache=True)
        second = other(IDS[:, 9:10], cache_params=first.cache_params, use_cache=True).logits[:, 0]
        cache = model.allocate_cache(2)
        model(IDS[:, :9], cache)
        torch.testing.assert_close(model.step(IDS[:, 9], cache), second.detach(), atol=1e-4, rtol=0)
