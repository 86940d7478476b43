"""CUDA graphs of a whole model: a token, or a prompt, is one launch in the place of hundreds.

A graph replays the kernels of one size with the addresses of its capture. All that it reads and writes between calls
therefore lies in static tensors, one set a batch size: the states, the token that goes in and comes out, the prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.cache import Cache
from dualscale_mamba.models.capture import Recorded, new_stream, record
from dualscale_mamba.models.config import ModelConfig
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.linear import reading_ahead
from dualscale_mamba.models.static_states import GraphedCache, Slot, WeightsSeen

KEY = "cuda_graphs"
# Graphs of one model. Each keeps a record of every launch, and the largest of them the memory pool that all share.
LIMIT = 16
STEP = 0  # in the place of a prompt's length


def why_not(model: object) -> str | None:
    """What keeps a model from being graphed, as half a sentence; None where nothing does."""
    if not isinstance(model, MambaLM):
        return "the model is not of the native implementation"
    if model.device.type != "cuda":
        return f"the model lies on {model.device.type}"
    if ops.current_implementation() != "compiled":
        return f"operators are those of ops={ops.current_implementation()}"
    return None


def graphed(model: Any, wanted: bool = True, limit: int = LIMIT) -> tuple[Any, str | None]:
    """A model with graphs where that is possible, else the very model; and why not, or None.

    Args:
        model: What generates.
        wanted: False leaves every model as it is.
        limit: See :class:`GraphedLM`.
    """
    reason = why_not(model) if wanted else "not asked for"
    return (GraphedLM(model, limit), None) if reason is None else (model, reason)


class GraphedLM:
    """A model whose steps, and whose prefills of prepared lengths, are replays; results are bitwise those without.

    It has the methods of :class:`~dualscale_mamba.models.generation.Generator`. A step is captured at the first use of
    a batch size or by :meth:`prepare`; a prefill by :meth:`prepare` alone, and runs as ever for other lengths, for a
    cache that is not empty, and for the logits of all positions. What is returned is a copy that no later call
    changes. Nothing waits for the device but a capture.

    Any number of caches may be in use: those of one batch size take turns in the static states, and whoever is not
    there is kept elsewhere. Going on with another one costs a copy out and a copy in; with one at a time, nothing.

    Weights may change in place, except A, of which a model keeps a copy. Once a tensor of the model is replaced, as by
    quantizing it, calls raise; attributes that are no tensors, such as ``x_proj_reads``, are not watched. One thread
    and one stream at a time.

    Args:
        model: Of the native implementation, on a CUDA device, finished: quantized and with all its codes.
        limit: Graphs kept; the one not used for longest goes first, and with its last graph a batch size's states.

    Raises:
        ConfigError: The model cannot be graphed, or the limit is below 1.
    """

    def __init__(self, model: MambaLM, limit: int = LIMIT) -> None:
        reason = why_not(model)
        if reason is not None:
            hint = "Move a native model to a CUDA device, with ops=compiled, or use it as it is."
            raise ConfigError(KEY, True, f"false where {reason}", hint)
        if limit < 1:
            raise ConfigError("limit", limit, "1 graph or more")
        self.model, self.limit = model, limit
        self._implementation = ops.current_implementation()
        self._graphs: OrderedDict[tuple[int, int], Recorded] = OrderedDict()
        self._slots: dict[int, Slot] = {}
        self._weights: WeightsSeen | None = None
        self._stream: Any = None

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def captured(self) -> tuple[tuple[int, int], ...]:
        """Batch and prompt length (0: a step) of each graph, the one used last at the end."""
        return tuple(self._graphs)

    def allocate_cache(self, batch_size: int) -> GraphedCache:
        """Empty states for ``batch_size`` sequences, for calls of this object alone."""
        if batch_size < 1:
            raise ConfigError("batch_size", batch_size, "1 sequence or more")
        return GraphedCache(self, batch_size)

    def prepare(self, batch_size: int, *lengths: int) -> None:
        """Capture a step of this batch, and a prefill of each length; those that are there already stay.

        Raises:
            ConfigError: A size is below 1, or there are more lengths than the limit has room for beside the step.
        """
        for name, size in (("batch_size", batch_size), *(("length", length) for length in lengths)):
            if size < 1:
                raise ConfigError(name, size, "1 or more")
        if len(set(lengths)) >= self.limit and lengths:
            raise ConfigError(
                "limit", self.limit, f"{len(set(lengths)) + 1} or more for these lengths and a step"
            )
        for length in (STEP, *lengths):
            self._recorded(batch_size, length)

    @torch.no_grad()
    def __call__(
        self, input_ids: Tensor, cache: GraphedCache | None = None, last_only: bool = False
    ) -> Tensor:
        """Logits (B, L, V), or (B, 1, V) of the last position, as :meth:`MambaLM.forward` gives them.

        Args:
            input_ids: int64 ``(B, L)``.
            cache: Of :meth:`allocate_cache`; None keeps no states and replays nothing.
            last_only: Compute the head for the last position alone; only this is ever replayed.

        Raises:
            ConfigError: The cache is another's or of another size, or the model is no longer what was captured.
        """
        if cache is None:
            return self.model(input_ids, None, last_only)  # type: ignore[no-any-return]
        self._check(input_ids, cache, dims=2)
        batch, length = input_ids.shape
        slot = self._slot(batch)
        if last_only and cache.position == 0 and (batch, length) in self._graphs:
            recorded = self._recorded(batch, length)
            slot.give(cache)  # the graph empties the states itself
            assert recorded.prompt is not None
            recorded.prompt.copy_(input_ids)
            recorded.replay()
            logits = recorded.result.clone()
        else:
            slot.load(cache)
            logits = self.model(input_ids, slot.cache, last_only)
        cache.position += length
        self._check_weights()  # while the device is at work
        return logits

    @torch.no_grad()
    def step(self, input_ids: Tensor, cache: GraphedCache) -> Tensor:
        """One token: input_ids int64 (B,) -> logits (B, V); the cache is updated. Errors are those of a call."""
        self._check(input_ids, cache, dims=1)
        recorded, _ = self._advance(input_ids, cache)
        return recorded.result.clone()

    @torch.no_grad()
    def greedy_step(self, input_ids: Tensor, cache: GraphedCache) -> Tensor:
        """One token: input_ids int64 (B,) -> the likeliest next token of each row, int64 (B,), by the graph itself."""
        self._check(input_ids, cache, dims=1)
        _, slot = self._advance(input_ids, cache)
        return slot.token.clone()

    @torch.no_grad()
    def greedy(self, prompt: Tensor, tokens: int) -> Tensor:
        """The likeliest continuation: prompt int64 (B, L) -> int64 (B, tokens); the host waits for nothing.

        The same tokens as those of :func:`~dualscale_mamba.models.generation.generate` at temperature 0 without an end.
        """
        if tokens < 1:
            raise ConfigError("tokens", tokens, "1 or more")
        cache = self.allocate_cache(prompt.shape[0])
        first = self(prompt, cache, last_only=True)[:, -1].argmax(-1)
        made = torch.empty(tokens, prompt.shape[0], dtype=torch.int64, device=self.device)
        made[0].copy_(first)
        for number in range(1, tokens):
            # From the second on the token lies where the graph reads it.
            _, slot = self._advance(first if number == 1 else None, cache)
            made[number].copy_(slot.token)
        return made.T.contiguous()

    def states(self, cache: GraphedCache) -> Cache:
        """The states of a text as its next step reads them: the static tensors, which any later call changes."""
        slot = self._slot(cache.batch_size)
        slot.load(cache)
        return slot.cache

    def _advance(self, input_ids: Tensor | None, cache: GraphedCache) -> tuple[Recorded, Slot]:
        recorded = self._recorded(cache.batch_size, STEP)
        slot = self._slot(cache.batch_size)
        slot.load(cache)
        if input_ids is not None:
            slot.token.copy_(input_ids)
        recorded.replay()
        cache.position += 1
        self._check_weights()  # while the device is at work
        return recorded, slot

    def _slot(self, batch: int) -> Slot:
        if batch not in self._slots:
            for other in [size for size in self._slots if not self._has_graphs(size)]:
                self._slots.pop(other).release()
            self._slots[batch] = Slot(self.model, batch)
        return self._slots[batch]

    def _has_graphs(self, batch: int) -> bool:
        return any(size == batch for size, _ in self._graphs)

    def _recorded(self, batch: int, length: int) -> Recorded:
        """The graph of a step (length 0) or of a prefill; captured if need be."""
        if (batch, length) not in self._graphs:
            self._graphs[batch, length] = self._capture(self._slot(batch), length)
            while len(self._graphs) > self.limit:
                (old, _), dropped = self._graphs.popitem(last=False)
                dropped.drop()
                if not self._has_graphs(old):
                    self._slots.pop(old).release()
        self._graphs.move_to_end((batch, length))
        return self._graphs[batch, length]

    def _capture(self, slot: Slot, length: int) -> Recorded:
        self._check_weights()
        watched = [name for name, site in self.model.sites().items() if site.statistic is not None]
        if watched:
            raise ConfigError(
                KEY, True, f"false while {watched[0]} is observed", "Finish the calibration first."
            )
        slot.release()  # what follows runs on the static states
        prompt = None

        def step() -> Tensor:
            logits = self.model.step(slot.token, slot.cache)
            torch.argmax(logits, dim=-1, out=slot.token)
            return logits

        def prefill() -> Tensor:
            slot.reset()
            logits: Tensor = self.model(prompt, slot.cache, last_only=True)
            return logits

        with torch.inference_mode(False), torch.no_grad(), reading_ahead(self.model):
            slot.token.zero_()
            if length != STEP:
                prompt = torch.zeros(slot.batch, length, dtype=torch.int64, device=self.device)
            if self._stream is None:
                self._stream = new_stream(self.device)
            # The pool of a living graph: that of the last one to go must not be taken up again.
            pool = next((each.pool for each in self._graphs.values()), None)
            recorded = record(step if prompt is None else prefill, self._stream, pool, prompt)
        if self._weights is None:
            self._weights = WeightsSeen(self.model)  # only now: some are made by the first call
        return recorded

    def _check(self, input_ids: Tensor, cache: GraphedCache, dims: int) -> None:
        if not isinstance(cache, GraphedCache) or cache.maker is not self:
            raise ConfigError("cache", type(cache).__name__, "a cache of this object's allocate_cache")
        if input_ids.dim() != dims or input_ids.shape[0] != cache.batch_size:
            wanted = f"({cache.batch_size},{' length' * (dims - 1)})"
            raise ConfigError("input_ids", tuple(input_ids.shape), f"token ids {wanted} for this cache")
        if ops.current_implementation() != self._implementation:
            raise ConfigError(
                "ops", ops.current_implementation(), f"{self._implementation}, as it was captured"
            )

    def _check_weights(self) -> None:
        if self._weights is not None and not self._weights.are_there():
            allowed = "false once tensors of the model have been replaced"
            raise ConfigError(KEY, True, allowed, "Make another GraphedLM when the model is finished.")
