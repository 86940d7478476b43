"""The model against outputs of the official package, in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from dualscale_mamba import ops
from dualscale_mamba.models.generation import generate
from dualscale_mamba.models.pretrained import load_pretrained

CASES = [
    pytest.param("mamba1-tiny", "reference"),
    pytest.param("mamba1-tiny", "compiled"),
    pytest.param("mamba1-27m", "reference", marks=pytest.mark.slow),
    pytest.param("mamba1-27m", "compiled"),
]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_likelihoods_and_logits(shared: Path, device: torch.device, name: str, implementation: str) -> None:
    golden = load_file(shared / "checkpoints" / name / "golden.safetensors", device=str(device))
    model = load_pretrained(str(shared / "checkpoints" / name), device=device).model
    with ops.implementation(implementation):
        logits = model(golden["input_ids"].long())
    nll = F.cross_entropy(logits.transpose(1, 2), golden["target_ids"].long(), reduction="none")
    torch.testing.assert_close(nll, golden["nll"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[:, -4:], golden["last_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "implementation"), CASES[:2] + CASES[3:])
def test_greedy_continuation(shared: Path, device: torch.device, name: str, implementation: str) -> None:
    golden = load_file(shared / "checkpoints" / name / "golden.safetensors", device=str(device))
    model = load_pretrained(str(shared / "checkpoints" / name), device=device).model
    expected = golden["greedy_continuation"].long()
    prompt = expected[:, :64]
    torch.testing.assert_close(prompt, golden["input_ids"][:, :64].long())
    with ops.implementation(implementation):
        tokens = torch.stack(list(generate(model, prompt, max_new_tokens=32)), dim=1)
    assert tokens.tolist() == expected[:, 64:].tolist()


@pytest.mark.parametrize(("name", "implementation"), CASES[:2] + CASES[3:])
def test_steps_equal_prefill(shared: Path, device: torch.device, name: str, implementation: str) -> None:
    golden = load_file(shared / "checkpoints" / name / "golden.safetensors", device=str(device))
    model = load_pretrained(str(shared / "checkpoints" / name), device=device).model
    ids = golden["input_ids"][:, :48].long()
    with ops.implementation(implementation):
        whole = model(ids)
        cache = model.allocate_cache(2)
        steps = torch.stack([model.step(ids[:, t], cache) for t in range(ids.shape[1])], dim=1)
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=0)
