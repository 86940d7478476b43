"""Progress bars of long work; none where a study shows its own table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_hidden = [False]


def bar(items: Iterable[T], label: str, unit: str) -> Iterable[T]:
    """``items``, behind a bar where there is a terminal and nobody has asked for quiet."""
    silent = True if _hidden[-1] else None  # None: shown on a terminal
    shown: Iterable[T] = tqdm(items, desc=label, unit=unit, disable=silent, leave=False)
    return shown


@contextmanager
def hidden(really: bool = True) -> Iterator[None]:
    """No bars inside the block."""
    _hidden.append(really)
    try:
        yield
    finally:
        _hidden.pop()
