"""The prepared model with text to measure its divergence on, for tasks that try many settings."""

from __future__ import annotations

from dataclasses import replace

import torch

from dualscale_mamba.configuration import instantiate
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.evaluation.windows import Windows, read_windows
from dualscale_mamba.quantization.calibration import Calibration
from dualscale_mamba.quantization.sensitivity import Bench, Text, rounding_without_inputs
from dualscale_mamba.tasks.session import Session


def make_bench(session: Session, calibration: Calibration) -> tuple[Bench, Windows]:
    """The prepared model with windows of the calibration text, and its own logits for them."""
    settings, calibrated = session.config.task, session.config.calibration
    root = instantiate.data_root(session.config)
    try:
        windows = read_windows(
            str(calibrated.source), int(settings.windows), int(settings.length), int(settings.batch_size),
            session.pretrained.tokenizer, root,
        )  # fmt: skip
    except ConfigError as error:  # the text is too short
        key = "windows" if error.key == "samples" else error.key
        raise ConfigError(f"task.{key}", error.value, error.allowed) from None
    # The prepared model's own: rotating it has rounded its weights, which is no layer's fault.
    reference = session.make_reference()
    reference = replace(reference, load=lambda: session.model, facts=[*reference.facts, calibration.key])
    recipe = rounding_without_inputs(session.recipe)
    logits = list(reference.logits(windows))  # all of them before anything is quantized
    pairs = zip(windows.batches, logits, strict=True)
    with torch.no_grad():
        texts = [Text.read(session.model, batch, logits) for batch, logits in pairs]
    return Bench(session.model, calibration, recipe, texts), windows
