"""Time to the first token, per token after it, and to the last; tokens per second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.models.graphs import GraphedLM, graphed
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.flush import Flush

PERCENTILES = (10, 50, 90)
STREAMS = 3  # runs of tokens that are not waited for one by one

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latency:
    """TTFT (one prefill, last logits only), TPOT (one step with cache) and TTLT (both, to the last token).

    Times are percentiles in milliseconds. Token ids are random with a fixed seed: the time does not depend on them.
    Prefills and steps run one after the other, each waited for, and include the choice of the next token; on the way
    to the last token, and for the throughput of decoding, nothing is waited for but the end of ``tokens`` steps. The
    throughput of prefills is that of the median.

    Args:
        batch_sizes: Sequences at once.
        prompt_lengths: Tokens of the prompt.
        prompts: Timed prefills, and ways to the last token, for each size.
        tokens: Timed steps for each size, and tokens of each way to the last.
        warmup: Prefills and steps that are not counted, before each.
        cold: Whether the caches of the device are overwritten before each prefill and step. Otherwise they hold what
            the call before has left, as when a model serves. A cold throughput of decoding is that of the median step.
        cuda_graphs: Whether a model on a GPU replays CUDA graphs of its steps and prefills, where it can; the metric
            ``latency/cuda_graphs`` says 1 where it did.
    """

    batch_sizes: tuple[int, ...] = (1,)
    prompt_lengths: tuple[int, ...] = (128,)
    prompts: int = 5
    tokens: int = 24
    warmup: int = 2
    cold: bool = False
    cuda_graphs: bool = True

    def __call__(self, subject: Subject) -> dict[str, Metric]:
        """See :class:`~dualscale_mamba.profiling.base.Profiler`."""
        if not hasattr(subject.model, "allocate_cache"):
            logger.warning("latency needs a model with step and allocate_cache: skipped")
            return {}
        model, reason = graphed(subject.model, self.cuda_graphs)
        if reason is not None:
            logger.info("latency without CUDA graphs: %s", reason)
        metrics = {"latency/cuda_graphs": Metric(float(reason is None), "share")}
        for batch_size in self.batch_sizes:
            for length in self.prompt_lengths:
                metrics |= self._measure(Drive(model, batch_size, length, subject.device))
        return metrics

    @torch.inference_mode()
    def _measure(self, drive: Drive) -> dict[str, Metric]:
        where, device = drive.name, drive.device
        flush = Flush(device) if self.cold else None
        first = timed(drive.prefill, device, self.warmup, self.prompts, flush)
        drive.fill()
        step = timed(drive.step, device, self.warmup, self.tokens, flush)
        stream = timed(lambda: drive.steps(self.tokens), device, 0, STREAMS)
        last = timed(lambda: drive.to_the_last(self.tokens), device, 0, self.prompts, flush)
        decode = (drive.batch_size, step) if self.cold else (drive.batch_size * self.tokens, stream)
        return {
            **_percentiles(f"latency/ttft/{where}", first),
            **_percentiles(f"latency/tpot/{where}", step),
            **_percentiles(f"latency/ttlt/{where}", last),
            f"throughput/prefill/{where}": _rate(drive.batch_size * drive.length, first),
            f"throughput/decode/{where}": _rate(*decode),
        }


class Drive:
    """A model with a prompt of one size, and the calls that are timed.

    Args:
        model: With ``allocate_cache`` and ``step``; graphs of a :class:`GraphedLM` are captured here.
        batch_size: Sequences at once.
        length: Tokens of the prompt.
        device: Where the model lives.
    """

    def __init__(self, model: Any, batch_size: int, length: int, device: torch.device) -> None:
        self.model, self.batch_size, self.length, self.device = model, batch_size, length, device
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.vocab_size, (batch_size, length), generator=generator)
        self.prompt = ids.to(device)
        self.prepare()
        self.cache = model.allocate_cache(batch_size)

    @property
    def name(self) -> str:
        """The size, as metrics name it."""
        return f"batch_{self.batch_size}_prompt_{self.length}"

    def prepare(self) -> None:
        """Let graphs of this size be there, where the model has graphs."""
        if isinstance(self.model, GraphedLM):
            self.model.prepare(self.batch_size, self.length)

    def fill(self) -> None:
        """Let the cache hold the states behind the prompt."""
        self.model(self.prompt, cache=self.cache, last_only=True)

    def prefill(self) -> Tensor:
        """The first token behind the prompt, (B,)."""
        return self._first(self.model.allocate_cache(self.batch_size))

    def step(self) -> Tensor:
        """One token more, (B,); the states go on."""
        return self._next(self.prompt[:, -1], self.cache)

    def steps(self, tokens: int) -> Tensor:
        """The last of ``tokens`` tokens more, each the likeliest, (B,)."""
        token = self.prompt[:, -1]
        for _ in range(tokens):
            token = self._next(token, self.cache)
        return token

    def to_the_last(self, tokens: int) -> Tensor:
        """The last of ``tokens`` tokens behind the prompt, each the likeliest, (B,)."""
        self.cache = self.model.allocate_cache(
            self.batch_size
        )  # the states of before need not be kept anywhere
        token = self._first(self.cache)
        for _ in range(tokens - 1):
            token = self._next(token, self.cache)
        return token

    def _next(self, token: Tensor, cache: Any) -> Tensor:
        chosen: Tensor
        if isinstance(self.model, GraphedLM):
            chosen = self.model.greedy_step(token, cache)
        else:
            chosen = self.model.step(token, cache).argmax(-1)
        return chosen

    def _first(self, cache: Any) -> Tensor:
        chosen: Tensor = self.model(self.prompt, cache=cache, last_only=True)[:, -1].argmax(-1)
        return chosen


def timed(
    work: Callable[[], object],
    device: torch.device,
    warmup: int,
    repeats: int,
    flush: Flush | None = None,
) -> list[float]:
    """Milliseconds of each of ``repeats`` calls, waiting for the device after each; ``flush`` comes before each."""
    spent = []
    for number in range(warmup + repeats):
        if flush is not None:
            flush()
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        if number >= warmup:
            spent.append((time.perf_counter() - began) * 1e3)
    return spent


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(values: Sequence[float]) -> float:
    """The middle one, between two of them the mean."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def _percentiles(name: str, milliseconds: Sequence[float]) -> dict[str, Metric]:
    values = torch.tensor(milliseconds, dtype=torch.float64)
    return {
        f"{name}/p{percent}": Metric(float(values.quantile(percent / 100)), "ms", "lower")
        for percent in PERCENTILES
    }


def _rate(tokens: int, milliseconds: Sequence[float]) -> Metric:
    return Metric(tokens / (median(milliseconds) / 1e3), "tokens/s", "higher")
