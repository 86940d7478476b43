"""From text to the codes of every layer's state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import MIN_RANGE, Code, Range
from dualscale_mamba.formats.float8 import DTYPES, Float8
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.progress import bar
from dualscale_mamba.states.format import StateFormat
from dualscale_mamba.states.store import STOCHASTIC, Coding, lowest_code

StateRow = dict[str, str | float]
# Values of a layer that are binned at once.
POINTS_AT_ONCE = 2**22


def encode_states(model: MambaLM, format_: StateFormat, batches: Sequence[Tensor]) -> list[StateRow]:
    """Let every layer keep its state in codes, in place.

    Args:
        model: In the form in which it will run; its states are not encoded yet.
        format_: How.
        batches: Token ids, each (B, L); read only where ``format_.needs_calibration``.

    Returns:
        One row a layer: ``name``, ``format``, ``bits_per_value`` (side data of a sequence included) and, where text was
        read, ``percentile``, ``codes_used``, ``sqnr_db`` and ``range_max`` (the largest normalized value).

    Raises:
        ConfigError: The model's states are not fp32, or there is no text.
    """
    if model.state_dtype != torch.float32:
        raise ConfigError("model.state_dtype", model.state_dtype, "float32 where the state is encoded")
    if not format_.needs_calibration:
        return [_turn_on(model, format_, layer, None, None) for layer in range(len(model.blocks()))]
    looks = _looks(model, format_, batches)
    return [_turn_on(model, format_, layer, *look) for layer, look in enumerate(looks)]


def _looks(
    model: MambaLM, format_: StateFormat, batches: Sequence[Tensor]
) -> list[tuple[Histogram, Tensor | None]]:
    """Of each layer the normalized values, and the constant scales of its channels where there are some."""
    if not batches:
        raise ConfigError("calibration.samples", 0, "1 or more where the scales of the state are calibrated")
    is_static = format_.scale == "static"
    shapes = [layer.ssm.shape[1:] for layer in model.allocate_cache(1).layers]
    channels = [torch.arange(shape[:-1].numel()) if is_static else None for shape in shapes]
    found = [Histogram(assignment) for assignment in channels]
    with torch.inference_mode():
        for batch in bar(batches, "calibrate states", "batch"):
            cache = model.allocate_cache(len(batch))
            for piece in torch.split(batch.to(model.device), format_.every, dim=1):
                model(piece, cache, last_only=True)
                for histogram, layer in zip(found, cache.layers, strict=True):
                    histogram.update(_shown(layer.ssm, is_static))
    if not is_static:
        return [(histogram, None) for histogram in found]
    made: list[tuple[Histogram, Tensor | None]] = []
    for histogram, shape in zip(found, shapes, strict=True):
        scale = (histogram.absmax * format_.headroom).clamp_min(MIN_RANGE)
        made.append((normalized(histogram, scale), scale.float().reshape(shape[:-1])))
    return made


def _shown(h: Tensor, is_static: bool) -> Tensor:
    """What a histogram counts: the values with their channel last, or divided by their own channel's largest."""
    if is_static:
        return h.flatten(1, -2).transpose(1, 2)
    return h / h.abs().amax(-1, keepdim=True).clamp_min(MIN_RANGE)


def normalized(histogram: Histogram, scale: Tensor) -> Histogram:
    """The counts of all groups together, each value divided by its group's scale, to a bin's width.

    Args:
        histogram: With a group a channel.
        scale: fp64 (groups,), positive.
    """
    made = Histogram()
    edges = made.edges()[:-1]
    values, weights = histogram.points()
    groups = max(1, POINTS_AT_ONCE // max(len(values), 1))
    for own, each in zip(torch.split(weights, groups), torch.split(scale, groups), strict=True):
        placed = values.double() / each[:, None]
        rank = torch.searchsorted(edges, placed.abs().contiguous(), right=True)
        index = torch.where(placed < 0, -rank, rank) + made.side
        counted = torch.bincount(index.reshape(-1), weights=own.reshape(-1), minlength=made.counts.shape[1])
        made.counts += counted.round().long()
    made.minimum = (histogram.minimum / scale).min().float().reshape(1)
    made.maximum = (histogram.maximum / scale).max().float().reshape(1)
    return made


def _turn_on(
    model: MambaLM, format_: StateFormat, layer: int, look: Histogram | None, scale: Tensor | None
) -> StateRow:
    mixer = model.blocks()[layer].mixer
    mode = format_.mode
    states = model.config.d_state
    row: StateRow = {"name": f"layers.{layer}.mixer.state", "format": type(mode).__name__.lower()}
    if look is None:
        whole = torch.ones(1, dtype=torch.float64)
        code, inner = mode.fit(Range(-whole, whole, whole)), 1.0
    else:
        fitted = format_.observer.fit(look, None, mode)
        code, inner = fitted.code, float(fitted.range.inner)
        quality = look.coding(code)
        row |= {"percentile": fitted.percentile, "sqnr_db": quality.sqnr_db, "codes_used": quality.codes_used}
        row["range_max"] = float(look.absmax)
    reach = 1.0
    if isinstance(mode, Float8):  # the levels are the float's own, and the scale bears what stretches them
        largest = float(torch.finfo(DTYPES[mode.layout]).max)
        reach, code = inner / largest, _own_levels(mode, largest)
    rows = (code.rows + 0.0).to(model.device)  # no level is -0
    coding = Coding(
        storage=format_.storage,
        scale=format_.scale,
        rounding=format_.rounding,
        seed=format_.seed if format_.rounding == STOCHASTIC else 0,
        residual_bits=format_.residual_bits,
        reach=reach,
        lowest=lowest_code(code.rows),
    )
    constant = None if scale is None else (scale * reach).to(model.device)
    mixer.state_store.turn_on(coding, rows, constant, layer)
    row["bits_per_value"] = coding.bits_per_value(states)
    return row


def _own_levels(mode: Float8, largest: float) -> Code:
    whole = torch.full((1,), largest, dtype=torch.float64)
    return mode.fit(Range(-whole, whole, whole))
