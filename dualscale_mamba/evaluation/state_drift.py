"""How far a model drifts from the unquantized one while it reads token by token, by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualscale_mamba.data.text import label, source_files
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.evaluation.base import Context, Evaluated, Metric, evaluating, require_positive
from dualscale_mamba.evaluation.octaves import Octaves
from dualscale_mamba.evaluation.scoring import compare_rows
from dualscale_mamba.evaluation.windows import check_windows, read_windows
from dualscale_mamba.models.graphs import graphed
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.progress import bar

COLUMNS = ("kl", "top1_agreement", "nll", "reference_nll")


@dataclass(frozen=True)
class StateDrift:
    """Both models read the same text by steps, each with its own states, and are compared after each token.

    Only here does an encoded state have its whole effect: evaluations that read whole windows never store one.

    Args:
        source: See ``dualscale_mamba.data.text.documents``.
        samples: Windows, spread evenly over the source; None takes all.
        length: Tokens of each.
        batch_size: Windows at a time.
        looks: Positions of each octave at which the states are compared; predictions are at every one.
        cuda_graphs: Whether steps are replayed on a GPU; results are the same.
    """

    source: str
    samples: int | None = 8
    length: int = 1024
    batch_size: int = 8
    looks: int = 8
    cuda_graphs: bool = True

    def check(self, data_root: Path | None) -> None:
        """See ``Evaluator``."""
        check_windows(self.source, self.samples, self.length, self.batch_size, data_root)
        require_positive({"looks": self.looks})
        if self.length < 2:
            raise ConfigError("length", self.length, "at least 2")

    def files(self, data_root: Path | None) -> list[Path]:
        """See ``Evaluator``."""
        return source_files(self.source, data_root)

    def __call__(self, context: Context) -> Evaluated:
        """See ``Evaluator``.

        Items: ``window``, its means of kl, top1_agreement and both nll; ``kl_last`` and ``state_error_last``, means
        over the last octave; ``kl_octaves`` and ``state_error_octaves``, lists over all octaves.

        Raises:
            ValueError: There is no unquantized model to compare with.
            ConfigError: A model has no states that can be compared.
        """
        if context.reference is None:
            raise ValueError("state_drift compares with the unquantized model: give Context.reference")
        windows = read_windows(
            self.source, self.samples, self.length, self.batch_size, context.tokenizer, context.data_root
        )
        readers = [Reader.of(model, self.cuda_graphs) for model in (context.model, context.reference.model())]
        octaves = Octaves(self.length, self.looks)
        items: list[dict[str, Any]] = []
        layers: list[Tensor] = []
        for batch in windows.batches:
            said, errors = read_both(readers[0], readers[1], batch, octaves)
            items.extend(_rows(said, errors, octaves, len(items)))
            layers.append(octaves.of_looks(errors).sum(-1))
        name = f"divergence/{label(self.source)}_steps"
        facts = {**windows.facts, "source": f"{label(self.source)}_steps"}
        curves = _curves(items, octaves, torch.stack(layers).sum(0) / len(items))
        return Evaluated(_metrics(name, items, octaves, context.model), items, facts, curves)


@dataclass
class Reader:
    """A model that reads by steps, and its states after each of them.

    Attributes:
        model: The model itself.
        steps: The same, perhaps with CUDA graphs.
    """

    model: MambaLM
    steps: Any
    cache: Any = None

    @classmethod
    def of(cls, model: Any, cuda_graphs: bool) -> Reader:
        """A reader of a native model.

        Raises:
            ConfigError: It is none, and has no states of that kind.
        """
        if not isinstance(model, MambaLM):
            allowed = "native with evaluation=[state_drift]"
            raise ConfigError("model.implementation", type(model).__name__, allowed)
        evaluating(model)
        return cls(model, graphed(model, cuda_graphs)[0])

    def begin(self, batch: int) -> None:
        """Forget everything."""
        self.cache = self.steps.allocate_cache(batch)

    def read(self, ids: Tensor) -> Tensor:
        """One token of each text: int64 (B,) -> logits (B, V)."""
        logits: Tensor = self.steps.step(ids, self.cache)
        return logits

    def states(self) -> list[Tensor]:
        """h of every layer as the next step will read it, (B, values)."""
        cache = self.cache if self.steps is self.model else self.steps.states(self.cache)
        pairs = zip(self.model.blocks(), cache.layers, strict=True)
        return [block.mixer.state_store.values(layer).flatten(1).float() for block, layer in pairs]


@torch.inference_mode()
def read_both(model: Reader, reference: Reader, windows: Tensor, octaves: Octaves) -> tuple[Tensor, Tensor]:
    """Let two models read the same windows by steps.

    Args:
        model: Under test.
        reference: What it is compared with.
        windows: int64 (B, L + 1).
        octaves: Say at which positions the states are compared.

    Returns:
        fp64 (L, B, 4), the columns of :data:`COLUMNS` after each token; fp64 (looks, layers, B), the norm of the
        difference of two states over that of the reference's. Both on the CPU.
    """
    ids = windows.to(model.model.device)
    count, length = len(ids), ids.shape[1] - 1
    said = torch.zeros(length, count, len(COLUMNS), dtype=torch.float64, device=ids.device)
    layers = len(model.model.blocks())
    errors = torch.zeros(len(octaves.looks), layers, count, dtype=torch.float64, device=ids.device)
    for reader in (model, reference):
        reader.begin(count)
    for at in bar(range(length), "state_drift", "token"):
        logits, wanted = model.read(ids[:, at]), reference.read(ids[:, at])
        found = compare_rows(logits, wanted, ids[:, at + 1])
        said[at] = torch.stack([found.kl, found.agree.double(), found.nll, found.reference_nll], dim=-1)
        if at in octaves.looks:
            errors[octaves.looks[at]] = _errors(model.states(), reference.states())
    return said.cpu(), errors.cpu()


def _errors(states: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Relative error of each layer's state, fp64 (layers, B)."""
    rows = [
        (own - true).norm(dim=1) / true.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        for own, true in zip(states, wanted, strict=True)
    ]
    return torch.stack(rows).double()


