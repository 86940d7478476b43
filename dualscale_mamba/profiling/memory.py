"""Bytes that a model needs, by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.profiling.base import Subject

# The first part whose word occurs in a tensor's name owns it; what none claims is "other".
PARTS = {
    "embedding": ("embed", "lm_head"),
    "norms": ("norm",),
    "projections": ("in_proj", "x_proj", "dt_proj", "out_proj"),
    "convolution": ("conv",),
    "ssm": ("A_log", ".A", ".D", "dt_bias"),
}


@dataclass(frozen=True)
class Memory:
    """Weights by part and in all, and the state of a batch, which does not grow with the text.

    Args:
        batch_sizes: Sequences for which the state is measured.
    """

    batch_sizes: tuple[int, ...] = (1,)

    def __call__(self, subject: Subject) -> dict[str, Metric]:
        """See :class:`~dualscale_mamba.profiling.base.Profiler`."""
        parts = dict.fromkeys([*PARTS, "other"], 0)
        for name, tensor in stored_tensors(subject.model):
            parts[_part(name)] += tensor.nbytes
        metrics = {
            f"memory/weights/{part}": Metric(size, "bytes", "lower") for part, size in parts.items() if size
        }
        metrics["memory/weights"] = Metric(sum(parts.values()), "bytes", "lower")
        if hasattr(subject.model, "allocate_cache"):
            for batch_size in self.batch_sizes:
                size = subject.model.allocate_cache(batch_size).nbytes
                metrics[f"memory/state/batch_{batch_size}"] = Metric(size, "bytes", "lower")
        if subject.bits_per_value is not None:
            metrics["memory/bits_per_value"] = Metric(subject.bits_per_value, "bits", "lower")
        return metrics


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
