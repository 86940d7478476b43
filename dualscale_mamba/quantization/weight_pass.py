"""From floating-point weights to codes: every layer of a model on the grid that the recipe gives it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.quantization.clusters import Arrangement
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.storage import digest, read_checked, stored, write_checked
from dualscale_mamba.quantization.weights import PACKED_TOGETHER, Grid, QuantizedWeight
from dualscale_mamba.rounding.hessians import quantize_sequentially
from dualscale_mamba.rounding.nearest import Nearest
from dualscale_mamba.sites import EMBEDDING, HEAD

ROUNDED_VERSION = 1


@dataclass
class RoundedWeights:
    """Codes and scales of the layers of a model, as they are kept in a file.

    Attributes:
        made: By name of the layer.
        key: Content hash of what they depend on.
        reused: Whether they were read from a file.
    """

    made: dict[str, QuantizedWeight]
    key: str = ""
    reused: bool = False

    def save(self, path: Path) -> None:
        """Write to ``path`` (safetensors) atomically.

        Raises:
            OSError: The disk is full or the folder may not be written.
        """
        tensors, facts = {}, {}
        for name, made in self.made.items():
            tensors[f"{name}/codes"], tensors[f"{name}/scale"], _ = made.stored()
            facts[name] = {**asdict(made.grid), "in_features": made.codes.shape[1]}
        write_checked(path, tensors, {"key": self.key, "layers": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> RoundedWeights:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The content is not what was written.
        """
        tensors, metadata = read_checked(path)
        made = {}
        for name, facts in json.loads(metadata["layers"]).items():
            inputs = facts.pop("in_features")
            codes, scale = tensors[f"{name}/codes"], tensors[f"{name}/scale"]
            made[name] = QuantizedWeight.from_stored(codes, scale, Grid(**facts), inputs)
        return cls(made, metadata["key"], reused=True)


def plan_of(model: MambaLM, recipe: Recipe) -> dict[str, Grid]:
    """The grid of every layer whose weight is to be quantized, by name.

    Raises:
        ConfigError: The recipe does not fit the model.
    """
    layers = model.weight_layers()
    recipe.check(tuple(layers), tuple(model.sites()))
    grids = {name: recipe.grid_of(name) for name in layers}
    plan = {name: grid for name, grid in grids.items() if grid is not None}
    for name, grid in plan.items():
        if grid.bits == 4 and layers[name].columns % PACKED_TOGETHER:
            raise ConfigError(
                "precision", f"{recipe.width_of(name)} for {name}", f"8 bits for its {layers[name].columns} inputs",
                f"4 bits need a multiple of {PACKED_TOGETHER}. Add +precision.layers={{{name}: w8a8}}.",
            )  # fmt: skip
    return plan


def rounding_key(
    parts: Sequence[str], model: MambaLM, recipe: Recipe, arrangement: Arrangement | None = None
) -> str:
    """Content hash of rounded weights: ``parts`` (weights, tokens, types, operators) and what else decides them.

    Formats and sites are no part of it: the inputs that a rounding reads are floating point.
    """
    order = {} if arrangement is None else {str(index): t for index, t in arrangement.order.items()}
    own = [str(ROUNDED_VERSION), f"rotate={recipe.rotate}", f"rotate_residual={recipe.rotate_residual}"]
    own += [repr(recipe.rounding), digest(order), f"convolution={recipe.weights.bits is not None}"]
    own += [f"{name}={grid}" for name, grid in plan_of(model, recipe).items()]
    return sha256("\n".join([*parts, *own]).encode()).hexdigest()[:24]


def quantize_weights(
    model: MambaLM,
    recipe: Recipe,
    batches: Sequence[Tensor] = (),
    cache_dir: Path | None = None,
    key: str = "",
) -> None:
    """Put the weights of a model on their grids, in place, or do as an equal run did.

    Args:
        model: Prepared, no site turned on.
        recipe: Says which weights, how wide and how they are rounded.
        batches: Token ids, each (B, L), for a rounding that reads the inputs of layers.
        cache_dir: Where rounded weights are kept, or None to round them always.
        key: From :func:`rounding_key`; required with ``cache_dir``.

    Raises:
        ConfigError: The recipe does not fit the model.
    """
    plan = plan_of(model, recipe)
    layers = model.weight_layers()
    shares = layers[HEAD].weight is layers[EMBEDDING].weight and plan.get(HEAD) == plan.get(EMBEDDING)
    if shares:  # a tied head is the embedding, and each of its rows is looked up as well
        plan.pop(HEAD, None)
    if recipe.weights.bits is not None:
        for block in model.blocks():
            # Its few weights stay decoded in fp32, on the int8 grid: the kernel multiplies them in fp32.
            conv = block.mixer.conv1d
            conv.weight.data = Nearest()(conv.weight, Grid(8)).decoded()

    def compute() -> RoundedWeights:
        label = "gptq" if recipe.rounding.needs_inputs else "round"
        return RoundedWeights(quantize_sequentially(model, batches, plan, recipe.rounding, label), key)

    if cache_dir is None:
        compute()
    else:
        rounded = stored(cache_dir / "weights" / f"{key}.safetensors", RoundedWeights, compute)
        for name, made in rounded.made.items() if rounded.reused else ():
            codes, scale = made.codes.to(model.device), made.scale.to(model.device)
            layers[name].set_quantized(QuantizedWeight(codes, scale, made.grid))
    if shares and EMBEDDING in plan:
        layers[HEAD].share(layers[EMBEDDING])


def bits_per_weight(model: MambaLM) -> float:
    """Stored bits of a weight of all layers, scales included, on average; a tied head counts once."""
    seen: dict[int, tuple[int, int]] = {}
    for layer in model.weight_layers().values():
        held = layer.weight if layer.weight_codes is None else layer.weight_codes
        scale = 0 if layer.weight_scale is None else layer.weight_scale.nbytes
        seen[held.data_ptr()] = 8 * (held.nbytes + scale), layer.rows * layer.columns
    return sum(bits for bits, _ in seen.values()) / sum(weights for _, weights in seen.values())
