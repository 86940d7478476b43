"""Text from a model, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError


class Generator(Protocol):
    """What can generate: a prefill and a one-token step on a cache.

    A model, or the same with CUDA graphs, :class:`~dualscale_mamba.models.graphs.GraphedLM`.
    """

    def __call__(self, input_ids: Tensor, cache: Any = None, last_only: bool = False) -> Tensor:
        """(B, L) -> logits (B, L, V) or (B, 1, V)."""
        ...

    def step(self, input_ids: Tensor, cache: Any) -> Tensor:
        """(B,) -> logits (B, V)."""
        ...

    def allocate_cache(self, batch_size: int) -> Any:
        """Empty states."""
        ...


def generate(
    model: Generator,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos_id: int | None = None,
) -> Iterator[Tensor]:
    """Continue a batch of prompts of one length.

    Args:
        model: What generates.
        prompt: int64 ``(B, L)``, L >= 1.
        max_new_tokens: At most so many.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: Sample from the smallest set of tokens that has this probability.
        seed: Of the samples; the same on every device for the same logits.
        eos_id: A row that has produced it produces nothing else; when all rows have, generation stops.

    Yields:
        int64 ``(B,)`` on the prompt's device: the next token of each row.

    Raises:
        ConfigError: A value is out of range.
    """
    _check(prompt, max_new_tokens, temperature, top_p)
    return _generate(model, prompt, max_new_tokens, _Sampler(temperature, top_p, seed), eos_id)


def _check(prompt: Tensor, max_new_tokens: int, temperature: float, top_p: float) -> None:
    if prompt.dim() != 2 or prompt.shape[1] < 1:
        raise ConfigError("prompt", tuple(prompt.shape), "token ids (batch, length) with at least one token")
    if max_new_tokens < 0:
        raise ConfigError("max_new_tokens", max_new_tokens, "0 or more")
    if not 0.0 <= temperature < float("inf"):
        raise ConfigError("temperature", temperature, "0 (greedy) or a positive number")
    if not 0.0 < top_p <= 1.0:
        raise ConfigError("top_p", top_p, "above 0, at most 1")


def _generate(
    model: Generator, prompt: Tensor, max_new_tokens: int, sample: _Sampler, eos_id: int | None
) -> Iterator[Tensor]:
    if max_new_tokens == 0:
        return
    cache = model.allocate_cache(prompt.shape[0])
    logits = model(prompt, cache, last_only=True)[:, -1]
    done = torch.zeros(prompt.shape[0], dtype=torch.bool, device=prompt.device)
    for count in range(1, max_new_tokens + 1):
        token = sample(logits)
        if eos_id is not None:
            token = torch.where(done, eos_id, token)
            done |= token == eos_id
        yield token
        if count == max_new_tokens or (eos_id is not None and bool(done.all())):
            return
        logits = model.step(token, cache)


class _Sampler:
    """logits (B, V) -> tokens (B,)."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: one stream for every device

    def __call__(self, logits: Tensor) -> Tensor:
        if self.temperature == 0.0:
            return logits.argmax(dim=-1)
        # Subtracting the maximum first keeps tiny temperatures finite.
        centred = logits.float().cpu()
        centred = centred - centred.amax(dim=-1, keepdim=True)
        ordered, tokens = torch.softmax(centred / self.temperature, dim=-1).sort(dim=-1, descending=True)
        # A token stays while those before it have less than top_p: the first always does.
        ordered = ordered.where(ordered.cumsum(dim=-1) - ordered < self.top_p, 0.0)
        chosen = torch.multinomial(ordered, 1, generator=self.generator)
        return tokens.gather(1, chosen)[:, 0].to(logits.device)
