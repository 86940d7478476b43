"""From floating-point weights to codes: every layer of a model on the grid that the recipe gives it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.weights import Grid, quantize_weight
from dualscale_mamba.sites import EMBEDDING, HEAD


def plan_of(model: MambaLM, recipe: Recipe) -> dict[str, Grid]:
    """The grid of every layer whose weight is to be quantized, by name.

    Raises:
        ConfigError: The recipe does not fit the model.
    """
    layers = model.weight_layers()
    recipe.check(tuple(layers))
    grids = {name: recipe.grid_of(name) for name in layers}
    return {name: grid for name, grid in grids.items() if grid is not None}


def quantize_weights(model: MambaLM, recipe: Recipe, batches: Sequence[Tensor] = ()) -> None:
    """Put the weights of a model on their grids, in place; what lies on one stays as it is.

    Args:
        model: Prepared, no site turned on.
        recipe: Says which weights, how wide and how they are rounded.
        batches: Token ids, each (B, L), for a rounding that reads the inputs of layers.

    Raises:
        ConfigError: The recipe does not fit the model.
    """
    plan = plan_of(model, recipe)
    layers = model.weight_layers()
    if recipe.weights.bits is not None:
        for block in model.blocks():
            # Its few weights stay decoded in fp32, on the int8 grid: the kernel multiplies them in fp32.
            block.mixer.conv1d.weight.data = quantize_weight(block.mixer.conv1d.weight).decoded()
    is_shared = layers[HEAD].weight is layers[EMBEDDING].weight and plan.get(HEAD) == plan.get(EMBEDDING)
    for name, grid in plan.items():
        if layers[name].is_quantized:
            continue
        if name == HEAD and is_shared:
            layers[HEAD].share(layers[EMBEDDING])
        else:
            layers[name].set_quantized(recipe.rounding(layers[name].weight, grid))


def bits_per_weight(model: MambaLM) -> float:
    """Stored bits of a weight of all layers, scales included, on average; a tied head counts once."""
    seen: dict[int, tuple[int, int]] = {}
    for layer in model.weight_layers().values():
        held = layer.weight if layer.weight_codes is None else layer.weight_codes
        scale = 0 if layer.weight_scale is None else layer.weight_scale.nbytes
        seen[held.data_ptr()] = 8 * (held.nbytes + scale), layer.rows * layer.columns
    return sum(bits for bits, _ in seen.values()) / sum(weights for _, weights in seen.values())
