from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualscale_mamba.data.batches import token_batches, token_stream, tokens_hash
from dualscale_mamba.errors import ConfigError


class Characters:
    eos_id = -1

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def numbered(count: int) -> list[str]:
    """Documents whose tokens count upwards, so that a window tells where it was cut."""
    return ["".join(map(chr, range(count)))]


def test_documents_are_joined_by_the_end_of_text() -> None:
    assert token_stream(Characters(), ["ab", "c"]).tolist() == [97, 98, -1, 99]


@given(
    total=st.integers(2, 2000),
    samples=st.one_of(st.none(), st.integers(1, 40)),
    length=st.integers(1, 60),
    batch_size=st.integers(1, 9),
)
def test_windows_are_whole_apart_and_spread(
    total: int, samples: int | None, length: int, batch_size: int
) -> None:
    available = total // (length + 1)
    wanted = available if samples is None else samples
    if wanted > available or available == 0:
        with pytest.raises(ConfigError, match="at most"):
            token_batches(
                Characters(), numbered(total), samples=samples, length=length, batch_size=batch_size
            )
        return
    batches = token_batches(
        Characters(), numbered(total), samples=samples, length=length, batch_size=batch_size
    )
    assert all(batch.shape == (batch_size, length + 1) for batch in batches[:-1])
    windows = torch.cat(batches)
    assert windows.dtype == torch.int64
    assert windows.shape == (wanted, length + 1)
    starts = windows[:, 0]
    assert torch.equal(windows, starts[:, None] + torch.arange(length + 1))
    gaps = starts.diff()
    assert bool((gaps >= length + 1).all())
    if wanted > 1:
        assert int(gaps.max() - gaps.min()) <= length + 1
        assert int(starts[-1]) >= (wanted - 1) * available // wanted * (length + 1)


def test_the_hash_knows_content_and_shape_but_not_batch_size() -> None:
    def of(samples: int, length: int, batch_size: int) -> str:
        return tokens_hash(
            token_batches(Characters(), numbered(96), samples=samples, length=length, batch_size=batch_size)
        )

    assert of(8, 11, 2) == of(8, 11, 8)
    assert len({of(8, 11, 2), of(6, 11, 2), of(6, 15, 2)}) == 3


@pytest.mark.parametrize("key", ["samples", "length", "batch_size"])
def test_numbers_below_one_are_refused(key: str) -> None:
    arguments = {"samples": 1, "length": 1, "batch_size": 1, key: 0}
    with pytest.raises(ConfigError, match=f"{key}=0: allowed is at least 1"):
        token_batches(Characters(), numbered(10), **arguments)


def test_seed_draws_other_windows_of_the_same_stream() -> None:
    def drawn(samples: int | None, seed: int) -> torch.Tensor:
        batches = token_batches(
            Characters(), numbered(1000), samples=samples, length=16, batch_size=2, seed=seed
        )
        return torch.cat(batches)

    first, again, second, spread, everything = (
        drawn(s, seed) for s, seed in ((5, 1), (5, 1), (5, 2), (5, 0), (None, 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, spread)
    rows = {tuple(row) for row in first.tolist()}
    assert len(rows) == 5
    assert rows <= {tuple(row) for row in everything.tolist()}
    assert first[:, 0].tolist() == sorted(first[:, 0].tolist())
