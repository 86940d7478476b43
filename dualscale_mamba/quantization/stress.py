"""What every format makes of made values: a code is fitted to one tensor, and codes another by the real operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.data.synthetic import Regime, synthesize
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import KNEE_WIDTH, LEVELS, TABLE_WIDTH, Code, FormatError, ScaleMode
from dualscale_mamba.granularity import Granularity
from dualscale_mamba.observers.base import Observer
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.progress import bar
from dualscale_mamba.quantization.site import SILU_FLOOR

CALIBRATION, TEST = 0, 1
SAME = "same"
# Nothing is told apart beyond it: the code reproduces the values.
EXACT_DB = 200.0
# A code is said to break where noise is more than a hundredth of the signal, where in some channel it is more than half
# of it (values that all become zero have as much noise as signal), where one value in a thousand is clipped, or where
# zero moves.
LEAST_DB, LEAST_CHANNEL_DB, MOST_CLIPPED = 20.0, 3.0, 1e-3
# Ties and sums in fp32 come this near to half a step.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Outcome:
    """How one code fitted to one regime codes another.

    Attributes:
        calibrated: Regime of the values that the code was fitted to; ``same`` is another draw of the tested one.
        regime: Of the values that it codes.
        granularity: Which channels share a code.
        format: File of the group ``scale_mode``.
        observer: Where the thresholds lie.
        sqnr_db: Signal to quantization noise, at most 200.
        clipped_share: Of the values, those that lose more than half the widest step of their code.
        codes_used: Different levels that occur, mean over the codes.
        levels: That the code has.
        zero_exact: Whether zero comes back as zero in every channel.
        zeros_moved: Share of the zeros among the values that do not.
        worst_channel: The channel with the least signal to noise; -1 where all are exact.
        worst_channel_db: That ratio; -200 where an all-zero channel gets noise.
        bits_per_value: Side data included.
        refused: Why there is no such code; empty where there is one.
    """

    calibrated: str
    regime: str
    granularity: str
    format: str
    observer: str
    sqnr_db: float = 0.0
    clipped_share: float = 0.0
    codes_used: float = 0.0
    levels: int = 0
    zero_exact: bool = True
    zeros_moved: float = 0.0
    worst_channel: int = -1
    worst_channel_db: float = EXACT_DB
    bits_per_value: float = 0.0
    refused: str = ""

    @property
    def breaks(self) -> list[str]:
        """In what ways the code breaks, in words; empty where it holds."""
        if self.refused:
            return ["refused"]
        found = []
        if self.sqnr_db < LEAST_DB:
            found.append("coarse")
        if self.clipped_share > MOST_CLIPPED:
            found.append("clips")
        if self.worst_channel_db < LEAST_CHANNEL_DB:
            found.append("loses a channel")
        if not self.zero_exact or self.zeros_moved > 0:
            found.append("moves zero")
        return found


COLUMNS = tuple(each.name for each in fields(Outcome))


@dataclass(frozen=True)
class Trials:
    """What is tried with what.

    Attributes:
        regimes: By name.
        calibrations: Names of regimes to calibrate on, or ``same``.
        granularities: By name; codes a tensor or a channel.
        modes: Formats by name.
        observers: By name.
        searching: Further ones, for one code a tensor: a search for every channel takes minutes.
        tokens: Rows of every tensor.
        channels: Columns.
        seed: Of what is made.
    """

    regimes: Mapping[str, Regime]
    calibrations: Sequence[str]
    granularities: Mapping[str, Granularity]
    modes: Mapping[str, ScaleMode]
    observers: Mapping[str, Observer]
    searching: Mapping[str, Observer]
    tokens: int
    channels: int
    seed: int = 0

    def values(self, regime: str, draw: int) -> Tensor:
        """A draw of a regime, fp32 (tokens, channels)."""
        return synthesize(self.regimes[regime], self.tokens, self.channels, self.seed, draw)

    def run(self, device: torch.device) -> Iterator[Outcome]:
        """Every format at every observer, fitted and tested; the values are coded on ``device``."""
        wanted = dict.fromkeys(
            regime if name == SAME else name for name in self.calibrations for regime in self.regimes
        )
        tests = {name: self.values(name, TEST).to(device) for name in self.regimes}
        for granularity_name, granularity in self.granularities.items():
            assignment = granularity.assignment(self.channels, None)
            for source in bar(list(wanted), f"stress, {granularity_name}", "regime"):
                histogram = Histogram(assignment)
                histogram.update(self.values(source, CALIBRATION))
                on = [
                    (name, regime)
                    for name in self.calibrations
                    for regime in self.regimes
                    if source == (regime if name == SAME else name)
                ]
                for mode, observer, code, refused in self._codes(histogram):
                    for name, regime in on:
                        about = (name, regime, granularity_name, mode, observer)
                        yield tested(about, code, tests[regime], refused)

    def _codes(self, histogram: Histogram) -> Iterator[tuple[str, str, Code | None, str]]:
        """The code of every format and observer, or why there is none."""
        observers = {**self.observers, **(self.searching if histogram.groups == 1 else {})}
        for name, mode in self.modes.items():
            for label, observer in observers.items():
                try:
                    code = observer.fit(histogram, SILU_FLOOR, mode).code.expanded(histogram.assignment)
                except (FormatError, ConfigError) as error:
                    yield name, label, None, str(error)
                else:
                    yield name, label, code, ""


def tested(about: tuple[str, str, str, str, str], code: Code | None, values: Tensor, refused: str) -> Outcome:
    """What a code does to values (tokens, channels).

    Args:
        about: The first five attributes of the outcome.
        code: One for the tensor or one a channel; None where there is none.
        values: fp32.
        refused: Why there is none.
    """
    if code is None:
        return Outcome(*about, refused=refused)
    code = code.to(values.device)
    ranks, decoded = coded(code, values)
    error = (decoded - values).abs()
    levels = code.levels()
    gap = levels.diff(dim=1).amax(1)
    clipped = (error > gap * (0.5 + ROUNDING)) & (decoded.abs() < values.abs())
    signal, noise = values.double().square().sum(0), error.double().square().sum(0)
    channels = _ratio(signal, noise)
    worst = int(channels.argmin())
    zeros, (_, zero) = values == 0, coded(code, torch.zeros_like(values[:1]))
    moved = (zeros & (decoded != 0)).sum() / zeros.sum().clamp_min(1)
    return Outcome(
        *about,
        sqnr_db=float(_ratio(signal.sum(), noise.sum())),
        clipped_share=float(clipped.float().mean()),
        codes_used=_used(ranks, code.groups),
        levels=torch.unique(levels[0]).numel(),
        zero_exact=not bool(zero.any()),
        zeros_moved=float(moved),
        worst_channel=-1 if float(channels[worst]) >= EXACT_DB else worst,
        worst_channel_db=float(channels[worst]),
        bits_per_value=code.bits_per_value,
    )


def coded(code: Code, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of the level that each value (tokens, channels) gets, int64, and the level: by the operators where they can.

    Codes with side data, and those that are only simulated, are rounded by their own definition.
    """
    if code.is_stored and code.rows.shape[1] in (KNEE_WIDTH, TABLE_WIDTH):
        codes = ops.encode(values, code.rows)
        return codes.long() + LEVELS // 2, ops.decode(codes, code.rows, torch.float32)
    return code.rounded(values)


def _ratio(signal: Tensor, noise: Tensor) -> Tensor:
    """In dB; what is exact has 200, noise without a signal -200."""
    found = 10.0 * torch.log10(signal / noise)
    found = torch.where(noise == 0, EXACT_DB, torch.where(signal == 0, -EXACT_DB, found))
    return found.clamp(-EXACT_DB, EXACT_DB)


def _used(ranks: Tensor, groups: int) -> float:
    """Different ranks, of each channel where channels have codes of their own; their mean."""
    if groups == 1:
        return float(torch.unique(ranks).numel())
    width = int(ranks.max()) + 1
    places = ranks + torch.arange(groups, device=ranks.device) * width
    return float(torch.unique(places).numel()) / groups
