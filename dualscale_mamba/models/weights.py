"""Weight files: which a folder has, their tensors, their hash.

safetensors files come first. A pickled ``.bin`` is only read with ``weights_only`` and by a torch whose
unpickler has no known way around it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dualscale_mamba.errors import CheckpointError

# CVE-2026-24747: before it, a crafted file could corrupt memory in spite of weights_only.
SAFE_UNPICKLER = (2, 10)
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_CHUNK = 1 << 22


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file.

    Raises:
        CheckpointError: The file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}; give the folder of a checkpoint") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no JSON file that can be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint, safetensors before pickles, shards in order.

    Raises:
        CheckpointError: There are none, or a shard that the index names is missing.
    """
    for single, index in zip(_SINGLE, _INDEX, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    raise CheckpointError(
        f"{folder} has none of {', '.join(_SINGLE + _INDEX)}; it has {_listing(folder)}. Give a folder with"
        " weights"
    )


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no files"


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} names files outside its folder: {', '.join(outside)}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names shards that are missing: {', '.join(missing)}; fetch them again"
        )
    return [index.parent / name for name in names]


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of the files on the CPU, by the names that they have there.

    Raises:
        CheckpointError: A file is truncated, unsafe or holds something other than tensors.
    """
    weights: dict[str, Tensor] = {}
    for path in files:
        part = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        twice = sorted(weights.keys() & part.keys())
        if twice:
            raise CheckpointError(f"{path} repeats weights of another shard: {_few(twice)}")
        weights.update(part)
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as tensors:
            # Copies: a matrix product may round otherwise where its operands are not aligned as torch aligns them, and
            # a quantized model that is saved and read again shall say the same.
            return {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118 - no iterator
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file ({error}); copy or"
            " download it again"
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_UNPICKLER:
        raise CheckpointError(
            f"{path} is a pickle, which torch {torch.__version__} cannot read safely; use a checkpoint with"
            " model.safetensors (state-spaces/mamba-*-hf have one) or torch 2.10 or newer"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors, and unpickling that could run code. Use a"
            " checkpoint with model.safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or no torch file ({error}); copy or download it again"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no table of tensors; a whole training state is not a checkpoint")
    return {str(name): value for name, value in content.items()}


def hash_files(files: Iterable[Path]) -> str:
    """sha256 of the files' bytes, in order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def hash_tensors(weights: Mapping[str, Tensor]) -> str:
    """sha256 over name, type, shape and bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fit_report(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``found`` from being the weights ``expected``, one sentence part each; empty if nothing."""
    faults = []
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing:
        faults.append(f"missing {_few(missing)}")
    if extra:
        faults.append(f"unexpected {_few(extra)}")
    for name in sorted(expected.keys() & found.keys()):
        want, have = tuple(expected[name].shape), tuple(found[name].shape)
        if want != have:
            faults.append(f"{name} has shape {have}, config.json asks for {want}")
        elif not found[name].is_floating_point():
            faults.append(f"{name} is {found[name].dtype}, not floating point")
    return faults


def _few(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
