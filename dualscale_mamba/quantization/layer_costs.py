"""What a layer costs at a width: bits, bytes, or time to make one token.

Bits and bytes are those of :mod:`dualscale_mamba.profiling.footprint`. Time at batch 1 is that of reading the weights
once: a layer's cost is the bytes that one token moves through it, or microseconds measured on this device.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

import torch

from dualscale_mamba.formats.base import Code, Range
from dualscale_mamba.formats.single import Single
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.profiling import footprint
from dualscale_mamba.quantization.allocation import Option
from dualscale_mamba.quantization.recipe import WeightRecipe
from dualscale_mamba.quantization.sensitivity import Found, Trial
from dualscale_mamba.quantization.site import Activation, Coded
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight
from dualscale_mamba.quantization.widths import parse
from dualscale_mamba.sites import EMBEDDING, HEAD

CALLS, REPEATS, WARMUP = 20, 7, 3


class Cost(Protocol):
    """What is limited."""

    def __call__(self, layer: str, word: str) -> float:
        """Cost of a layer at a width."""
        ...


@dataclass(frozen=True)
class Sizes:
    """Costs that follow from the sizes alone.

    Args:
        model: Whose layers.
        weights: Says the groups of 4-bit weights.
    """

    model: MambaLM
    weights: WeightRecipe

    def grid(self, word: str) -> Grid | None:
        """The grid of a width."""
        return self.weights.grid(parse(word).weights)

    def shape(self, layer: str) -> tuple[int, int]:
        """(N, K)."""
        found = self.model.weight_layers()[layer]
        return found.rows, found.columns

    def bits(self, layer: str, word: str) -> float:
        """Bits of the codes and scales."""
        return 8.0 * footprint.matrix_bytes(
            self.shape(layer), self.grid(word), self.model.dtype.itemsize, sums=False
        )

    def bytes(self, layer: str, word: str) -> float:
        """Bytes of codes, scales and sums of codes."""
        return float(footprint.matrix_bytes(self.shape(layer), self.grid(word), self.model.dtype.itemsize))

    def moved(self, layer: str, word: str) -> float:
        """Bytes that one token moves: the weight, an input and an output; of the embedding one row."""
        rows, columns = self.shape(layer)
        if layer == EMBEDDING:
            return self.bytes(layer, word) / rows + columns * self.model.dtype.itemsize
        values = 1 if parse(word).activations else self.model.dtype.itemsize
        return self.bytes(layer, word) + columns * values + rows * self.model.dtype.itemsize


class Stopwatch:
    """Microseconds of a layer for one token on the model's device; equal shapes are timed once.

    Args:
        sizes: Of the layers.
    """

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._known: dict[tuple[tuple[int, int], str], float] = {}

    def __call__(self, layer: str, word: str) -> float:
        """See :class:`Cost`; looking up one row of the embedding counts as nothing."""
        if layer == EMBEDDING:
            return 0.0
        key = self._sizes.shape(layer), word
        if key not in self._known:
            self._known[key] = self._time(*key[0], word)
        return self._known[key]

    def _time(self, rows: int, columns: int, word: str) -> float:
        model, width, grid = self._sizes.model, parse(word), self._sizes.grid(word)
        device = model.device
        layer = Linear(columns, rows, dtype=model.dtype).to(device)
        if grid is not None:
            codes = torch.zeros(rows, columns, dtype=torch.int8, device=device)
            scale = torch.ones(rows, grid.groups(columns), device=device)
            layer.set_quantized(QuantizedWeight(codes, grid.stored_scale(scale), grid))
        x: Activation = torch.zeros(1, columns, dtype=model.dtype, device=device)
        if width.activations:
            x = Coded(torch.zeros(1, columns, dtype=torch.int8, device=device), _unit_code(device))
        return _microseconds(layer, x, device)


def _unit_code(device: torch.device) -> Code:
    one = torch.ones(1, dtype=torch.float64)
    return Single().fit(Range(-one, one, one)).to(device)


@torch.inference_mode()
def _microseconds(layer: Linear, x: Activation, device: torch.device) -> float:
    spent = []
    for _ in range(WARMUP + REPEATS):
        began = time.perf_counter()
        for _ in range(CALLS):
            layer(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append((time.perf_counter() - began) * 1e6 / CALLS)
    return median(spent[WARMUP:])


@dataclass(frozen=True)
class Decision:
    """What is decided, between what, and what is known of it.

    Attributes:
        wanted: Every unit at every width.
        found: Divergence of each.
        sizes: Of the layers.
        tied: Whether head and embedding are one weight, that costs once where both have one width.
    """

    wanted: Sequence[Trial]
    found: Found
    sizes: Sizes
    tied: bool

    @property
    def layers(self) -> list[str]:
        """Names of all layers that are decided."""
        return list(dict.fromkeys(layer for trial in self.wanted for layer in trial.widths))

    @property
    def weights(self) -> int:
        """How many weights they have."""
        twice = self.tied and {EMBEDDING, HEAD} <= set(self.layers)
        shapes = [self.sizes.shape(name) for name in self.layers if not (twice and name == HEAD)]
        return sum(rows * columns for rows, columns in shapes)

    def widest(self, layer: str, word: str) -> str:
        """``word``; for embedding and head the same weights with floating-point inputs."""
        return str(replace(parse(word), activations=None)) if layer in (EMBEDDING, HEAD) else word

    def total(self, widths: Mapping[str, str], cost: Cost) -> float:
        """Cost of an assignment."""
        once = self.tied and HEAD in widths and widths.get(EMBEDDING) == widths[HEAD]
        return sum(cost(layer, word) for layer, word in widths.items() if not (once and layer == HEAD))

    def options(self, cost: Cost, *, scale: float = 1.0, stored_once: bool = True) -> list[Option]:
        """The integer program's options.

        Args:
            cost: Of a layer at a width.
            scale: Every cost is divided by it.
            stored_once: Whether equal widths of a tied head and embedding cost once, as in size but not in time.
        """
        made = [self._option(trial, cost, scale) for trial in self.wanted]
        first = [option for option in made if option.unit == EMBEDDING]
        second = [option for option in made if option.unit == HEAD]
        if not (self.tied and stored_once and first and second):
            return made
        both = [_together(a, b) for a, b in itertools.product(first, second)]
        return [*both, *(option for option in made if option.unit not in (EMBEDDING, HEAD))]

    def _option(self, trial: Trial, cost: Cost, scale: float) -> Option:
        kl = self.found[trial.unit][trial.word]
        price = sum(cost(layer, word) for layer, word in trial.widths.items())
        return Option(trial.unit, trial.widths, kl, price / scale)


def _together(embedding: Option, head: Option) -> Option:
    is_one = embedding.widths[EMBEDDING] == head.widths[HEAD]
    return Option(
        f"{EMBEDDING} and {HEAD}",
        {**embedding.widths, **head.widths},
        embedding.kl + head.kl,
        embedding.cost if is_one else embedding.cost + head.cost,
    )
