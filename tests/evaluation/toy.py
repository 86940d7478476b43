"""A language model whose every probability is known: the next token depends on the last one alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualscale_mamba.evaluation.base import Context
from dualscale_mamba.evaluation.reference import Reference

VOCABULARY = 257


class Bytes:
    """A tokenizer whose tokens are UTF-8 bytes, and 256 for the end of a text."""

    eos_id = 256
    vocab_size = VOCABULARY

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token != self.eos_id).decode(errors="replace")


class Bigram(nn.Module):
    """Logits of the next token are a row of ``table`` (vocabulary, vocabulary)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.log_probabilities = table.double().log_softmax(-1)
        self.calls = 0

    @classmethod
    def random(cls, seed: int = 0) -> Bigram:
        generator = torch.Generator().manual_seed(seed)
        return cls(torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    @property
    def device(self) -> torch.device:
        return self.table.device

    def forward(self, input_ids: Tensor) -> Tensor:
        self.calls += 1
        return self.table[input_ids]

    def loglikelihood(self, tokens: list[int]) -> float:
        """Nats of all tokens but the first, by plain indexing."""
        ids = torch.tensor(tokens)
        return float(self.log_probabilities[ids[:-1], ids[1:]].sum())


def context(model: nn.Module, reference: nn.Module | None = None, data_root: object = None) -> Context:
    asked = None if reference is None else Reference.live(reference)  # type: ignore[arg-type]
    return Context(model, asked, Bytes(), torch.device("cpu"), data_root)  # type: ignore[arg-type]
