"""Print text from the quantized model as it is made."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.session import Session, open_session

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Quantize the model, continue ``task.prompt`` and write the text to ``generated.txt`` too."""
    folder = RunFolder.of(config)
    console = Console(highlight=False, soft_wrap=True)
    with open_session(config) as session:
        session.quantize()
        console.print(config.task.prompt, style="bold", end="", markup=False)
        text = str(config.task.prompt)
        for piece in pieces(session):
            console.print(piece, end="", markup=False)
            text += piece
    console.print()
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "generated.txt").write_text(text + "\n", encoding="utf-8")


def pieces(session: Session) -> Iterator[str]:
    """New text after each token; bytes of an unfinished character wait for their rest."""
    tokenizer: Any = session.pretrained.tokenizer
    made: list[int] = []
    shown = ""
    for token in tokens(session):
        made.append(token)
        text = tokenizer.decode(made)
        if not text.endswith("\ufffd"):
            yield text.removeprefix(shown)
            shown = text


@torch.inference_mode()
def tokens(session: Session) -> Iterator[int]:
    """Up to ``task.tokens`` token ids, ended early by the end-of-text token."""
    settings, tokenizer, model = session.config.task, session.pretrained.tokenizer, session.model
    prompt = tokenizer.encode(str(settings.prompt)) or [tokenizer.eos_id]
    cache = model.allocate_cache(1)
    logits = model(torch.tensor([prompt], device=session.device), cache=cache, last_only=True)[:, -1]
    generator = torch.Generator().manual_seed(int(session.config.seed))
    for _ in range(int(settings.tokens)):
        token = choose(logits[0], float(settings.temperature), float(settings.top_p), generator)
        if token == tokenizer.eos_id:
            return
        yield token
        logits = model.step(torch.tensor([token], device=session.device), cache)


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Sample one token from logits (V,): the likeliest at temperature 0, else from the smallest set of ``top_p``."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.double().cpu() / temperature).softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    # A token belongs to the set when those before it do not yet hold top_p.
    ordered[ordered.cumsum(0) - ordered >= top_p] = 0.0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])
