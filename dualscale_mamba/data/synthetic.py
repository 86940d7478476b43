"""Made SSM inputs with the tails of real ones, and with worse: what a code meets that calibration did not show.

A value is SiLU(v) of a pre-activation v that is normal with a scale of its own in each channel, so that the floor is
exactly SiLU's. The largest values are then moved, in their order, to where a regime wants its quantiles: which channels
hold the outliers does not change. Without a tail of its own the body has mean 0.003 and deviation 0.13, those of the
last layer of mamba-130m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba.errors import ConfigError

# Of the pre-activation: deviation of a median channel, mean in units of the channel's scale, deviation of log scales.
SCALE, SHIFT, SPREAD = 0.215, -0.11, 0.3
CONSTANTS = (-0.25, 2.5)  # between which the channels of one value have theirs


@dataclass(frozen=True)
class Regime:
    """How the values of one made tensor are distributed.

    Args:
        quantiles: Magnitudes by the percentage of values that lie below, e.g. ``{99.95: 2.2}``; both ascend.
        maximum: The largest value; None where the body has no tail of its own.
        body: Percentage of the values that keep their place; the tail begins there.
        zero: Share of the channels that hold zeros alone.
        constant: Share of the channels that hold one value alone, each its own.
        spike: Share of the channels that hold zeros and, at one token, the largest value.
    """

    quantiles: Mapping[float, float] = field(default_factory=dict)
    maximum: float | None = None
    body: float = 99.0
    zero: float = 0.0
    constant: float = 0.0
    spike: float = 0.0

    def __post_init__(self) -> None:
        points = sorted((float(percent), float(value)) for percent, value in self.quantiles.items())
        if not 0 < self.body < 100:
            raise ConfigError("task.regimes.body", self.body, "a percentage in (0, 100)")
        if points and not (self.body < points[0][0] and points[-1][0] < 100):
            allowed = f"percentages between body={self.body:g} and 100"
            raise ConfigError("task.regimes.quantiles", dict(points), allowed)
        ends = [] if self.maximum is None else [self.maximum]
        values = [value for _, value in points] + ends
        if (points and not ends) or any(low > high for low, high in pairwise(values)):
            raise ConfigError("task.regimes.quantiles", dict(points), "magnitudes that ascend to a maximum")
        shares = (self.zero, self.constant, self.spike)
        if min(shares) < 0 or sum(shares) > 1:
            raise ConfigError("task.regimes.zero", shares, "shares of zero, constant and spike of 1 together")


def regimes_of(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Regime]:
    """Regimes by name from the settings of a configuration, quantiles as a list of pairs.

    Raises:
        ConfigError: A regime has no such setting, or refuses its value.
    """
    made = {}
    for name, node in nodes.items():
        settings = {str(key): value for key, value in node.items()}
        try:
            quantiles = {float(percent): float(value) for percent, value in settings.pop("quantiles", ())}
            made[str(name)] = Regime(quantiles, **settings)
        except ConfigError as error:
            key = f"task.regimes.{name}.{error.key.rpartition('.')[2]}"
            raise ConfigError(key, error.value, error.allowed) from None
        except (TypeError, ValueError) as error:
            allowed = "quantiles as in [[99.9, 2.0]], maximum, body, zero, constant and spike"
            raise ConfigError(f"task.regimes.{name}", dict(node), allowed) from error
    return made


def synthesize(regime: Regime, tokens: int, channels: int, seed: int = 0, draw: int = 0) -> Tensor:
    """A made SSM input, fp32 (tokens, channels).

    Args:
        regime: How its values are distributed.
        tokens: Rows.
        channels: Columns.
        seed: Of what belongs to the model: the scale of each channel, and which of them are constant.
        draw: Of the values themselves: calibration and test are draws of one seed.
    """
    own = torch.Generator().manual_seed(seed)
    scales = SCALE * torch.exp(SPREAD * torch.randn(channels, generator=own))
    order, constants = torch.randperm(channels, generator=own), torch.rand(channels, generator=own)
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + draw)
    normal = torch.randn(tokens, channels, generator=generator)
    values = _with_tail(F.silu(scales * (normal + SHIFT)), regime)
    ends = [round(share * channels) for share in (regime.zero, regime.constant, regime.spike)]
    zero, constant, spike, _ = torch.split(order, [*ends, channels - sum(ends)])
    values[:, zero] = 0.0
    low, high = CONSTANTS
    values[:, constant] = F.silu(low + (high - low) * constants[constant])
    peak = float(values.max()) if regime.maximum is None else regime.maximum
    values[:, spike] = 0.0
    places = torch.randint(0, tokens, (len(spike),), generator=generator)
    values[places, spike] = peak
    return values


def _with_tail(values: Tensor, regime: Regime) -> Tensor:
    """The largest values, in their order, at the quantiles of a regime; log-linear between these."""
    if regime.maximum is None:
        return values
    flat = values.reshape(-1)
    count = flat.numel()
    largest = flat.topk(max(1, math.ceil(count * (1 - regime.body / 100))))
    # The share of values that are larger; half a value is larger than the largest one.
    above = (torch.arange(len(largest.values), dtype=torch.float64) + 0.5) / count
    points = {1 - regime.body / 100: float(largest.values[-1])}
    points |= {1 - float(p) / 100: float(v) for p, v in regime.quantiles.items()}
    points[0.5 / count] = regime.maximum
    shares = sorted(points)
    moved = _interpolate(above.log(), [math.log(s) for s in shares], [math.log(points[s]) for s in shares])
    flat[largest.indices] = moved.exp().float()
    return flat.reshape(values.shape)


def _interpolate(x: Tensor, places: list[float], heights: list[float]) -> Tensor:
    """Straight lines between points, constant outside, fp64."""
    knots, values = torch.tensor(places, dtype=torch.float64), torch.tensor(heights, dtype=torch.float64)
    index = torch.searchsorted(knots, x.contiguous()).clamp(1, len(places) - 1)
    low, high = knots[index - 1], knots[index]
    fraction = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return values[index - 1] + fraction * (values[index] - values[index - 1])
