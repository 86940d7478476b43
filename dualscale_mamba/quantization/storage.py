"""Statistics on disk: computed once, by whoever comes first, and read by all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)


class Storable(Protocol):
    """What can be written to one file and read again."""

    def save(self, path: Path) -> None:
        """Write to ``path`` atomically."""
        ...

    @classmethod
    def load(cls: type[T], path: Path) -> T:
        """Read what :meth:`save` wrote."""
        ...


T = TypeVar("T", bound=Storable)


def write_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(partial), metadata)
    partial.replace(path)


def stored(path: Path, kind: type[T], compute: Callable[[], T]) -> T:
    """The ``kind`` that lies at ``path``, or else what ``compute`` makes, then written there; under a lock.

    A damaged file does not stop a run: it is computed again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        if path.exists():
            try:
                return kind.load(path)
            except Exception as error:  # whatever is wrong with it, it can be computed again
                log.warning("statistics %s cannot be read (%s); computing them again", path, error)
        made = compute()
        made.save(path)
        return made
