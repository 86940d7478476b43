"""Whether the allocated whole is as good as predicted, beside every width throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dualscale_mamba.configuration import instantiate
from dualscale_mamba.evaluation.base import Context
from dualscale_mamba.evaluation.divergence import Divergence
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.progress import bar
from dualscale_mamba.quantization.layer_costs import Decision
from dualscale_mamba.quantization.pipeline import convert
from dualscale_mamba.quantization.sensitivity import Bench, possible, restored
from dualscale_mamba.quantization.widths import parse
from dualscale_mamba.sites import EMBEDDING, HEAD
from dualscale_mamba.tasks.session import Session

ON_WINDOWS = "windows/kl"

Widths = Mapping[str, str]


def uniform_widths(model: MambaLM, words: Sequence[str], layers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Each width at every layer that can have it; embedding and head, where they are decided, read values."""

    def own(layer: str, word: str) -> str:
        return str(replace(parse(word), activations=None)) if layer in (EMBEDDING, HEAD) else word

    return {word: {layer: possible(model, layer, own(layer, word)) for layer in layers} for word in words}


def check(
    session: Session, bench: Bench, decision: Decision, rivals: Mapping[str, Widths]
) -> dict[str, dict[str, Any]]:
    """Quantize the whole model as each rival says, and compare with the unquantized one.

    Args:
        session: Of the run; its model comes back as it was.
        bench: The text of the trials.
        decision: For the sizes.
        rivals: Widths of the layers that were decided, by a name.

    Returns:
        By name: ``bits``, ``bytes`` and ``kl``, on the windows of the trials and of each chosen evaluation that
        measures divergence.
    """
    batches = session.calibration_batches() if session.recipe.rounding.needs_inputs else []
    made: dict[str, dict[str, Any]] = {}
    for name, widths in bar(list(rivals.items()), "verify", "assignment"):
        with restored(session.model):
            recipe = replace(session.recipe, layers=dict(widths))
            convert(session.model, bench.calibration, recipe, batches)
            kl = {ON_WINDOWS: bench.divergence(), **_evaluated(session)}
        made[name] = {
            "kl": kl,
            "bits": decision.total(widths, decision.sizes.bits) / decision.weights,
            "bytes": decision.total(widths, decision.sizes.bytes),
        }
    return made


def _evaluated(session: Session) -> dict[str, float]:
    context = Context(
        model=session.model,
        reference=session.reference,
        tokenizer=session.pretrained.tokenizer,
        device=session.device,
        data_root=instantiate.data_root(session.config),
        seed=int(session.config.seed),
    )
    evaluators = instantiate.evaluators(session.config).values()
    found = [evaluator(context).metrics for evaluator in evaluators if isinstance(evaluator, Divergence)]
    return {name: metric.value for one in found for name, metric in one.items() if name.endswith("/kl")}
