"""How much each layer suffers from each width: the divergence when that layer alone is quantized.

The layer's weight goes on its grid and, where the width has 8-bit activations, its own input site gets the code that
the calibration gives it; every other layer and site stays in floating point. KL divergence ranks layers better than
errors of weights or outputs do (arXiv 2604.13440). The sites that belong to no layer (the SSM input among them) are
measured once, all together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.progress import bar
from dualscale_mamba.quantization.calibration import Calibration
from dualscale_mamba.quantization.pipeline import turn_on
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.weights import PACKED_TOGETHER
from dualscale_mamba.quantization.widths import parse
from dualscale_mamba.rounding.nearest import Nearest
from dualscale_mamba.sites import EMBEDDING, HEAD

# Nothing but the sites that belong to no layer.
SITES_ALONE = "sites"
FLOATING = "w16a16"

log = logging.getLogger(__name__)

Found = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Trial:
    """What is quantized at once.

    Attributes:
        unit: What is decided together: a layer's name, or a block's.
        word: The width that is tried, e.g. ``w4a8``.
        widths: Width of each layer of the unit; one that cannot have ``word`` has the next that it can.
    """

    unit: str
    word: str
    widths: Mapping[str, str]


@dataclass(frozen=True)
class Text:
    """One batch of text, and what the floating-point model makes of it.

    Attributes:
        ids: int64 (batch, length).
        probability: fp64 (batch, length, vocabulary), of the next token.
        entropy: fp64 (batch, length), negative, nats.
        hidden: Input and residual of every block, and of what follows the last one.
    """

    ids: Tensor
    probability: Tensor
    entropy: Tensor
    hidden: Sequence[tuple[Tensor, Tensor | None]]

    @classmethod
    def read(cls, model: MambaLM, window: Tensor, logits: Tensor) -> Text:
        """Of token ids (batch, length + 1) and the model's logits (batch, length, vocabulary) of them."""
        ids = window[:, :-1].to(model.device)
        log_p = logits.to(model.device).double().log_softmax(-1)
        p = log_p.exp()
        hidden: list[tuple[Tensor, Tensor | None]] = [(model.backbone.embedding(ids), None)]
        for block in model.blocks():
            hidden.append(block(*hidden[-1], None))
        return cls(ids, p, torch.where(p == 0, 0.0, p * log_p).sum(-1), hidden)

    def divergence(self, model: MambaLM, start: int = 0) -> Tensor:
        """KL from the floating-point model to the model as it is now, fp64 (batch, length), nats.

        Args:
            model: The same, somewhat quantized.
            start: The first block that is not as it was; 0 begins with the embedding.
        """
        x, residual = self.hidden[start] if start else (model.backbone.embedding(self.ids), None)
        for block in model.blocks()[start:]:
            x, residual = block(x, residual, None)
        assert residual is not None
        values, _ = model.backbone.norm_f(x, residual)
        logits = model.lm_head(values)[0].double()
        kl: Tensor = (
            self.entropy + logits.logsumexp(-1) - torch.einsum("blv,blv->bl", self.probability, logits)
        )
        return kl


@dataclass(frozen=True)
class Bench:
    """A prepared model, its calibration, and the text on which it is compared.

    Attributes:
        model: Prepared, in floating point.
        calibration: Its counted values.
        recipe: Says everything but widths: groups, rounding, observers.
        texts: What it said while it was in floating point.
    """

    model: MambaLM
    calibration: Calibration
    recipe: Recipe
    texts: Sequence[Text]

    @torch.no_grad()
    def divergence(self, start: int = 0) -> float:
        """KL from the floating-point model to the model as it is now, mean over all tokens, nats.

        Args:
            start: The first block that is not as it was.
        """
        kl = [text.divergence(self.model, start).flatten() for text in self.texts]
        return float(torch.cat(kl).mean())

    def first(self, unit: str) -> int:
        """The first block that a unit's quantization changes."""
        if unit == HEAD:
            return len(self.model.blocks())
        return int(unit.split(".")[1]) if unit.startswith("layers.") else 0


