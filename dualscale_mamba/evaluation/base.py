"""What every evaluation takes and gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from dualscale_mamba.errors import ConfigError

if TYPE_CHECKING:
    from dualscale_mamba.evaluation.windows import Windows


class LanguageModel(Protocol):
    """What evaluations need of a model."""

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        ...

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary) of tokens (batch, length) int64."""
        ...


class Tokenizer(Protocol):
    """What evaluations need of a tokenizer."""

    @property
    def eos_id(self) -> int:
        """Token that ends a document."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special tokens."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of tokens."""
        ...


@dataclass(frozen=True)
class Metric:
    """One number of a result.

    Args:
        value: The number.
        unit: What it counts, e.g. ``nats/token``.
        better: Which direction is better; empty where neither is.
    """

    value: float
    unit: str
    better: Literal["lower", "higher", ""] = ""


@dataclass(frozen=True)
class Evaluated:
    """Result of one evaluation.

    Args:
        metrics: By name, e.g. ``perplexity/python_docs/nll``.
        items: One row per window or document, in a fixed order, so that arms can be compared pair by pair.
        facts: What two arms must share to be comparable: hashes of the input, batch size, order of requests.
        curves: What is drawn over the position in the text: lists under ``position``, ``kl`` and the like.
    """

    metrics: dict[str, Metric]
    items: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)


class Reference(Protocol):
    """What the unquantized model says; see :class:`dualscale_mamba.evaluation.reference.Reference`."""

    def logits(self, windows: Windows) -> Iterator[Tensor]:
        """Logits (batch, length, vocabulary) of each batch in turn, on any device."""
        ...

    def model(self) -> LanguageModel:
        """The unquantized model itself, where logits of whole windows do not do."""
        ...


@dataclass(frozen=True)
class Context:
    """What is evaluated, and against what.

    Args:
        model: The model under test.
        reference: The unquantized model, or None.
        tokenizer: The tokenizer of both.
        device: Where the model lives.
        data_root: Folder of third-party data, or None.
        seed: Seed of the run.
    """

    model: LanguageModel
    reference: Reference | None
    tokenizer: Tokenizer
    device: torch.device
    data_root: Path | None = None
    seed: int = 0


class Evaluator(Protocol):
    """A callable with settings; ``conf/evaluation`` names the implementations."""

    def check(self, data_root: Path | None) -> None:
        """Raises ConfigError, before anything heavy is loaded, for settings that cannot work."""
        ...

    def files(self, data_root: Path | None) -> list[Path]:
        """Local files whose content decides the result, once ``check`` has passed."""
        ...

    def __call__(self, context: Context) -> Evaluated:
        """Measures."""
        ...


def require_positive(settings: Mapping[str, int | None]) -> None:
    """Raises ConfigError for the first setting that is given and below 1."""
    for key, value in settings.items():
        if value is not None and value < 1:
            raise ConfigError(key, value, "at least 1")


def evaluating(model: LanguageModel) -> None:
    """Puts a model that knows training from evaluation into evaluation mode."""
    if isinstance(model, nn.Module):
        model.eval()
