"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from dualscale_mamba.errors import CheckpointError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A ``tokenizers.Tokenizer`` without special tokens added, with a known end of text.

    Args:
        tokenizer: What splits text.
        eos_id: Id of the end of text; by default that of ``<|endoftext|>``, else 0.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_id: int | None = None) -> None:
        self._tokenizer = tokenizer
        named = tokenizer.token_to_id(END_OF_TEXT)
        self.eos_id: int = next(value for value in (eos_id, named, 0) if value is not None)

    @classmethod
    def from_file(cls, path: Path, eos_id: int | None = None) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            CheckpointError: The file is not one.
        """
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), eos_id)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} is no tokenizer.json that can be read: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens around it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are kept."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
