"""Log-probabilities of tokens under one model, or under two, in bounded memory.

One model's are computed in float32, as lm-eval does; differences between two models, which may be far smaller
than either, in float64.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba.evaluation.base import LanguageModel

# Logits handled at once: 64 MiB in float64 for each of the two or three arrays alive.
_LOGITS_AT_ONCE: Final = 2**23


class Compared(NamedTuple):
    """Per-token comparison of a model with its reference; each (batch, length).

    ``nll`` and ``reference_nll`` are in nats, ``kl`` is KL(reference || model) in nats, all float64;
    ``agree`` says whether both models prefer the same token.
    """

    nll: Tensor
    reference_nll: Tensor
    kl: Tensor
    agree: Tensor


@torch.inference_mode()
def window_nll(model: LanguageModel, windows: Tensor) -> Tensor:
    """Negative log-likelihood of every token but the first.

    Args:
        model: Gives logits (batch, length, vocabulary).
        windows: Tokens (batch, length + 1) int64, on any device.

    Returns:
        Nats (batch, length) float64, on the model's device.
    """
    windows = windows.to(model.device)
    targets = windows[:, 1:]
    logits = model(windows[:, :-1])
    return -token_log_probabilities(logits.flatten(0, 1), targets.flatten()).view_as(targets)


@torch.inference_mode()
def compare(model: LanguageModel, reference_logits: Tensor, windows: Tensor) -> Compared:
    """Everything that two models can be compared by, with one forward pass.

    Args:
        model: The model under test.
        reference_logits: (batch, length, vocabulary) of the model that is taken as true, on any device.
        windows: Tokens (batch, length + 1) int64, on any device.

    Returns:
        See ``Compared``.
    """
    windows = windows.to(model.device)
    targets = windows[:, 1:]
    logits = model(windows[:, :-1]).flatten(0, 1)
    reference_logits = reference_logits.flatten(0, 1).to(logits.device)
    rows = _rows_at_once(logits)
    parts = [
        compare_rows(*part)
        for part in zip(
            *(torch.split(rows_of, rows) for rows_of in (logits, reference_logits, targets.flatten())),
            strict=True,
        )
    ]
    return Compared(*(torch.cat(values).view_as(targets) for values in zip(*parts, strict=True)))


def token_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of one token per row.

    Args:
        logits: (rows, vocabulary), any floating dtype.
        targets: (rows,) int64.

    Returns:
        Nats (rows,), computed in float32, given as float64 so that sums over them are exact.
    """
    rows = _rows_at_once(logits)
    parts = [
        F.cross_entropy(part.float(), ids, reduction="none")
        for part, ids in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    ]
    return -torch.cat(parts).double()


def compare_rows(logits: Tensor, reference_logits: Tensor, targets: Tensor) -> Compared:
    """Two models' predictions of some tokens, all at once.

    Args:
        logits: (rows, vocabulary) of the model under test.
        reference_logits: The same of the model that is taken as true, on the same device.
        targets: (rows,) int64.

    Returns:
        See ``Compared``; each (rows,).
    """
    log_p = reference_logits.double().log_softmax(-1)
    log_q = logits.double().log_softmax(-1)
    # A token that the reference rules out (log p = -inf) contributes nothing, not NaN.
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    column = targets.unsqueeze(1)
    return Compared(
        nll=-log_q.gather(1, column).squeeze(1),
        reference_nll=-log_p.gather(1, column).squeeze(1),
        kl=terms.sum(-1),
        agree=logits.argmax(-1) == reference_logits.argmax(-1),
    )


def _rows_at_once(logits: Tensor) -> int:
    return max(1, _LOGITS_AT_ONCE // logits.shape[-1])
