"""How a site's values, and the error of its codes, change along a sequence: one histogram an octave of positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualscale_mamba.formats.base import Code
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.observers.histogram import PER_TENSOR_RESOLUTION, Histogram
from dualscale_mamba.quantization.observation import observe

PERCENTILES = (99.0, 99.9)


def octaves(length: int) -> Tensor:
    """The octave of each position, int64 ``(length,)``: 0, then 1, then 2 and 3, then 4 to 7, ..."""
    return torch.floor(torch.log2(torch.arange(length).clamp_min(1).double())).long() + (
        torch.arange(length) > 0
    )


class ByPosition:
    """Counts of a site's values in each octave of positions; a statistic of :class:`Site`.

    Args:
        length: Of the sequences.

    Attributes:
        histogram: A group an octave.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.histogram = Histogram(octaves(length), PER_TENSOR_RESOLUTION)

    def update(self, values: Tensor) -> None:
        """Count values (..., length, channels)."""
        self.histogram.update(values.reshape(-1, self.length, values.shape[-1]).transpose(1, 2))


@dataclass(frozen=True)
class Stretch:
    """What the positions of one octave hold.

    Attributes:
        site: Full name.
        first: Position, from 0.
        last: Position.
        percentiles: Magnitudes at ``PERCENTILES``.
        absmax: Largest magnitude.
        outlier_share: Of the values, beyond the threshold of the whole.
        sqnr_db: Signal to noise of each code by its name.
    """

    site: str
    first: int
    last: int
    percentiles: tuple[float, ...]
    absmax: float
    outlier_share: float
    sqnr_db: Mapping[str, float]


def count_positions(model: MambaLM, batches: Sequence[Tensor], sites: Sequence[str]) -> dict[str, ByPosition]:
    """Feed ``batches`` of token ids (B, L) to the unquantized, prepared model.

    Args:
        model: Its sites are off.
        batches: Of equal length.
        sites: Full names.
    """
    counted = {name: ByPosition(batches[0].shape[1]) for name in sites}
    observe(model, batches, counted, "positions")
    return counted


def along(
    counted: Mapping[str, ByPosition],
    threshold: Mapping[str, Tensor],
    codes: Mapping[str, Mapping[str, Code]],
) -> Iterator[Stretch]:
    """Every octave of every site.

    Args:
        counted: By full name.
        threshold: Of each site, ``(1,)``.
        codes: Of each site by name, one code for the tensor.
    """
    for site, one in counted.items():
        histogram, place = one.histogram, octaves(one.length)
        quantiles = [histogram.quantile(percent) for percent in PERCENTILES]
        shares = histogram.share_above(threshold[site].expand(histogram.groups))
        signal = _signal(histogram)
        ratios = {name: _ratio(signal, histogram.squared_error(code)) for name, code in codes[site].items()}
        for index in range(histogram.groups):
            positions = (place == index).nonzero().flatten()
            yield Stretch(
                site, int(positions[0]), int(positions[-1]), tuple(float(q[index]) for q in quantiles),
                float(histogram.absmax[index]), float(shares[index]),
                {name: float(ratio[index]) for name, ratio in ratios.items()},
            )  # fmt: skip


def _signal(histogram: Histogram) -> Tensor:
    """Mean square of the values of each group, fp64."""
    values, weights = histogram.points(inside=4)
    return (values.double().square() * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def _ratio(signal: Tensor, noise: Tensor) -> Tensor:
    return 10.0 * torch.log10(signal.clamp_min(1e-30) / noise.clamp_min(1e-30))
