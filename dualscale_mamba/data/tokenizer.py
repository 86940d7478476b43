"""Text to token ids and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from dualscale_mamba.errors import CheckpointError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A ``tokenizers.Tokenizer`` without special tokens added, with a known end of text.

    Two of them are equal, and hash alike, if they split every text alike.

    Args:
        tokenizer: What splits text.
        eos_id: Id of the end of text; by default that of ``<|endoftext|>``, else 0.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_id: int | None = None) -> None:
        self._tokenizer = tokenizer
        named = tokenizer.token_to_id(END_OF_TEXT)
        self.eos_id: int = next(value for value in (eos_id, named, 0) if value is not None)
        content = f"{self.eos_id} {tokenizer.to_str()}"
        self._fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)

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
    def content(self) -> str:
        """A ``tokenizer.json`` that splits every text alike."""
        return str(self._tokenizer.to_str())

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