def _rows(said: Tensor, errors: Tensor, octaves: Octaves, first: int) -> list[dict[str, Any]]:
    kl = octaves.of_positions(said[:, :, 0])  # (octaves, B)
    states = octaves.of_looks(errors).mean(1)
    means = said.mean(0).tolist()
    return [
        {
            "window": first + row,
            **dict(zip(COLUMNS, values, strict=True)),
            "kl_last": float(kl[-1, row]),
            "state_error_last": float(states[-1, row]),
            "kl_octaves": kl[:, row].tolist(),
            "state_error_octaves": states[:, row].tolist(),
        }
        for row, values in enumerate(means)
    ]


def _mean(items: Sequence[dict[str, Any]], key: str) -> float:
    return math.fsum(item[key] for item in items) / len(items)


def _over(items: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Means over the windows of a list over octaves."""
    return torch.tensor([item[key] for item in items], dtype=torch.float64).mean(0).tolist()


def _metrics(name: str, items: Sequence[dict[str, Any]], octaves: Octaves, model: Any) -> dict[str, Metric]:
    units = {"kl": "nats/token", "kl_last": "nats/token", "state_error_last": "relative"}
    made = {f"{name}/{key}": Metric(_mean(items, key), unit, "lower") for key, unit in units.items()}
    nll, reference_nll = _mean(items, "nll"), _mean(items, "reference_nll")
    for key, column in (("kl_slope", "kl_octaves"), ("state_error_slope", "state_error_octaves")):
        made[f"{name}/{key}"] = Metric(octaves.slope(_over(items, column)), "octaves/octave", "lower")
    store = model.blocks()[0].mixer.state_store
    bits = 8.0 * model.state_dtype.itemsize
    if store.coding is not None:
        bits = store.coding.bits_per_value(model.config.d_state)
    return made | {
        f"{name}/top1_agreement": Metric(_mean(items, "top1_agreement"), "fraction", "higher"),
        f"{name}/delta_nll": Metric(nll - reference_nll, "nats/token", "lower"),
        f"{name}/nll": Metric(nll, "nats/token", "lower"),
        f"{name}/perplexity": Metric(math.exp(nll), "perplexity", "lower"),
        f"{name}/reference_nll": Metric(reference_nll, "nats/token"),
        f"{name}/state_bits": Metric(bits, "bits", "lower"),
    }


def _curves(items: Sequence[dict[str, Any]], octaves: Octaves, layers: Tensor) -> dict[str, Any]:
    """What is drawn over the position: means over the windows, and of the states those of each layer too."""
    return {
        "position": octaves.ends,
        "kl": _over(items, "kl_octaves"),
        "state_error": _over(items, "state_error_octaves"),
        "layers": layers.T.tolist(),
    }
