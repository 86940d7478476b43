"""How a mixer keeps its state between calls: as values, or as codes with what they need beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import KNEE_WIDTH
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.states import residual
from dualscale_mamba.states.counter import uniforms

STORAGES = {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
SCALES = ("static", "dynamic")
NEAREST, STOCHASTIC, FEEDBACK = ROUNDINGS = ("nearest", "stochastic", "error_feedback")
SCALE_TYPE = torch.bfloat16  # of a scale that is computed at each step: fp32's range in two bytes
# A state of zeros still needs a positive scale.
SMALLEST_SCALE = 2.0**-100


@dataclass(frozen=True)
class Coding:
    """How a state is coded; with the tensors of a :class:`StateStore` this is all there is to know.

    Attributes:
        storage: A key of :data:`STORAGES`: what lies in the cache.
        scale: ``static`` (a constant a channel) or ``dynamic`` (from the state's own maximum, stored beside it).
        rounding: ``nearest``, ``stochastic`` or ``error_feedback``.
        seed: Of stochastic rounding.
        residual_bits: Of a residual of error feedback, 4 or 8.
        reach: A dynamic scale is the channel's largest magnitude times this.
        lowest: Lowest code of the unit code, -127 or -128.
    """

    storage: str = "int8"
    scale: str = "dynamic"
    rounding: str = NEAREST
    seed: int = 0
    residual_bits: int = 4
    reach: float = 1.0
    lowest: int = -127

    def bits_per_value(self, states: int) -> float:
        """Stored bits of a value, side data of each sequence included but for its counter.

        Args:
            states: N, the values that share a scale.
        """
        scale = 8 * SCALE_TYPE.itemsize / states if self.scale == "dynamic" else 0.0
        return 8.0 + scale + (self.residual_bits if self.rounding == FEEDBACK else 0)

    def bytes_of(self, channels: int, states: int) -> int:
        """Bytes of one layer's state of one sequence, the counter of stochastic rounding included.

        Args:
            channels: E, or H P.
            states: N.
        """
        counter = torch.int32.itemsize if self.rounding == STOCHASTIC else 0
        return round(channels * states * self.bits_per_value(states) / 8) + counter


class StateStore(nn.Module):
    """One state's place between calls; off by default, and then the values themselves lie there.

    A value h of channel c is kept as the code of h / scale of c, by one unit code for the layer. Codes are made by
    ``encode`` and read by ``decode``, and all else is elementwise in fp32 or in integers, so that the CPU, CUDA and the
    reference agree bitwise. Under error feedback what rounding has left over waits beside the codes and is added
    before the next rounding; a step reads the codes alone.

    Attributes:
        coding: How values are coded, or None.
        rows: The unit code, fp32 (1, 8 | 512).
        scale: fp32, a constant for each channel, ``(E,)`` or ``(H, P)``; None where scales are dynamic.
        layer: Number of the layer.
    """

    rows: Tensor | None
    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.coding: Coding | None = None
        self.layer = 0
        self.register_buffer("rows", None)
        self.register_buffer("scale", None)

    @property
    def is_on(self) -> bool:
        """Whether codes are kept."""
        return self.coding is not None

    def turn_on(self, coding: Coding, rows: Tensor, scale: Tensor | None, layer: int) -> None:
        """Keep codes from now on; caches that exist are of no use any more.

        Args:
            coding: How.
            rows: fp32 (1, 8 | 512), levels of the normalized values; of a float8 storage the float's own.
            scale: fp32, a positive number a channel, or None where scales are dynamic.
            layer: Number of the layer.
        """
        self.coding, self.rows, self.scale, self.layer = coding, rows, scale, layer

    def turn_off(self) -> None:
        """Keep values."""
        self.coding = self.rows = self.scale = None

    def facts(self) -> dict[str, Any] | None:
        """What :meth:`reserve` needs; None where the store is off."""
        if self.coding is None or self.rows is None:
            return None
        channels = None if self.scale is None else list(self.scale.shape)
        return {**asdict(self.coding), "width": self.rows.shape[1], "channels": channels}

    def reserve(self, facts: Mapping[str, Any], layer: int) -> None:
        """Turn on with empty tensors, where a checkpoint's are put later.

        Args:
            facts: From :meth:`facts`.
            layer: Number of the layer.

        Raises:
            KeyError: A fact is missing.
            TypeError: A fact is unknown.
        """
        own = dict(facts)
        rows, channels = torch.empty(1, int(own.pop("width")), device="meta"), own.pop("channels")
        scale = None if channels is None else torch.empty(channels, device="meta")
        self.turn_on(Coding(**own), rows, scale, layer)

    def follow(self, other: StateStore) -> None:
        """Do as another one does, on torch's ``meta`` device."""
        if other.coding is not None and other.rows is not None:
            scale = None if other.scale is None else other.scale.to("meta")
            self.turn_on(other.coding, other.rows.to("meta"), scale, other.layer)

    def empty(self, conv: Tensor, h: Tensor) -> LayerCache:
        """The cache of a state of zeros.

        Args:
            conv: Inputs of the convolution.
            h: Zeros ``(B, ..., N)``.

        Raises:
            ConfigError: Codes cannot be kept of a state of this type or size.
        """
        if self.coding is None:
            return LayerCache(conv, h)
        assert self.rows is not None
        if h.dtype != torch.float32:
            raise ConfigError("model.state_dtype", h.dtype, "float32 where the state is encoded")
        ranks = ops.encode(h, self.rows)
        made = LayerCache(conv, self._stored(ranks))
        if self.scale is None:
            made.scale = h.new_zeros(h.shape[:-1], dtype=SCALE_TYPE)
        if self.coding.rounding == FEEDBACK:
            if h.shape[-1] % 2:
                raise ConfigError(
                    "state.rounding", FEEDBACK, "nearest or stochastic where d_state is not even"
                )
            nothing = torch.zeros_like(h, dtype=torch.int8)
            made.residual = residual.packed(nothing, self.coding.residual_bits)
        if self.coding.rounding == STOCHASTIC:
            made.count = h.new_zeros(h.shape[0], dtype=torch.int32)
        return made

    def values(self, cache: LayerCache) -> Tensor:
        """h, fp32 ``(B, ..., N)``: a new tensor where codes are kept, else the very one in the cache."""
        return cache.ssm if self.coding is None else self._levels(cache) * self._scale_of(cache)

    def keep(self, cache: LayerCache, h: Tensor, tokens: int) -> None:
        """Put a state into the cache.

        Args:
            cache: Of this layer.
            h: fp32 ``(B, ..., N)``; where values are kept it may be the cache's own tensor.
            tokens: That were read since the last time.
        """
        if self.coding is None:
            if h is not cache.ssm:
                cache.ssm.copy_(h)
            return
        assert self.rows is not None
        if cache.residual is not None:
            h = h + self._rest(cache)
        if cache.scale is not None:
            largest = (h.abs().amax(-1) * self.coding.reach).clamp_min(SMALLEST_SCALE)
            cache.scale.copy_(largest)
        y = h / self._scale_of(cache)
        ranks = ops.encode(y, self.rows)
        if cache.count is not None:
            cache.count.add_(tokens)
            ranks = self._rounded_by_chance(y, ranks, cache.count)
        elif cache.residual is not None:
            bits = self.coding.residual_bits
            kept = ops.decode(ranks, self.rows)
            codes = residual.coded(y - kept, self._gap(ranks, kept, y - kept), bits)
            cache.residual.copy_(residual.packed(codes, bits))
        cache.ssm.copy_(self._stored(ranks))

    def _stored(self, ranks: Tensor) -> Tensor:
        """Codes as they lie in the cache; a float8 is its own code."""
        assert self.coding is not None
        assert self.rows is not None
        if self.coding.storage == "int8":
            return ranks
        # Exact: the levels are the float's own values.
        return ops.decode(ranks, self.rows).to(STORAGES[self.coding.storage])

    def _levels(self, cache: LayerCache) -> Tensor:
        """The stored values before their scale, fp32."""
        assert self.coding is not None
        assert self.rows is not None
        return ops.decode(cache.ssm, self.rows) if self.coding.storage == "int8" else cache.ssm.float()

    def _scale_of(self, cache: LayerCache) -> Tensor:
        scale = self.scale if cache.scale is None else cache.scale.float()
        assert scale is not None
        return scale[..., None]

    def _neighbours(self, ranks: Tensor, direction: Tensor) -> Tensor:
        """The next code in the direction of a number's sign; the same code for 0, NaN and beyond the last."""
        assert self.coding is not None
        step = (direction > 0).to(torch.int16) - (direction < 0).to(torch.int16)
        return (ranks.to(torch.int16) + step).clamp(self.coding.lowest, 127).to(torch.int8)

    def _gap(self, ranks: Tensor, kept: Tensor, direction: Tensor) -> Tensor:
        """Distance of the next level in that direction, fp32, not negative."""
        assert self.rows is not None
        return (ops.decode(self._neighbours(ranks, direction), self.rows) - kept).abs()

    def _rounded_by_chance(self, y: Tensor, ranks: Tensor, position: Tensor) -> Tensor:
        """The nearest code, or its neighbour on the other side of y with the probability that makes the mean y."""
        assert self.coding is not None
        assert self.rows is not None
        kept = ops.decode(ranks, self.rows)
        rest = y - kept
        other = self._neighbours(ranks, rest)
        gap = (ops.decode(other, self.rows) - kept).abs()
        chance = uniforms(self.coding.seed, self.layer, position, y[0].numel()).view_as(y)
        return torch.where(chance * gap < rest.abs(), other, ranks)

    def _rest(self, cache: LayerCache) -> Tensor:
        """What the last rounding has left over, in the unit of h."""
        assert self.coding is not None
        assert self.rows is not None
        assert cache.residual is not None
        bits = self.coding.residual_bits
        codes, kept = residual.unpacked(cache.residual, bits), self._levels(cache)
        gap = self._gap(ops.encode(kept, self.rows), kept, codes)
        return codes.float() * (1.0 / (2 * residual.largest(bits))) * gap * self._scale_of(cache)


def lowest_code(rows: Tensor) -> int:
    """The lowest code of a unit code: a knee's own, or the first level of a table."""
    return int(rows[0, 6]) if rows.shape[1] == KNEE_WIDTH else -128
