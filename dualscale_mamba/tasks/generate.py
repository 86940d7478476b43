"""Print text from the quantized model as it is made."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from rich.console import Console

from dualscale_mamba.models.generation import generate
from dualscale_mamba.models.graphs import graphed
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
    tokenizer = session.pretrained.tokenizer
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
    settings, tokenizer = session.config.task, session.pretrained.tokenizer
    prompt = tokenizer.encode(str(settings.prompt)) or [tokenizer.eos_id]
    model, _ = graphed(session.model)  # the same tokens, sooner
    made = generate(
        model,
        torch.tensor([prompt], device=session.device),
        max_new_tokens=int(settings.tokens),
        temperature=float(settings.temperature),
        top_p=float(settings.top_p),
        seed=int(session.config.seed),
        eos_id=tokenizer.eos_id,
    )
    for token in made:
        if int(token) == tokenizer.eos_id:
            return
        yield int(token)