def trials(model: MambaLM, widths: Sequence[str], outer: Sequence[str], unit: str) -> list[Trial]:
    """Every unit at every width that it can have.

    Args:
        model: Whose layers.
        widths: Of the projections.
        outer: Of the embedding and of the head; empty leaves both as they are.
        unit: ``layer``, or ``block``: all projections of one together.
    """
    layers = model.weight_layers()
    projections = [name for name in layers if name not in (EMBEDDING, HEAD)]
    groups = {name: [name] for name in projections}
    if unit == "block":
        groups = {}
        for name in projections:
            groups.setdefault(name.partition(".mixer.")[0], []).append(name)
    made = []
    for name, words, members in [
        (EMBEDDING, outer, [EMBEDDING]),
        *((group, widths, members) for group, members in groups.items()),
        (HEAD, outer, [HEAD]),
    ]:
        for word in words:
            own = {member: possible(model, member, word, alone=len(members) == 1) for member in members}
            if len(members) > 1 or own[members[0]] == word:
                made.append(Trial(name, word, own))
    return made


def possible(model: MambaLM, layer: str, word: str, *, alone: bool = False) -> str:
    """The width ``word`` for a layer, or the same with 8-bit weights where 4 bits do not fit.

    int4 is packed in eights; and dt_proj, whose few inputs fill no group, has it only where it is asked for ``alone``.
    """
    packs = model.weight_layers()[layer].columns % PACKED_TOGETHER == 0
    is_small = layer.endswith(".dt_proj") and not alone
    return word if parse(word).weights != 4 or (packs and not is_small) else word.replace("w4", "w8")


def measure(
    bench: Bench, wanted: Sequence[Trial], known: Found, keep: Callable[[Found], None] = lambda found: None
) -> Found:
    """Divergence of every trial, by unit and word.

    Args:
        bench: The model and its text.
        wanted: Trials.
        known: What was measured before; it is not measured again.
        keep: Called with all that is known after each trial, so that a killed run can go on.

    Returns:
        ``known`` and the rest; under ``SITES_ALONE`` what the sites of no layer cost.
    """
    found = {unit: dict(words) for unit, words in known.items()}
    alone = Trial(SITES_ALONE, FLOATING, {"*": FLOATING})
    missing = [t for t in (alone, *wanted) if t.word not in found.get(t.unit, {})]
    alike: dict[tuple[str, ...], float] = {}
    for trial in bar(missing, "sensitivity", "trial"):
        own = bench.recipe if trial is alone else _only(bench.recipe)
        own = replace(own, layers=dict(trial.widths))
        # A width whose activations change nothing (x_proj reads the codes of another site) is the same trial.
        same = (trial.unit, *(own.width_of(name) for name in trial.widths if name != "*"))
        if same not in alike:
            with quantized(bench.model, bench.calibration, own, trial.widths):
                alike[same] = bench.divergence(bench.first(trial.unit))
        found.setdefault(trial.unit, {})[trial.word] = alike[same]
        keep(found)
    return found


def _only(recipe: Recipe) -> Recipe:
    """Nothing quantized but what ``layers`` will name."""
    return replace(
        recipe, weights=replace(recipe.weights, bits=None, embedding=None, head=None), activation_bits=8, sites=()
    )  # fmt: skip


def rounding_without_inputs(recipe: Recipe) -> Recipe:
    """The recipe with a rounding that needs no inputs of layers: a trial is one of many."""
    if not recipe.rounding.needs_inputs:
        return recipe
    log.info("the trials round to nearest; the allocated model is rounded as configured")
    return replace(recipe, rounding=Nearest())


@contextmanager
def quantized(
    model: MambaLM, calibration: Calibration, recipe: Recipe, layers: Iterable[str]
) -> Iterator[None]:
    """Inside the block some layers and the recipe's sites are quantized; afterwards the model is what it was, bitwise.

    Args:
        model: Prepared, in floating point.
        calibration: Its counted values.
        recipe: Says the widths.
        layers: Whose weights are rounded here.
    """
    held = model.weight_layers()
    with restored(model):
        for name in layers:
            grid = recipe.grid_of(name) if name in held else None
            if grid is not None:
                held[name].set_quantized(recipe.rounding(held[name].weight, grid))
        turn_on(model, calibration, recipe)
        yield


@contextmanager
def restored(model: MambaLM) -> Iterator[None]:
    """Whatever is quantized inside the block is given back its floating-point weights, and every site is off."""
    layers = model.weight_layers()
    kept = {name: layer.weight for name, layer in layers.items()}
    convolutions = [block.mixer.conv1d.weight.data for block in model.blocks()]
    try:
        yield
    finally:
        for name, layer in layers.items():
            if layer.is_quantized:
                layer.set_float(kept[name])
            if isinstance(layer, Linear):
                layer.decodes = False
        for block, weight in zip(model.blocks(), convolutions, strict=True):
            block.mixer.conv1d.weight.data = weight
        for site in model.sites().values():
            site.set_code(None)
