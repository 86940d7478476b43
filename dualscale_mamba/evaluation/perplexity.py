"""How well a model predicts a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dualscale_mamba.data.text import label, source_files
from dualscale_mamba.evaluation.base import Context, Evaluated, Metric, evaluating
from dualscale_mamba.evaluation.scoring import window_nll
from dualscale_mamba.evaluation.windows import bits_per_byte, check_windows, read_windows


@dataclass(frozen=True)
class Perplexity:
    """Mean negative log-likelihood of the tokens of windows of one source, document separators included.

    Each window starts from an empty state, so its first tokens have little context: compare models on the
    same windows, and with published page perplexities only through the lm-eval task ``wikitext``.

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
        """See ``Evaluator``. Items: ``window``, ``nll`` (mean nats per token), ``tokens``, ``bytes``."""
        windows = read_windows(
            self.source, self.samples, self.length, self.batch_size, context.tokenizer, context.data_root
        )
        name = f"perplexity/{label(self.source)}"
        evaluating(context.model)
        means: list[float] = []
        for batch in windows.progress(name):
            means.extend(window_nll(context.model, batch).mean(1).tolist())
        nll = math.fsum(means) / len(means)
        size = sum(windows.bytes_per_window)
        items = [
            {"window": index, "nll": mean, "tokens": self.length, "bytes": window_size}
            for index, (mean, window_size) in enumerate(zip(means, windows.bytes_per_window, strict=True))
        ]
        metrics = {
            f"{name}/nll": Metric(nll, "nats/token", "lower"),
            f"{name}/perplexity": Metric(math.exp(nll), "perplexity", "lower"),
            f"{name}/bits_per_byte": Metric(
                bits_per_byte(nll, len(means) * self.length, size), "bits/byte", "lower"
            ),
        }
        return Evaluated(metrics, items, windows.facts)
