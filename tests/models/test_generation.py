from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.generation import generate
from dualscale_mamba.models.language_model import MambaLM


class Fixed:
    """A model whose logits never change."""

    def __init__(self, logits: list[float]) -> None:
        self.logits = torch.tensor(logits)
        self.steps = 0

    def __call__(self, input_ids: Tensor, cache: object = None, last_only: bool = False) -> Tensor:
        return self.logits.expand(input_ids.shape[0], 1, -1)

    def step(self, input_ids: Tensor, cache: object) -> Tensor:
        self.steps += 1
        return self.logits.expand(input_ids.shape[0], -1)

    def allocate_cache(self, batch_size: int) -> None:
        return None


PROMPT = torch.zeros(3, 2, dtype=torch.long)


def run(model: object, **settings: object) -> list[list[int]]:
    return torch.stack(list(generate(model, PROMPT, **settings)), dim=1).tolist()  # type: ignore[arg-type]


def test_greedy_is_the_argmax_of_the_whole_text(small: MambaLM) -> None:
    text = torch.tensor([[5, 9, 2], [7, 7, 7]])
    for token in generate(small, text.clone(), max_new_tokens=6):
        assert token.tolist() == small(text)[:, -1].argmax(-1).tolist()
        text = torch.cat([text, token[:, None]], dim=1)
    assert text.shape == (2, 9)


def test_samples_are_seeded_and_rows_differ(small: MambaLM) -> None:
    first, second, third = (run(small, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (0, 0, 1))
    assert first == second != third
    assert first[0] != first[1]


@settings(max_examples=30, deadline=None)
@given(top_p=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float, seed: int) -> None:
    probabilities = [0.5, 0.3, 0.15, 0.05]
    model = Fixed([float(torch.tensor(p).log()) for p in probabilities])
    kept = next(n for n in range(1, 5) if sum(probabilities[:n]) >= top_p - 1e-6)
    tokens = run(model, max_new_tokens=20, temperature=1.0, top_p=top_p, seed=seed)
    assert max(max(row) for row in tokens) < kept


def test_sampling_follows_the_probabilities() -> None:
    prompt = torch.zeros(4000, 1, dtype=torch.long)
    model = Fixed([0.0, 1.0])
    token = next(generate(model, prompt, max_new_tokens=1, temperature=0.5))
    assert token.float().mean().item() == pytest.approx(1 / (1 + torch.tensor(-2.0).exp().item()), abs=0.03)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    assert run(Fixed([0.0, 3.0, 2.0]), max_new_tokens=4, temperature=temperature) == [[1] * 4] * 3


def test_end_of_text_stops() -> None:
    model = Fixed([0.0, 1.0])
    assert run(model, max_new_tokens=5, eos_id=1) == [[1]] * 3
    assert model.steps == 0


def test_a_row_that_ended_stays_ended() -> None:
    tokens = run(Fixed([1.0, 1.0, 1.0]), max_new_tokens=50, temperature=1.0, eos_id=2, seed=3)
    for row in tokens:
        ended = row.index(2) if 2 in row else len(row)
        assert set(row[ended:]) <= {2}
    assert len(tokens[0]) < 50


def test_no_step_after_the_last_token() -> None:
    model = Fixed([0.0, 1.0])
    assert run(model, max_new_tokens=3) == [[1, 1, 1]] * 3
    assert model.steps == 2
    assert list(generate(model, PROMPT, max_new_tokens=0)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("max_new_tokens", -1)],
)
def test_values_out_of_range_are_refused_at_once(name: str, value: float) -> None:
    settings = {"max_new_tokens": 1, name: value}
    with pytest.raises(ConfigError, match=name):
        generate(Fixed([0.0]), PROMPT, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prompt"):
        generate(Fixed([0.0]), PROMPT[:, :0], max_new_tokens=1)
