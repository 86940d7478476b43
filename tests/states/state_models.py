"""Models whose state lies in codes between steps, for the tests of states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.float8 import Float8
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.states.calibration import encode_states
from dualscale_mamba.states.format import StateFormat

SOURCES = {"mamba1": "embedded:mamba1-tiny", "mamba2": "embedded:mamba2-tiny"}
FORMATS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8_static": {"scale": "static", "every": 4},
    "int8_dual": {"mode": DualSymmetric(), "observer": Percentile(99.0), "scale": "static", "every": 4},
    "int8_stochastic": {"rounding": "stochastic", "seed": 3},
    "int8_error_feedback": {"rounding": "error_feedback"},
    "int8_error_feedback_8": {"rounding": "error_feedback", "residual_bits": 8},
    "fp8_e4m3": {"mode": Float8("e4m3")},
    "fp8_e5m2_stochastic": {"mode": Float8("e5m2"), "rounding": "stochastic"},
    "fp8_e4m3_error_feedback": {"mode": Float8("e4m3"), "rounding": "error_feedback"},
}


def ids(model: MambaLM, batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator).to(model.device)


def plain(family: str, device: str = "cpu", **types: torch.dtype) -> MambaLM:
    model = load_pretrained(SOURCES[family], device=device, **types).model
    assert isinstance(model, MambaLM)
    return model


def encoded(family: str, name: str, device: str = "cpu", **types: torch.dtype) -> MambaLM:
    """A trained model whose states have codes, from a few tokens."""
    model = plain(family, device, **types)
    encode_states(model, StateFormat(**FORMATS[name]), [ids(model, 2, 12)])
    return model


def said(model: Any, prompt: Tensor, tokens: Tensor) -> list[Tensor]:
    """Logits behind the prompt (B, L), and behind each of the tokens (B, T)."""
    cache = model.allocate_cache(len(prompt))
    found = [model(prompt, cache, last_only=True)[:, -1]]
    return found + [model.step(tokens[:, at], cache) for at in range(tokens.shape[1])]
