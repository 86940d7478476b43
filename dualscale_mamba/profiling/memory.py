"""Bytes that a model needs, by part, as it is stored and runs, and as its sizes and widths say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.formats.base import Code
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.profiling import footprint, workspace
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.sites import short_name

# The first part whose word occurs in a tensor's name owns it; what none claims is "other".
PARTS = {
    "codes": (".rows", ".state_store."),
    "rotation": (".rotation",),
    "embedding": ("embed", "lm_head"),
    "norms": ("norm",),
    "projections": ("in_proj", "x_proj", "dt_proj", "out_proj"),
    "convolution": ("conv",),
    "ssm": ("A_log", "state_matrix", ".D", "dt_bias"),
}


@dataclass(frozen=True)
class Memory:
    """Weights by part and in all, the states of a batch, side data of its activations, and workspace.

    Stored tensors are counted and a forward pass is followed; beside each number stands what the sizes and widths say,
    as ``memory/computed/...``. Side data are those of all layers, of which a forward pass has one at a time: masks, or
    lists of outliers; ``reserve`` are the masks beside lists, used where one is full. Workspace is that of a prefill
    whose last logits alone are asked for: see :mod:`dualscale_mamba.profiling.workspace`. States do not grow with the
    length.

    Args:
        batch_sizes: Sequences at once.
        lengths: Tokens of each, for workspace and side data.
        measure: Whether to run the forward passes; false computes the workspace only.
    """

    batch_sizes: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = (128,)
    measure: bool = True

    def __call__(self, subject: Subject) -> dict[str, Metric]:
        """See :class:`~dualscale_mamba.profiling.base.Profiler`."""
        found = _whole("weights", weights(subject.model))
        if hasattr(subject.model, "allocate_cache"):
            for batch in self.batch_sizes:
                found[f"state/batch_{batch}"] = subject.model.allocate_cache(batch).nbytes
        if isinstance(subject.model, MambaLM):
            found |= self._activations(subject.model)
            found |= {f"computed/{name}": size for name, size in self._computed(subject.model).items()}
        metrics = {f"memory/{name}": Metric(size, "bytes", "lower") for name, size in found.items()}
        if subject.bits_per_value is not None:
            metrics["memory/bits_per_value"] = Metric(subject.bits_per_value, "bits", "lower")
        return metrics

    def _sizes(self) -> Iterator[tuple[str, int, int]]:
        for batch in self.batch_sizes:
            for length in self.lengths:
                yield f"batch_{batch}_length_{length}", batch, length

    def _activations(self, model: MambaLM) -> dict[str, float]:
        found: dict[str, float] = {}
        for where, batch, length in self._sizes():
            side, reserve = side_data(model, batch, length)
            found[f"side/{where}"] = side
            found |= {f"reserve/{where}": reserve} if reserve else {}
            if self.measure:
                found[f"workspace/{where}"] = workspace.measured(model, batch, length)
        return found

    def _computed(self, model: MambaLM) -> dict[str, float]:
        found = _whole("weights", computed_weights(model))
        shell = workspace.shell_of(model)
        for batch in self.batch_sizes:
            found[f"state/batch_{batch}"] = computed_state(model, batch)
        for where, batch, length in self._sizes():
            found[f"side/{where}"] = computed_side_data(model, batch, length)
            found[f"workspace/{where}"] = workspace.computed(shell, batch, length)
        return found


def _whole(name: str, parts: Mapping[str, float]) -> dict[str, float]:
    """The parts that there are, and their sum."""
    return {**{f"{name}/{part}": size for part, size in parts.items() if size}, name: sum(parts.values())}


def weights(model: nn.Module) -> dict[str, int]:
    """Bytes of the stored tensors by part."""
    if isinstance(model, MambaLM):
        for block in model.blocks():
            block.mixer.decay()  # made by the first forward pass, and kept
    parts = dict.fromkeys([*PARTS, "other"], 0)
    for name, tensor in stored_tensors(model):
        parts[_part(name)] += tensor.nbytes
    return parts


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, each piece of memory once (a tied head is the embedding)."""
    seen: set[tuple[int, int]] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        place = (tensor.data_ptr(), tensor.nbytes)
        if tensor.numel() and place not in seen:
            seen.add(place)
            yield name, tensor


def _part(name: str) -> str:
    return next((part for part, words in PARTS.items() if any(word in f".{name}" for word in words)), "other")


def computed_weights(model: MambaLM) -> dict[str, int]:
    """Bytes of the weights by part, from sizes and widths; ``model`` may be a shell."""
    layers = model.weight_layers()
    rotations = [block.mixer.rotation for block in model.blocks()]
    codes = [site.code.rows for site in model.sites().values() if site.code is not None]
    codes += [code for block in model.blocks() for code in block.mixer.state_store.buffers()]
    parts = footprint.weight_parts(
        model.config,
        lambda name: layers[name].grid,
        model.dtype.itemsize,
        rotation=sum(footprint.FLOAT * base.numel() for base in rotations if base is not None),
        tied=is_tied(model),
    )
    return parts | {"codes": sum(footprint.FLOAT * rows.numel() for rows in codes)}


def is_tied(model: MambaLM) -> bool:
    """Whether head and embedding are one storage; a shell's are not, but will be."""
    first, second = model.backbone.embedding, model.lm_head
    if first.grid != second.grid or not model.config.tie_embeddings:
        return False
    if first.weight_codes is None or second.weight_codes is None:
        return first.weight is second.weight
    return first.weight_codes.is_meta or first.weight_codes.data_ptr() == second.weight_codes.data_ptr()


def side_data(model: MambaLM, batch: int, length: int) -> tuple[int, int]:
    """Bytes of what lies beside the codes of all sites, and of the masks that stand by for lists; made and counted."""
    side = reserve = 0
    for channels, code in _coded_widths(model):
        mask, outliers = code.side_data(batch, length, channels)
        if mask is not None:
            side += (mask if outliers is None else outliers).nbytes
            reserve += 0 if outliers is None else mask.nbytes
    return side, reserve


def computed_side_data(model: MambaLM, batch: int, length: int) -> float:
    """What all sites take beyond 8 bits a value, in bytes; also where a code is only simulated."""
    return sum(code.side_bytes(batch, length, channels) for channels, code in _coded_widths(model))


def _coded_widths(model: MambaLM) -> Iterator[tuple[int, Code]]:
    widths = footprint.site_widths(model.config)
    for name, site in model.sites().items():
        if site.code is not None:
            yield widths[short_name(name)], site.code


def computed_state(model: MambaLM, batch: int) -> int:
    """Bytes of the states of ``batch`` sequences, from sizes and widths."""
    code = model.blocks()[0].mixer.conv_input.code
    is_int8 = code is not None and code.is_scalar_knee
    conv = 1 if is_int8 else model.dtype.itemsize
    coding = model.blocks()[0].mixer.state_store.coding
    if coding is None:
        return footprint.state_bytes(model.config, batch, conv, model.state_dtype.itemsize)
    own = coding.bytes_of(model.config.d_inner, model.config.d_state)
    return footprint.state_bytes(model.config, batch, conv, 0) + batch * model.config.n_layer * own
