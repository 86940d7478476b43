"""The windows of text that perplexity and divergence read, with what makes them repeatable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dualscale_mamba.data.batches import token_batches, tokens_hash
from dualscale_mamba.data.text import check_source, documents, text_hash
from dualscale_mamba.evaluation.base import Tokenizer, require_positive
from dualscale_mamba.progress import bar


@dataclass(frozen=True)
class Windows:
    """Token windows of one source.

    Args:
        batches: int64 (batch, length + 1) each.
        bytes_per_window: UTF-8 bytes of the targets of each window, end-of-text tokens left out.
        facts: What identifies them.
    """

    batches: list[Tensor]
    bytes_per_window: list[int]
    facts: dict[str, Any]

    def progress(self, name: str) -> Iterator[Tensor]:
        """The batches, behind a progress bar where there is a terminal."""
        return iter(bar(self.batches, name, "batch"))


def check_windows(
    source: str, samples: int | None, length: int, batch_size: int, data_root: Path | None
) -> None:
    """Raises ConfigError for settings from which no windows can be cut."""
    require_positive({"samples": samples, "length": length, "batch_size": batch_size})
    check_source(source, data_root)


def read_windows(
    source: str,
    samples: int | None,
    length: int,
    batch_size: int,
    tokenizer: Tokenizer,
    data_root: Path | None,
) -> Windows:
    """Reads a source and cuts it; see ``dualscale_mamba.data.batches.token_batches``."""
    docs = documents(source, data_root)
    batches = token_batches(tokenizer, docs, samples=samples, length=length, batch_size=batch_size)
    sizes = [_bytes(window, tokenizer) for batch in batches for window in batch]
    facts = {
        "source": source,
        "windows": len(sizes),
        "length": length,
        "batch_size": batch_size,
        "tokens": len(sizes) * length,
        "request_order": "as in the text",
        "text_hash": text_hash(docs),
        "tokens_hash": tokens_hash(batches),
    }
    return Windows(batches, sizes, facts)


def bits_per_byte(nll: float, tokens: int, size: int) -> float:
    """Bits per UTF-8 byte from mean nats per token."""
    return nll * tokens / (math.log(2) * max(size, 1))


def _bytes(window: Tensor, tokenizer: Tokenizer) -> int:
    ids = [token for token in window[1:].tolist() if token != tokenizer.eos_id]
    return len(tokenizer.decode(ids).encode())
