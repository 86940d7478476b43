"""The adapter of the official package, with a stand-in for it; the real one needs a GPU."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig
from dualscale_mamba.models.fitting import fitted
from dualscale_mamba.models.official import OfficialLM, check_available
from dualscale_mamba.models.pretrained import ASSETS

CUDA = torch.device("cuda")
CONFIG = MambaConfig(d_model=256, n_layer=6, vocab_size=4096)
CONFIG2 = Mamba2Config(d_model=256, n_layer=6, vocab_size=4096, d_state=64, head_dim=32)


class FakeLM(nn.Module):
    def __init__(self, config: SimpleNamespace, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.calls = config, []  # type: ignore[var-annotated]
        self.weight = nn.Parameter(torch.zeros(1))

    def load_state_dict(self, weights: dict[str, Tensor]) -> None:  # type: ignore[override]
        self.loaded = weights

    def forward(self, ids: Tensor, inference_params: Any, num_last_tokens: int) -> SimpleNamespace:
        offset = None if inference_params is None else inference_params.seqlen_offset
        self.calls.append((ids.shape[1], offset))
        return SimpleNamespace(logits=torch.zeros(ids.shape[0], num_last_tokens or ids.shape[1], 8))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    contents: dict[str, dict[str, object]] = {
        "mamba_ssm": {},
        "mamba_ssm.utils": {},
        "mamba_ssm.utils.generation": {
            "InferenceParams": lambda **kw: SimpleNamespace(seqlen_offset=0, **kw)
        },
        "mamba_ssm.models": {},
        "mamba_ssm.models.config_mamba": {"MambaConfig": SimpleNamespace},
        "mamba_ssm.models.mixer_seq_simple": {"MambaLMHeadModel": FakeLM},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def official(config: ModelConfig = CONFIG, residual: torch.dtype = torch.float32) -> OfficialLM:
    stored = load_file(ASSETS / f"{config.family}-tiny" / "model.safetensors")
    weights = fitted(CONFIG if config.family == "mamba1" else CONFIG2, stored, torch.float16, "here")
    return OfficialLM(config, weights, torch.float16, residual, CUDA)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("config", [CONFIG, CONFIG2], ids=lambda config: str(config.family))
def test_weights_get_their_stored_names_and_shapes(config: ModelConfig) -> None:
    stored = load_file(ASSETS / f"{config.family}-tiny" / "model.safetensors")
    loaded = official(config).lm.loaded
    assert set(loaded) == {*stored, "lm_head.weight"}
    assert all(loaded[name].shape == value.shape for name, value in stored.items())
    assert official(config).sites() == {}


@pytest.mark.usefixtures("package")
def test_arguments_of_the_official_mixers() -> None:
    shared = {"d_state": 16, "d_conv": 4, "expand": 2, "conv_bias": True, "bias": False}
    assert official().lm.config.ssm_cfg == {"layer": "Mamba1", "dt_rank": 16, **shared}
    config = dataclasses.replace(CONFIG2, delta_max=0.5, norm_before_gate=True, chunk_size=128)
    assert official(config).lm.config.ssm_cfg == {
        **shared,
        "layer": "Mamba2",
        "d_state": 64,
        "headdim": 32,
        "ngroups": 1,
        "chunk_size": 128,
        "dt_limit": (0.0, 0.5),
        "norm_before_gate": True,
    }


@pytest.mark.usefixtures("package")
def test_prefill_then_steps() -> None:
    model = official()
    cache = model.allocate_cache(2)
    assert model(torch.zeros(2, 5, dtype=torch.long), cache, last_only=True).shape == (2, 1, 8)
    assert model.step(torch.zeros(2, dtype=torch.long), cache).shape == (2, 8)
    model.step(torch.zeros(2, dtype=torch.long), cache)
    assert model.lm.calls == [(5, 0), (1, 5), (1, 6)]
    with pytest.raises(ConfigError, match="prefill"):
        model(torch.zeros(2, 5, dtype=torch.long), cache)


@pytest.mark.usefixtures("package")
def test_what_it_cannot_express() -> None:
    with pytest.raises(ConfigError, match="norm_eps"):
        official(MambaConfig(d_model=256, n_layer=6, vocab_size=4096, norm_eps=1e-6))
    with pytest.raises(ConfigError, match="residual_dtype"):
        official(residual=torch.bfloat16)
    with pytest.raises(ConfigError, match="norm_group_size=64"):
        official(dataclasses.replace(CONFIG2, norm_group_size=64))
    with pytest.raises(ConfigError, match=r"model\.state_dtype"):
        check_available(CUDA, torch.float16)


def test_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(ConfigError, match=r"pip install --no-build-isolation"):
        check_available(CUDA)
