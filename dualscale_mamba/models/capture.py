"""The one place that talks to CUDA's capture: work becomes a graph that can be replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recorded:
    """What a capture has left.

    Attributes:
        replay: Run it again, on the current stream; the host does not wait.
        result: Where each replay leaves its result, until the next replay of any graph of the model.
        drop: Give its memory back to the pool.
        pool: Of the memory inside.
        prompt: int64 ``(B, L)``, what a prefill reads; None for a step.
    """

    replay: Callable[[], None]
    result: Tensor
    drop: Callable[[], None]
    pool: Any
    prompt: Tensor | None = None


def new_stream(device: torch.device) -> Any:
    """A stream for captures."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def record(work: Callable[[], Tensor], stream: Any, pool: Any, prompt: Tensor | None) -> Recorded:
    """Run ``work`` twice, so that all that is made once is made, and capture it.

    Args:
        work: Launches kernels on the current stream and returns a static tensor.
        stream: Where it is captured, never the default one.
        pool: Of another graph's memory, or None for a new one.
        prompt: What ``work`` reads, for the record.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(stream.device):
        work()  # on the stream of later calls: what it makes for good belongs there
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # libraries take a workspace for each stream
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads (trackers, other models) may do as they like meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = work()
    return Recorded(graph.replay, result, graph.reset, graph.pool(), prompt)
