"""Time to the first token, and per token after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.profiling.base import Subject

PERCENTILES = (10, 50, 90)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latency:
    """TTFT (one prefill, last logits only) and TPOT (one step with cache), as percentiles.

    Token ids are random with a fixed seed: the time does not depend on them. Steps run one after the other,
    each waited for, and include the choice of the next token.

    Args:
        batch_sizes: Sequences at once.
        prompt_lengths: Tokens of the prompt.
        prompts: Timed prefills for each size.
        tokens: Timed steps for each size.
        warmup: Prefills and steps that are not counted, before each.
    """

    batch_sizes: tuple[int, ...] = (1,)
    prompt_lengths: tuple[int, ...] = (128,)
    prompts: int = 5
    tokens: int = 24
    warmup: int = 2

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> dict[str, Metric]:
        """See :class:`~dualscale_mamba.profiling.base.Profiler`."""
        metrics: dict[str, Metric] = {}
        if not hasattr(subject.model, "allocate_cache"):
            logger.warning("latency needs a model with step and allocate_cache: skipped")
            return metrics
        for batch_size in self.batch_sizes:
            for length in self.prompt_lengths:
                where = f"batch_{batch_size}_prompt_{length}"
                first, step = self._measure(subject, batch_size, length)
                metrics |= _metrics(f"latency/ttft/{where}", first) | _metrics(f"latency/tpot/{where}", step)
        return metrics

    def _measure(self, subject: Subject, batch_size: int, length: int) -> tuple[list[float], list[float]]:
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, length)
        prompt = torch.randint(0, subject.model.config.vocab_size, shape, generator=generator).to(
            subject.device
        )
        cache = subject.model.allocate_cache(batch_size)
        token = prompt[:, -1]

        def prefill() -> None:
            subject.model(prompt, cache=subject.model.allocate_cache(batch_size), last_only=True).argmax(-1)

        def step() -> None:
            subject.model.step(token, cache).argmax(-1)

        first = timed(prefill, subject.device, self.warmup, self.prompts)
        subject.model(prompt, cache=cache, last_only=True)
        return first, timed(step, subject.device, self.warmup, self.tokens)


def timed(work: Callable[[], None], device: torch.device, warmup: int, repeats: int) -> list[float]:
    """Milliseconds of each of ``repeats`` calls, waiting for the device after each."""
    spent = []
    for number in range(warmup + repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warmup:
            spent.append((time.perf_counter() - began) * 1e3)
    return spent


def _metrics(name: str, milliseconds: Sequence[float]) -> dict[str, Metric]:
    values = torch.tensor(milliseconds, dtype=torch.float64)
    return {
        f"{name}/p{percent}": Metric(float(values.quantile(percent / 100)), "ms", "lower")
        for percent in PERCENTILES
    }
