"""What a format is: a code of at most 256 levels per group, that proves itself when it is made.

A *code* crosses the operator boundary as one fp32 tensor ``(rows, width)``; ``csrc/code.h`` is the same text in
C++. ``rows`` is 1 (per tensor) or the number of channels. The width names the family:

knee (8)
    ``[scale, inv_scale, zero, knee, gain, inv_gain, qmin, qmax]`` with ``gain = ratio - 1`` and
    ``inv_gain = 1 / ratio - 1``; decode(q) = scale * ((q - zero) + gain * max(q - knee, 0)).
table (512)
    256 non-decreasing levels, indexed by ``q + 128``, then 255 thresholds and one +inf;
    encode(x) = (number of thresholds not above x) - 128.

A third width, of codes with a selector beside them, is :mod:`dualscale_mamba.formats.pair`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

    from dualscale_mamba.observers.histogram import Histogram

KNEE_WIDTH = 8
TABLE_WIDTH = 512
LEVELS = 256
CODE_SPACE_LIMIT = float(2**20)
GAIN_SIGNIFICANT_BITS = 12
MAX_RATIO = 4096.0
# Smallest range that a group may have: an all-zero channel still needs a positive, finite scale.
MIN_RANGE = 1e-8


class FormatError(ValueError):
    """A format that breaks its own contract: not finite, not monotone, no zero, too many levels."""


@dataclass(frozen=True)
class Range:
    """What an observer tells a format, one entry a group, fp64 of shape ``(groups,)``.

    Attributes:
        floor: Lowest value that occurs (for a SiLU output its minimum, -0.2785), <= 0.
        inner: The threshold between ordinary values and outliers, > 0.
        outer: The largest magnitude seen, >= inner.
    """

    floor: Tensor
    inner: Tensor
    outer: Tensor

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.inner.numel()

    def clamped(self) -> Range:
        """The same with ``inner >= MIN_RANGE``, ``outer >= inner`` and ``floor <= 0``."""
        inner = self.inner.double().clamp_min(MIN_RANGE)
        return Range(self.floor.double().clamp_max(0.0), inner, torch.maximum(self.outer.double(), inner))


class SideData(NamedTuple):
    """What an activation stores beside its codes; see :mod:`dualscale_mamba.formats.pair`.

    Attributes:
        mask: uint8 ``(batch, length, ceil(channels / 8))``, or None where codes stand alone.
        outliers: int16 ``(batch, tiles of tokens, tiles of channels, 1 + entries)``, or None where the mask holds all.
    """

    mask: Tensor | None = None
    outliers: Tensor | None = None


NO_SIDE_DATA = SideData()


@dataclass(frozen=True)
class Code:
    """The code of one site: ``rows`` parameters and what they cost.

    Attributes:
        rows: fp32 ``(groups, 8 | 512)``.
        bits_per_value: Stored bits per value, side data included.
        has_knee: Whether consumers must compute the knee term (true for `control`, whose gain is 0).
    """

    rows: Tensor
    bits_per_value: float = 8.0
    has_knee: bool = False

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or self.rows.shape[1] not in (KNEE_WIDTH, TABLE_WIDTH):
            raise FormatError(f"code rows must be (groups, 8 or 512), got {tuple(self.rows.shape)}")
        if self.rows.dtype != torch.float32:
            raise FormatError(f"code rows must be float32, got {self.rows.dtype}")

    @property
    def is_stored(self) -> bool:
        """Whether kernels store its codes; otherwise values are only rounded (:meth:`rounded`)."""
        return True

    @property
    def is_knee(self) -> bool:
        """Whether the closed form applies (otherwise the code is a table)."""
        return self.rows.shape[1] == KNEE_WIDTH

    @property
    def groups(self) -> int:
        """1, or the number of channels."""
        return self.rows.shape[0]

    @property
    def is_scalar_knee(self) -> bool:
        """Whether it is one closed form for the whole tensor, which every operator can decode on load."""
        return self.is_knee and self.groups == 1

    def to(self, device: torch.device | str) -> Self:
        """The same code with its rows on ``device``."""
        return replace(self, rows=self.rows.to(device))

    def expanded(self, assignment: Tensor | None) -> Self:
        """One row a channel, as operators read it: ``assignment`` int64 (channels,) says which row each has."""
        if assignment is None:
            return self
        return replace(self, rows=self.rows[assignment.to(self.rows.device)].contiguous())

    def rounded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What values (..., C) become: the rank of each one's level, int64, and the level in the values' own type.

        Ranks begin at 0 and say which levels occur; levels of equal value may have different ranks.
        """
        from dualscale_mamba.ops import reference  # the operators read this module

        rows = self.rows.to(values.device)
        codes = reference.encode(values, rows)
        return codes.long() + LEVELS // 2, reference.decode(codes, rows, values.dtype)

    def side_data(self, batch: int, length: int, channels: int) -> SideData:
        """Room for what a tensor of these codes stores beside them; nothing here."""
        return NO_SIDE_DATA

    def side_bytes(self, batch: int, length: int, channels: int) -> float:
        """What such a tensor takes beyond 8 bits a value, in bytes, by formula."""
        return (self.bits_per_value - 8.0) / 8.0 * batch * length * channels

    def facts(self) -> dict[str, float | int | bool]:
        """All but the rows, in JSON's types; :func:`~dualscale_mamba.formats.stored.stored_code` reads them."""
        return {"has_knee": self.has_knee, "bits_per_value": self.bits_per_value}

    def levels(self) -> Tensor:
        """All decoded values in the order of the codes that can occur, fp32 ``(groups, <= 256)``."""
        if not self.is_knee:
            return self.rows[:, :LEVELS]
        codes = torch.arange(-128, 128, dtype=torch.float32, device=self.rows.device)
        scale, _, zero, knee, gain, _, qmin, qmax = self.rows[:, :, None].unbind(1)
        codes = torch.minimum(torch.maximum(codes[None], qmin), qmax)
        return scale * ((codes - zero) + gain * (codes - knee).clamp_min(0.0))

    def prove(self) -> Code:
        """Check the contract of an 8-bit format and return self.

        Raises:
            FormatError: Levels are not finite or not monotone, zero is missing, or rows are unusable.
        """
        levels = self.levels()
        if not torch.isfinite(levels).all():
            raise FormatError("a level is not finite")
        if (levels.diff(dim=1) < 0).any():
            raise FormatError("levels are not monotone")
        if not (levels == 0).any(dim=1).all():
            raise FormatError("zero is not exactly representable")
        if self.is_knee and not ((self.rows[:, :2] > 0) & torch.isfinite(self.rows[:, :2])).all():
            raise FormatError("a scale is not positive and finite")
        return self


