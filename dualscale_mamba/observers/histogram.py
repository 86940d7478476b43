"""The statistic every observer shares: a histogram with fixed edges, so that any two can be merged exactly.

Edges are the floating-point grid itself: each octave of magnitude is cut into ``2**resolution`` equal bins, so no
range has to be known in advance, the order of updates does not matter, and counts in the tails are exact. The
true minimum and maximum are kept beside the counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Code

MIN_EXPONENT = -24
MAX_EXPONENT = 16
PER_TENSOR_RESOLUTION = 7
PER_CHANNEL_RESOLUTION = 4
# More groups than this are counted at the lower resolution, for the sake of memory.
FEW_GROUPS = 32
_FLOAT_BIAS = 127
_FLOAT_MANTISSA = 23


@dataclass(frozen=True)
class Coding:
    """How a code fits counted values.

    Attributes:
        sqnr_db: Signal-to-quantization-noise ratio over all groups.
        squared_error: Mean over all values.
        codes_used: Different codes that the values reach, mean over groups.
        clipped_share: Of the values, beyond the first or the last level, to a bin's width.
    """

    sqnr_db: float
    squared_error: float
    codes_used: float
    clipped_share: float


class Histogram:
    """Counts of a site's values over a calibration set.

    Args:
        assignment: int64 ``(channels,)``, the group of each channel of what is observed (its last dimension);
            None counts everything together.
        resolution: log2 of the bins per octave: 7 resolves magnitudes to 0.4 %.

    Attributes:
        counts: int64 ``(groups, bins)``, from the most negative bin through zero to the most positive.
        minimum, maximum: fp32 ``(groups,)``, the true extremes (0 before any update).
        skipped: Number of NaNs and infinities that were left out.
    """

    def __init__(self, assignment: Tensor | None = None, resolution: int | None = None) -> None:
        groups = 1 if assignment is None else int(assignment.max()) + 1
        if resolution is None:
            resolution = PER_TENSOR_RESOLUTION if groups <= FEW_GROUPS else PER_CHANNEL_RESOLUTION
        self.assignment = assignment
        self.groups = groups
        self.resolution = resolution
        self.counts = torch.zeros(groups, 2 * self.side + 1, dtype=torch.int64)
        self.minimum = torch.zeros(groups)
        self.maximum = torch.zeros(groups)
        self.skipped = 0

    @property
    def side(self) -> int:
        """Bins on each side of zero."""
        return int((MAX_EXPONENT - MIN_EXPONENT) << self.resolution)

    def update(self, values: Tensor) -> None:
        """Count ``values`` (..., channels); non-finite values are left out and counted in ``skipped``.

        Raises:
            ValueError: The last dimension is not the number of channels that have a group.
        """
        channels = 1 if self.assignment is None else self.assignment.numel()
        if self.assignment is not None and values.shape[-1] != channels:
            raise ValueError(f"expected {channels} channels, got {values.shape[-1]}")
        values = values.detach().float().reshape(-1, channels)
        finite = torch.isfinite(values)
        if not finite.all():
            self.skipped += int((~finite).sum())
            values = torch.where(finite, values, 0.0)
        if values.shape[0] == 0:
            return
        bins = self.counts.shape[1]
        index = self._bin(values)
        if self.assignment is not None:
            index = index + self.assignment.to(index.device) * bins
        counted = torch.bincount(index.reshape(-1), minlength=self.groups * bins)
        self.counts += counted.reshape(self.groups, bins).cpu()
        owner = torch.zeros(1, dtype=torch.int64) if self.assignment is None else self.assignment
        self.minimum = self.minimum.scatter_reduce(0, owner, values.amin(0).cpu(), "amin")
        self.maximum = self.maximum.scatter_reduce(0, owner, values.amax(0).cpu(), "amax")

    def _bin(self, values: Tensor) -> Tensor:
        bits = values.contiguous().view(torch.int32)
        magnitude = (bits & 0x7FFFFFFF) >> (_FLOAT_MANTISSA - self.resolution)
        rank = (magnitude - ((MIN_EXPONENT + _FLOAT_BIAS) << self.resolution) + 1).clamp(0, self.side)
        return (torch.where(bits < 0, -rank, rank) + self.side).long()

    def merge(self, other: Histogram) -> None:
        """Add another histogram of the same shape; the result does not depend on the order of merging.

        Raises:
            ValueError: Groups or resolution differ.
        """
        if (self.groups, self.resolution) != (other.groups, other.resolution):
            raise ValueError("histograms of different groups or resolution cannot be merged")
        self.counts += other.counts
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.skipped += other.skipped

    def merged(self) -> Histogram:
        """All groups as one, at the same resolution."""
        made = Histogram(resolution=self.resolution)
        made.counts = self.counts.sum(0, keepdim=True)
        made.minimum, made.maximum = self.minimum.amin(0, keepdim=True), self.maximum.amax(0, keepdim=True)
        made.skipped = self.skipped
        return made

    @property
    def total(self) -> Tensor:
        """Values counted, int64 ``(groups,)``."""
        return self.counts.sum(1)

    @property
    def absmax(self) -> Tensor:
        """True largest magnitude, fp64 ``(groups,)``."""
        return torch.maximum(self.maximum, -self.minimum).double()

    def edges(self) -> Tensor:
        """Magnitudes at the lower edge of each bin away from zero, and the last upper edge: fp64 ``(side + 1,)``."""
        rank = torch.arange(self.side + 1, dtype=torch.float64)
        per_octave = float(1 << self.resolution)
        octave = torch.floor(rank / per_octave)
        return torch.exp2(MIN_EXPONENT + octave) * (1.0 + (rank - octave * per_octave) / per_octave)

    def magnitude_counts(self) -> Tensor:
        """Counts by magnitude, int64 ``(groups, side + 1)``; column 0 is zero."""
        positive = self.counts[:, self.side :]
        negative = self.counts[:, : self.side + 1].flip(1)
        both = positive + negative
        both[:, 0] = self.counts[:, self.side]
        return both

    def quantile(self, percent: float) -> Tensor:
        """Magnitude below which ``percent`` % of all values lie, fp64 ``(groups,)``.

        Two-sided: over |value|, pooled over the whole calibration set. Interpolated inside a bin and never above
        the true maximum, which 100 returns.
        """
        counts = self.magnitude_counts().double()
        if percent >= 100.0:
            return self.absmax
        target = counts.sum(1, keepdim=True) * (percent / 100.0)
        cumulative = counts.cumsum(1)
        index = torch.searchsorted(cumulative, target).clamp_max(counts.shape[1] - 1)
        inside = counts.gather(1, index).clamp_min(1.0)
        fraction = ((target - (cumulative.gather(1, index) - inside)) / inside).clamp(0.0, 1.0)
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), self.edges()])
        low, high = edges[index], edges[(index + 1).clamp_max(edges.numel() - 1)]
        value = torch.where(index == 0, torch.zeros_like(low), low + fraction * (high - low))
        return torch.minimum(value[:, 0], self.absmax)

    def share_above(self, threshold: Tensor) -> Tensor:
        """Share of values whose magnitude is above ``threshold`` (groups,), to a bin's width: fp64 ``(groups,)``."""
        counts = self.magnitude_counts().double()
        edges = self.edges()[:-1]
        above = counts[:, 1:] * (edges[None] >= threshold.double()[:, None])
        return above.sum(1) / counts.sum(1).clamp_min(1.0)

    def points(self, inside: int = 1) -> tuple[Tensor, Tensor]:
        """Support points and their weights, restricted to bins that occur in some group.

        Args:
            inside: Points spread evenly inside each bin.

        Returns:
            values fp32 ``(points,)``, ascending, and weights fp64 ``(groups, points)``.
        """
        occupied = torch.nonzero((self.counts > 0).any(0)).flatten()
        rank = occupied - self.side
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), self.edges()])
        magnitude = rank.abs()
        low = torch.where(rank == 0, 0.0, edges[magnitude])
        width = torch.where(rank == 0, 0.0, edges[(magnitude + 1).clamp_max(edges.numel() - 1)] - low)
        fractions = (torch.arange(inside, dtype=torch.float64) + 0.5) / inside
        spread = low[:, None] + width[:, None] * fractions
        values = torch.where(rank[:, None] < 0, -spread.flip(1), spread)
        weights = (self.counts[:, occupied].double() / inside).repeat_interleave(inside, 1)
        return values.reshape(-1).float(), weights

    def _coded(self, code: Code, inside: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values, weights = self.points(inside)
        values = values[:, None].expand(-1, self.groups).clamp(self.minimum, self.maximum)
        return values, weights, *code.rounded(values)

    def squared_error(self, code: Code, inside: int = 4) -> Tensor:
        """Mean squared error of coding the counted values, fp64 ``(groups,)``."""
        values, weights, _, decoded = self._coded(code, inside)
        error = (decoded.double() - values.double()).square().T
        return (error * weights).sum(1) / weights.sum(1).clamp_min(1.0)

    def quality(self, code: Code, inside: int = 4) -> tuple[float, float]:
        """How a code fits the counted values.

        Returns:
            The signal-to-quantization-noise ratio over all groups in dB, and the number of different codes that the
            values reach, mean over groups.
        """
        found = self.coding(code, inside)
        return found.sqnr_db, found.codes_used

    def coding(self, code: Code, inside: int = 4) -> Coding:
        """All that the counts say about a code."""
        values, weights, ranks, decoded = self._coded(code, inside)
        noise = ((decoded.double() - values.double()).square().T * weights).sum()
        signal = (values.double().square().T * weights).sum()
        total = weights.sum().clamp_min(1.0)
        levels = code.levels().cpu()
        used = torch.zeros(self.groups, max(256, levels.shape[1]), dtype=torch.bool)
        group, point = torch.nonzero(weights > 0, as_tuple=True)
        used[group, ranks[point, group]] = True
        outside = (values < levels.amin(1)) | (values > levels.amax(1))
        return Coding(
            float(10.0 * torch.log10(signal.clamp_min(1e-30) / noise.clamp_min(1e-30))),
            float(noise / total),
            float(used.sum(1).double().mean()),
            float((weights * outside.T).sum() / total),
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`from_state` rebuilds the histogram."""
        owner = torch.zeros(0, dtype=torch.int64) if self.assignment is None else self.assignment
        extra = torch.tensor([self.resolution, self.skipped])
        return {
            "counts": self.counts,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "assignment": owner,
            "meta": extra,
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Histogram:
        """Inverse of :meth:`state`."""
        resolution, skipped = (int(v) for v in state["meta"])
        made = cls(state["assignment"] if state["assignment"].numel() else None, resolution)
        made.counts, made.minimum, made.maximum = state["counts"], state["minimum"], state["maximum"]
        made.skipped = skipped
        return made
