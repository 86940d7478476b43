"""What is inside a quantized checkpoint, for a terminal; read from its files alone, without building the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualscale_mamba.errors import CheckpointError
from dualscale_mamba.quantization.manifest import CONFIG, KEY, WEIGHTS, Manifest, read_config, read_manifest
from dualscale_mamba.quantization.tensor_file import StoredTensor, read_header

if TYPE_CHECKING:
    from rich.console import RenderableType

# Parts of a name and what they belong to; the first that is found counts.
PARTS = (
    (("embedding", "lm_head"), "embedding and head"),
    ((".rows",), "codes of the sites"),
    (("rotation",), "rotation"),
    (("_proj.",), "projections"),
    (("conv1d",), "convolution"),
    (("norm",), "norms"),
    (("A_log", "dt_bias", ".D"), "state space"),
)
SHOWN = ("threshold", "inner_scale", "outer_scale", "bits_per_value")
SHORT_HASH = 12
# Columns that hold words.
TEXTS = ("what", "value", "layer", "width", "site", "format", "part")


@dataclass(frozen=True)
class Inspected:
    """A checkpoint and what was found in its files.

    Attributes:
        manifest: What it says about itself.
        tensors: What its weight file holds.
        faults: What is not as it was written; empty if it is intact.
    """

    manifest: Manifest
    tensors: dict[str, StoredTensor]
    faults: tuple[str, ...]


def inspect(folder: Path) -> Inspected:
    """Read a checkpoint and compare it with its digests.

    Args:
        folder: Where it lies.

    Raises:
        CheckpointError: There is none that this version reads.
    """
    config = read_config(folder)
    if KEY not in config:
        raise CheckpointError(
            f"{folder} holds no quantized checkpoint (its {CONFIG} has no {KEY}); save=DIR makes one"
        )
    manifest = read_manifest(folder, config, compare=False)
    tensors = read_header(folder / WEIGHTS)
    faults = []
    for check in (manifest.check_config, manifest.check_tensors, manifest.check_tokenizer):
        try:
            check()
        except CheckpointError as error:
            faults.append(str(error))
    return Inspected(manifest, tensors, tuple(faults))


def bytes_by_part(tensors: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Bytes of each part of a model, the largest first."""
    found: Counter[str] = Counter()
    for name, tensor in tensors.items():
        part = next((part for words, part in PARTS if any(word in name for word in words)), "other")
        found[part] += tensor.bytes
    return dict(found.most_common())


def bytes_of_layer(layer: str, tensors: Mapping[str, StoredTensor]) -> int:
    """Bytes of a layer by its name, e.g. ``layers.3.mixer.in_proj``; 0 for a head that is the embedding."""
    prefix = f"{layer}." if layer == "lm_head" else f"backbone.{layer}."
    return sum(tensor.bytes for name, tensor in tensors.items() if name.startswith(prefix))


def show(found: Inspected) -> RenderableType:
    """Tables of all that is inside."""
    from rich.console import Group

    return Group(
        _facts(found),
        _table("layers", ("layer", "width", "group size", "count", "bytes", "bits a weight"), _layers(found)),
        _table(
            "sites", ("site", "format", "count", *(name.replace("_", " ") for name in SHOWN)), _sites(found)
        ),
        _table("bytes", ("part", "bytes", "share"), _parts(found)),
        _state(found),
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="left" if column in TEXTS else "right")
    for row in rows:
        made.add_row(*row)
    return made


def _facts(found: Inspected) -> RenderableType:
    manifest, origin = found.manifest, found.manifest["provenance"]
    sizes = {name: value for name, value in manifest.sizes.items() if isinstance(value, (int, float, bool))}
    chosen = {
        name: manifest["choices"].get(name) for name in manifest["settings"] if name in manifest["choices"]
    }
    flags = {"x_proj reads": manifest["x_proj_reads"], "tied": manifest["tied"]}
    rows = {
        "folder": str(manifest.folder),
        "family": manifest["family"],
        "sizes": _listed(sizes),
        "types": _listed({name: manifest[name] for name in ("dtype", "residual_dtype", "state_dtype")}),
        "settings": _listed(chosen),
        "rotations": _listed(manifest["rotations"]),
        "flags": _listed({name: value for name, value in flags.items() if value != ""}),
        "made from": f"{origin['source']}, revision {origin['revision']}, seed {origin['seed']}",
        "hashes": _listed(
            {n: str(origin[n])[:SHORT_HASH] for n in ("weights", "calibration_tokens", "kernels")}
        ),
        "made": f"{origin['date']} by dualscale_mamba {manifest['package_version']}, torch {origin['torch']}",
    }
    return _table("checkpoint", ("what", "value"), [(name, str(value)) for name, value in rows.items()])


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _layers(found: Inspected) -> list[tuple[str, ...]]:
    """One row for each kind of layer and width."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for name, facts in found.manifest["layers"].items():
        key = (name.rpartition(".")[2], str(facts["width"]), str(facts.get("group_size") or ""))
        kinds.setdefault(key, []).append(name)
    rows: list[tuple[str, ...]] = []
    for (kind, width, group), names in kinds.items():
        size = sum(bytes_of_layer(name, found.tensors) for name in names)
        values = sum(_values(name, found) for name in names)
        bits = f"{8 * size / values:.2f}" if values else "the embedding's"
        rows.append((kind, width, group, str(len(names)), f"{size:,}", bits))
    return rows


def _values(layer: str, found: Inspected) -> int:
    """Number of weights of a layer."""
    prefix = layer if layer == "lm_head" else f"backbone.{layer}"
    for name in (f"{prefix}.weight", f"{prefix}.weight_codes"):
        if name in found.tensors:
            rows, columns = found.tensors[name].shape
            return rows * columns * (2 if found.tensors[name].dtype == "U8" else 1)
    return 0


def _sites(found: Inspected) -> list[tuple[str, ...]]:
    """Means over the layers, one row for each kind of site and format."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, facts in found.manifest["sites"].items():
        kinds.setdefault((name.rpartition(".")[2], str(facts.get("format", ""))), []).append(facts)
    return [
        (site, kind, str(len(rows)), *(_mean([row.get(name) for row in rows]) for name in SHOWN))
        for (site, kind), rows in kinds.items()
    ]


def _mean(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, (int, float))]
    return f"{sum(numbers) / len(numbers):.5g}" if numbers else "a row's own"


def _parts(found: Inspected) -> list[tuple[str, ...]]:
    parts = bytes_by_part(found.tensors)
    total = sum(parts.values())
    rows = [(part, f"{size:,}", f"{size / total:.1%}") for part, size in parts.items()]
    return [*rows, ("all", f"{total:,}", "")]


def _state(found: Inspected) -> RenderableType:
    from rich.text import Text

    if not found.faults:
        return Text(f"intact: digest {found.manifest.identity}")
    return Text("\n".join(f"not intact: {fault}" for fault in found.faults), style="bold red")
