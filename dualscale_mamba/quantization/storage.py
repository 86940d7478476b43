"""Tensors on disk: computed once, by whoever comes first, and read by all others.

Nothing here stops a run: what is damaged is computed again, and what the disk does not take is used all the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DIGEST = "digest"

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


def write_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that is there as a whole or not at all.

    Raises:
        OSError: The disk is full or the folder may not be written; no partial file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, SafetensorError):
            raise OSError(str(error)) from error
        raise


def write_checked(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """As :func:`write_atomically`, with a digest of the content that :func:`read_checked` compares.

    Raises:
        OSError: As there.
    """
    write_atomically(path, tensors, {**metadata, DIGEST: digest(tensors)})


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of what :func:`write_checked` wrote.

    Raises:
        ValueError: The content is not what was written.
        SafetensorError: It is no such file.
        OSError: It cannot be read.
    """
    with safe_open(str(path), framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iterator
    if metadata.pop(DIGEST, "") != digest(tensors):
        raise ValueError("its content is not what was written")
    return tensors, metadata


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Keep others from computing what belongs to ``path``; tells whether the file may be used at all."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        log.warning("%s cannot be used (%s); computing without it", path.parent, error)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_kept(path: Path, save: Callable[[Path], None]) -> bool:
    """Whether ``save`` could write ``path``; a full disk is told and costs only the next run's time."""
    try:
        save(path)
    except OSError as error:
        log.warning("%s cannot be written (%s); the next run computes it again", path, error)
        return False
    return True


def stored(path: Path, kind: type[T], compute: Callable[[], T]) -> T:
    """The ``kind`` that lies at ``path``, or else what ``compute`` makes, then written there; under a lock.

    A damaged file does not stop a run: it is computed again, as a whole.
    """
    with alone(path) as is_usable:
        if is_usable and path.exists():
            try:
                return kind.load(path)
            except Exception as error:  # whatever is wrong with it, it can be computed again
                log.warning("statistics %s cannot be read (%s); computing them again", path, error)
        made = compute()
        if is_usable:
            is_kept(path, made.save)
        return made
