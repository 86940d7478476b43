"""Token windows of equal length, cut from documents in a way that anybody can repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError

REMEMBERED_TEXTS = 4


class Encoder(Protocol):
    """What windows need of a tokenizer; equal ones split every text alike."""

    @property
    def eos_id(self) -> int:
        """Token between documents."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens."""
        ...


def token_batches(
    tokenizer: Encoder,
    docs: Sequence[str],
    *,
    samples: int | None,
    length: int,
    batch_size: int,
    seed: int = 0,
) -> list[Tensor]:
    """Windows of ``length + 1`` tokens: the first ``length`` are inputs, the last ``length`` are targets.

    Documents are joined by one end-of-text token and cut into windows that do not overlap. When there are
    more windows than ``samples``, the ones kept are spread evenly over the whole stream, or drawn from it by a seed:
    how much a result depends on the sample is seen by drawing several.

    Args:
        tokenizer: Encodes text; its ``eos_id`` goes between documents.
        docs: Documents, in order.
        samples: How many windows; None takes them all.
        length: Predictions per window.
        batch_size: Windows per batch; the last batch may be smaller.
        seed: 0 spreads the windows evenly; another number draws them without replacement, in the stream's order.

    Returns:
        int64 tensors on the CPU, each (batch_size or fewer, length + 1).

    Raises:
        ConfigError: The text is too short, or an argument is not positive.
    """
    for key, value in (("samples", samples), ("length", length), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(key, value, "at least 1")
    stream = token_stream(tokenizer, docs)
    available = len(stream) // (length + 1)
    wanted = available if samples is None else samples
    if wanted > available or available == 0:
        limit = f"at most {available}, because the text has {len(stream)} tokens for windows of {length} + 1"
        raise ConfigError("samples", samples, limit, "Choose fewer or shorter samples, or a longer source.")
    windows = stream[: available * (length + 1)].view(available, length + 1)
    chosen = torch.arange(wanted) * available // wanted
    if seed:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(available, generator=generator)[:wanted].sort().values
    return list(torch.split(windows[chosen], batch_size))


def token_stream(tokenizer: Encoder, docs: Iterable[str]) -> Tensor:
    """All documents as one int64 row of tokens, one end-of-text token between neighbours.

    The jobs of a study that run in one process read the same texts: the latest few are remembered.
    """
    return _token_stream(cast(Hashable, tokenizer), tuple(docs))


@lru_cache(maxsize=REMEMBERED_TEXTS)
def _token_stream(tokenizer: Any, docs: tuple[str, ...]) -> Tensor:
    stream: list[int] = []
    for doc in docs:
        if stream:
            stream.append(tokenizer.eos_id)
        stream.extend(tokenizer.encode(doc))
    return torch.tensor(stream, dtype=torch.int64)


def tokens_hash(batches: Iterable[Tensor]) -> str:
    """SHA-256 in hexadecimal of the windows in their order, whatever the batch size."""
    digest = hashlib.sha256()
    for batch in batches:
        for window in batch:
            digest.update(f"{len(window)}:".encode())
            digest.update(window.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()
