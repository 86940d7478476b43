"""How far a quantized model's predictions are from the unquantized model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualscale_mamba.data.text import label, source_files
from dualscale_mamba.evaluation.base import Context, Evaluated, Metric, evaluating
from dualscale_mamba.evaluation.scoring import Compared, compare
from dualscale_mamba.evaluation.windows import check_windows, read_windows

_ITEM_KEYS = ("kl", "top1_agreement", "nll", "reference_nll")


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) per token and top-1 agreement over windows of one source.

    One forward pass of each model also gives the perplexity of both, so nothing is gained by choosing
    ``Perplexity`` on the same windows.

    Args:
        source: See ``dualscale_mamba.data.text.documents``.
        samples: Windows, spread evenly over the source; None takes all.
        length: Predicted tokens per window.
        batch_size: Windows per forward pass.
    """

    source: str
    samples: int | None = 16
    length: int = 512
    batch_size: int = 4

    def check(self, data_root: Path | None) -> None:
        """See ``Evaluator``."""
        check_windows(self.source, self.samples, self.length, self.batch_size, data_root)

    def files(self, data_root: Path | None) -> list[Path]:
        """See ``Evaluator``."""
        return source_files(self.source, data_root)

    def __call__(self, context: Context) -> Evaluated:
        """See ``Evaluator``. Items: ``window`` and the window's means of kl, top1_agreement and both nll."""
        if context.reference is None:
            raise ValueError("divergence compares with the unquantized model: give Context.reference")
        windows = read_windows(
            self.source, self.samples, self.length, self.batch_size, context.tokenizer, context.data_root
        )
        name = f"divergence/{label(self.source)}"
        evaluating(context.model)
        items: list[dict[str, Any]] = []
        for batch, logits in zip(windows.progress(name), context.reference.logits(windows), strict=True):
            items.extend(_rows(compare(context.model, logits, batch), len(items)))
        return Evaluated(_metrics(name, items), items, windows.facts)


def _rows(compared: Compared, first: int) -> list[dict[str, Any]]:
    columns = (compared.kl, compared.agree.double(), compared.nll, compared.reference_nll)
    means = zip(*(column.mean(1).tolist() for column in columns), strict=True)
    return [
        {"window": first + row, **dict(zip(_ITEM_KEYS, values, strict=True))}
        for row, values in enumerate(means)
    ]


def _metrics(name: str, items: list[dict[str, Any]]) -> dict[str, Metric]:
    mean = {key: math.fsum(item[key] for item in items) / len(items) for key in _ITEM_KEYS}
    return {
        f"{name}/kl": Metric(mean["kl"], "nats/token", "lower"),
        f"{name}/top1_agreement": Metric(mean["top1_agreement"], "fraction", "higher"),
        f"{name}/delta_nll": Metric(mean["nll"] - mean["reference_nll"], "nats/token", "lower"),
        f"{name}/nll": Metric(mean["nll"], "nats/token", "lower"),
        f"{name}/perplexity": Metric(math.exp(mean["nll"]), "perplexity", "lower"),
        f"{name}/reference_nll": Metric(mean["reference_nll"], "nats/token"),
    }
