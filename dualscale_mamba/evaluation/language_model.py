"""A model of this package as lm-eval sees one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from dualscale_mamba.evaluation.base import LanguageModel, Tokenizer
from dualscale_mamba.evaluation.scoring import token_log_probabilities
from dualscale_mamba.models.generation import generate
from dualscale_mamba.progress import bar

# Text (unused here), tokens of the context, tokens of the continuation: lm-eval's own triple.
_Request = tuple[Any, list[int], list[int]]
# Input tokens of one forward pass, and which requests read their continuations from it.
_Row = tuple[tuple[int, ...], list[int]]


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Scores requests in an order and in batches that depend on the requests alone.

    Rows are padded on the right: a state space model reads from the left, so padding cannot reach a scored
    token. Requests with the same input share one row.

    Args:
        model: Gives logits (batch, length, vocabulary).
        tokenizer: Its end-of-text token stands before a text without context.
        batch_size: Rows per forward pass.
        max_length: Longest input; a longer context loses its beginning.

    Attributes:
        rows: Forward rows so far.
        order: Running SHA-256 over those rows in their order.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int, max_length: int) -> None:
        super().__init__()
        self._model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length = max_length
        self.rows = 0
        self.order = hashlib.sha256()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._model.device

    @property
    def eot_token_id(self) -> int:
        """Token that ends, and here also begins, a document."""
        return self.tokenizer.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; special tokens are never added."""
        return self.tokenizer.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would give it."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: each token is predicted once, with windows of ``max_length``."""
        windows: list[_Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            pairs = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            for context, continuation in map(make_disjoint_window, pairs):
                windows.append((None, context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuation up to the first stop text, one request at a time."""
        shown = bar(requests, "generate", "text")
        return [self._generate(*request.args) for request in shown]

    def _loglikelihood_tokens(self, requests: Sequence[_Request], **_: Any) -> list[tuple[float, bool]]:
        shared: dict[tuple[int, ...], list[int]] = {}
        for index, (_text, context, continuation) in enumerate(requests):
            self._check_length(len(continuation))
            tokens = (context + continuation)[-(self.max_length + 1) :]
            shared.setdefault(tuple(tokens[:-1]), []).append(index)
        # Longest first, so that a lack of memory shows at once; ties by content, so that the order is fixed.
        rows = sorted(shared.items(), key=lambda row: (-len(row[0]), row[0]))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        starts = range(0, len(rows), self.batch_size)
        for start in bar(starts, "loglikelihood", "batch"):
            batch = rows[start : start + self.batch_size]
            for index, result in self._score(batch, requests):
                results[index] = result
        return results

    @torch.inference_mode()
    def _score(
        self, batch: Sequence[_Row], requests: Sequence[_Request]
    ) -> Iterable[tuple[int, tuple[float, bool]]]:
        logits = self._model(self._pad([row for row, _ in batch]))  # (batch, length, vocabulary)
        width = logits.shape[1]
        positions: list[int] = []
        targets: list[int] = []
        counts: list[int] = []
        for place, (row, indices) in enumerate(batch):
            for index in indices:
                continuation = requests[index][2]
                end = place * width + len(row)
                positions.extend(range(end - len(continuation), end))
                targets.extend(continuation)
                counts.append(len(continuation))
        needed = logits.flatten(0, 1)[torch.tensor(positions, device=logits.device)]
        wanted = torch.tensor(targets, device=logits.device)
        values = torch.split(token_log_probabilities(needed, wanted).cpu(), counts)
        greedy = torch.split((needed.argmax(-1) == wanted).cpu(), counts)
        order = [index for _, indices in batch for index in indices]
        return [
            (index, (float(value.sum()), bool(same.all())))
            for index, value, same in zip(order, values, greedy, strict=True)
        ]

    def _pad(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        width = max(len(row) for row in rows)
        padded = torch.full((len(rows), width), self.eot_token_id, dtype=torch.int64)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = torch.tensor(row)
            self.order.update(repr(row).encode())
        self.rows += len(rows)
        return padded.to(self.device)

    def _check_length(self, length: int) -> None:
        if not 1 <= length <= self.max_length:
            allowed = f"between 1 and max_length={self.max_length}"
            raise ValueError(f"a continuation of {length} tokens cannot be scored: allowed is {allowed}")

    @torch.inference_mode()
    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        model: Any = self._model
        if settings.get("do_sample"):
            raise NotImplementedError("only greedy generation is supported: set do_sample to false")
        if not hasattr(model, "allocate_cache"):
            raise NotImplementedError(f"{type(model).__name__} has no one-token step, so it cannot generate")
        limit = int(settings.get("max_gen_toks", 256))
        until = settings.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        prompt = ([self.prefix_token_id] if not context else self.tok_encode(context))[-self.max_length :]
        ids = torch.tensor([prompt], device=self.device)
        text, tokens = "", []
        for token in generate(model, ids, max_new_tokens=limit):
            if int(token) == self.eot_token_id:
                break
            tokens.append(int(token))
            text = self.tokenizer.decode(tokens)
            if any(stop in text for stop in stops):
                break
        return min((text.split(stop)[0] for stop in stops), key=len, default=text)