@runtime_checkable
class ScaleMode(Protocol):
    """How codes are spent inside and outside the threshold: one frozen dataclass a file."""

    @property
    def needs_floor(self) -> bool:
        """Whether the mode only makes sense where values have a floor (a SiLU output)."""
        ...

    def fit(self, range_: Range, histogram: Histogram | None = None) -> Code:
        """The code for ``range_`` (one row a group); some modes also read the histogram."""
        ...


@runtime_checkable
class Searchable(Protocol):
    """A scale mode with a split of its codes that a searching observer may vary."""

    def variants(self) -> list[ScaleMode]:
        """The modes that may be tried in its place (itself included)."""
        ...


def check_headroom(headroom: float) -> None:
    """Refuse a coarse part that does not reach the largest value seen, or wastes its codes far beyond it.

    Raises:
        ConfigError: Outside [1, 16].
    """
    if not 1.0 <= headroom <= 16.0:
        raise ConfigError("scale_mode.headroom", headroom, "a number in [1, 16]")


def round_gain(gain: Tensor) -> Tensor:
    """Round to 12 significant bits, so that gain * m (m <= 255) is exact in fp32."""
    mantissa, exponent = torch.frexp(gain.double())
    steps = 2.0**GAIN_SIGNIFICANT_BITS
    return torch.ldexp(torch.round(mantissa * steps) / steps, exponent)


def knee_code(
    scale: Tensor,
    zero: Tensor,
    knee: Tensor,
    ratio: Tensor,
    *,
    qmin: int = -128,
    has_knee: bool = True,
) -> Code:
    """Assemble and prove a knee code from fp64 parameters, each ``(groups,)``.

    Args:
        scale: Fine step, > 0.
        zero: Code that decodes to zero (integer valued).
        knee: Last code of the fine part (integer valued).
        ratio: Coarse step over fine step, in [1, 4096].
        qmin: Lowest code; -127 for a symmetric code.
        has_knee: Whether consumers compute the knee term.
    """
    gain = round_gain(ratio.clamp(1.0, MAX_RATIO) - 1.0).float()
    scale32 = scale.float().clamp_min(torch.finfo(torch.float32).tiny * 2**24)
    columns = [
        scale32,
        1.0 / scale32,
        zero.float(),
        knee.float(),
        gain,
        1.0 / (gain + 1.0) - 1.0,
        torch.full_like(scale32, float(qmin)),
        torch.full_like(scale32, 127.0),
    ]
    return Code(torch.stack(columns, dim=1), has_knee=has_knee).prove()


def table_code(levels: Tensor) -> Code:
    """Assemble and prove a table code from fp64 sorted levels ``(groups, n <= 256)``.

    Values are encoded to the nearest level; a tie goes to the level of larger magnitude, as everywhere.

    Raises:
        FormatError: More than 256 levels, or the contract of :meth:`Code.prove` is broken.
    """
    if levels.shape[1] > LEVELS:
        raise FormatError(f"an 8-bit format has at most 256 levels, this one has {levels.shape[1]}")
    padding = LEVELS - levels.shape[1]
    levels = torch.cat([levels, levels[:, -1:].expand(-1, padding)], dim=1).float()
    middle = ((levels[:, :-1].double() + levels[:, 1:].double()) / 2).float()
    # encode asks x >= threshold; a negative tie must stay below, so its threshold is the next float up.
    above = torch.nextafter(middle, torch.full_like(middle, float("inf")))
    thresholds = torch.where(middle < 0, above, middle)
    infinite = torch.full_like(middle, float("inf"))
    thresholds = torch.where(levels[:, 1:] > levels[:, :-1], thresholds, infinite)
    thresholds = thresholds.flip(1).cummin(1).values.flip(1)  # duplicates inside: skip them, stay sorted
    return Code(torch.cat([levels, thresholds, infinite[:, :1]], dim=1).contiguous()).prove()
