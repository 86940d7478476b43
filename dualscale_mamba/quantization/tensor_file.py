"""What a safetensors file holds, and its digest, read without torch: eight bytes, a JSON header, the tensors' bytes."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from dualscale_mamba.errors import CheckpointError

LENGTH_BYTES = 8
METADATA = "__metadata__"
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a file.

    Attributes:
        dtype: As the format spells it, e.g. ``F16``.
        shape: Its sizes.
        begin: First byte, counted from the beginning of the file.
        end: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.end - self.begin


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name.

    Raises:
        CheckpointError: The file is missing, truncated, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if not 2 <= length <= size - LENGTH_BYTES:
                raise ValueError("its header does not fit into it")
            found = json.loads(file.read(length))
        tensors = _tensors(found, LENGTH_BYTES + length)
        last = max((tensor.end for tensor in tensors.values()), default=LENGTH_BYTES + length)
        if last != size:
            raise ValueError(f"its tensors end at byte {last}")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}; copy or download it again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file ({error}); copy or"
            " download it again"
        ) from error
    return tensors


def _tensors(header: Mapping[str, dict[str, object]], first: int) -> dict[str, StoredTensor]:
    made = {}
    for name, facts in header.items():
        if name == METADATA:
            continue
        dtype, shape = str(facts["dtype"]), tuple(int(n) for n in _list(facts["shape"]))
        begin, end = (first + int(offset) for offset in _list(facts["data_offsets"]))
        if (end - begin) * 8 != prod(shape) * BITS[dtype]:
            raise ValueError(f"{name} has another size than its shape")
        made[name] = StoredTensor(dtype, shape, begin, end)
    return made


def _list(value: object) -> list[int]:
    if not isinstance(value, list):
        raise TypeError("a list is missing")
    return value


def digest_of(path: Path) -> str:
    """SHA-256 over the names, types, shapes and bytes of a file's tensors, in the order of their names.

    Raises:
        CheckpointError: As :func:`read_header`.
    """
    found = hashlib.sha256()
    tensors = read_header(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in sorted(tensors):
            tensor = tensors[name]
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            with memoryview(content) as view, view[tensor.begin : tensor.end] as part:
                found.update(part)
    return found.hexdigest()
