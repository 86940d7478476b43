from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualscale_mamba.data.batches import token_stream
from dualscale_mamba.data.tokenizer import Tokenizer
from dualscale_mamba.errors import CheckpointError
from dualscale_mamba.models.pretrained import ASSETS

TOKENIZER = Tokenizer.from_file(ASSETS / "mamba1-tiny" / "tokenizer.json")


@given(text=st.text(max_size=60))
def test_bytes_survive(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= token < TOKENIZER.vocab_size for token in ids)


def test_end_of_text() -> None:
    assert TOKENIZER.eos_id == 0
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.encode("a<|endoftext|>b")[1] == 0
    assert TOKENIZER.decode([0]) == "<|endoftext|>"
    assert Tokenizer.from_file(ASSETS / "mamba1-tiny" / "tokenizer.json", eos_id=7).eos_id == 7


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_equal_tokenizers_are_equal() -> None:
    path = ASSETS / "mamba1-tiny" / "tokenizer.json"
    one, other = Tokenizer.from_file(path), Tokenizer.from_file(path)
    assert one == other
    assert hash(one) == hash(other)
    assert one != Tokenizer.from_file(path, eos_id=7)
    docs = ["One river.", "Another river."]
    assert token_stream(one, docs) is token_stream(other, iter(docs))  # remembered
    assert token_stream(one, docs[:1]) is not token_stream(one, docs)
