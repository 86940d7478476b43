"""Weights rounded block after block, each to the inputs that the rounded blocks before it give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dualscale_mamba.models.language_model import Block, MambaLM
from dualscale_mamba.models.weight_layer import WeightLayer
from dualscale_mamba.progress import bar
from dualscale_mamba.quantization.site import Site, Statistic
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight
from dualscale_mamba.rounding.base import Rounding
from dualscale_mamba.sites import EMBEDDING, HEAD, INPUT_SITES

Hidden = tuple[Tensor, Tensor | None]


class InputProduct:
    """The second moments of a layer's inputs; a statistic of a site.

    Products of one update are summed in fp32, the updates in fp64: millions of tokens lose nothing.

    Attributes:
        tokens: How many inputs were seen.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._total: Tensor | None = None

    def update(self, values: Tensor) -> None:
        """Take in values (..., K)."""
        rows = values.detach().reshape(-1, values.shape[-1]).float()
        product = (rows.T @ rows).double()
        self._total = product if self._total is None else self._total.add_(product)
        self.tokens += rows.shape[0]

    def hessian(self) -> Tensor:
        """The sum of x x^T over the tokens, over their number, fp32 (K, K).

        Raises:
            ValueError: Nothing was seen; a site that is int8 already shows nothing.
        """
        if self._total is None:
            raise ValueError(
                "a layer saw no floating-point inputs: round the weights before the sites are int8"
            )
        return (self._total / self.tokens).float()


def quantize_sequentially(
    model: MambaLM,
    batches: Sequence[Tensor],
    plan: Mapping[str, Grid],
    rounding: Rounding,
    label: str = "gptq",
) -> dict[str, QuantizedWeight]:
    """Round the weights of the layers in ``plan``, in place.

    The hidden states of all batches are carried from block to block: a block runs once to show the inputs of its
    projections, and once rounded to make the inputs of the next. Sites must not be int8 yet. A rounding that needs
    no inputs runs nothing.

    Args:
        model: Prepared (reordered, rotated), its sites off.
        batches: Token ids, each (B, L); may be empty where the rounding needs no inputs.
        plan: Grids by layer name: ``layers.3.mixer.in_proj`` and the like, ``lm_head``, ``embedding``.
        rounding: How a weight becomes codes.
        label: Of the progress bar.

    Returns:
        What each layer was given, by its name.

    Raises:
        KeyError: The model has no layer of that name.
        ValueError: The rounding needs inputs and a layer sees none.
    """
    layers = model.weight_layers()
    unknown = sorted(set(plan) - set(layers))
    if unknown:
        raise KeyError(f"the model has no layer {', '.join(unknown)}")
    work = _Work(layers, plan, rounding)
    with torch.no_grad():
        work.round_embedding()
        hidden: list[Hidden] = []
        if rounding.needs_inputs:
            hidden = [(model.backbone.embedding(batch.to(model.device)), None) for batch in batches]
        for index in bar(range(len(model.blocks())), label, "block"):
            hidden = work.round_block(model.blocks()[index], f"layers.{index}.mixer.", hidden)
        work.round_head(model, hidden)
    return work.made


class _Work:
    """The rounding of a model under way."""

    def __init__(
        self, layers: Mapping[str, WeightLayer], plan: Mapping[str, Grid], rounding: Rounding
    ) -> None:
        self.layers, self.plan, self.rounding = layers, plan, rounding
        self.made: dict[str, QuantizedWeight] = {}

    def _round(self, name: str, hessian: Tensor | None) -> None:
        layer = self.layers[name]
        made = self.rounding(layer.weight, self.plan[name], hessian)
        layer.set_quantized(made)
        self.made[name] = made

    def round_embedding(self) -> None:
        """Rows are looked up: their inputs are one-hot, and no column can make good what another one lost."""
        if EMBEDDING in self.plan:
            weight = self.layers[EMBEDDING].weight
            needed = self.rounding.needs_inputs
            self._round(EMBEDDING, torch.eye(weight.shape[1], device=weight.device) if needed else None)

    def round_block(self, block: Block, prefix: str, hidden: list[Hidden]) -> list[Hidden]:
        """Round the projections of a block; the hidden states after it."""
        planned = {
            name: site for name, site in INPUT_SITES[block.mixer.family].items() if prefix + name in self.plan
        }
        products = {name: InputProduct() for name in planned} if self.rounding.needs_inputs else {}
        _show(block, {planned[name]: product for name, product in products.items()}, hidden)
        for name in planned:
            self._round(prefix + name, products[name].hessian() if products else None)
        return [block(x, residual, None) for x, residual in hidden]

    def round_head(self, model: MambaLM, hidden: list[Hidden]) -> None:
        """Round the head to what the last norm emits."""
        if HEAD not in self.plan:
            return
        product = InputProduct()
        for x, residual in hidden:
            values, _ = model.backbone.norm_f(x, residual)
            product.update(values)
        self._round(HEAD, product.hessian() if self.rounding.needs_inputs else None)


def _show(block: Block, statistics: Mapping[str, Statistic], hidden: Sequence[Hidden]) -> None:
    """Run a block while some of its sites show their values; the sites are released whatever happens."""
    sites: dict[str, Site] = {name: getattr(block.mixer, name) for name in statistics}
    try:
        for name, site in sites.items():
            site.statistic = statistics[name]
        for x, residual in hidden if sites else ():
            block(x, residual, None)
    finally:
        for site in sites.values():
            site.statistic = None
