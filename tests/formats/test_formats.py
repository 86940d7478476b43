"""Every format keeps its contract, whatever the range: the YAML files are the cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import FormatError, Range, ScaleMode, knee_code, round_gain, table_code
from dualscale_mamba.formats.control import Control
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_mask import DualMask
from dualscale_mamba.formats.dual_sparse import DualSparse
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.float8 import Float8
from dualscale_mamba.formats.lloyd_max import LloydMax
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.soft_edge import SoftEdge
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.ops import reference

CONF = Path(__file__).resolve().parents[2] / "conf" / "scale_mode"
FILES = sorted(path for path in CONF.glob("*.yaml") if path.stem != "fp16")
WITH_SIDE_DATA = ("dual_mask", "dual_sparse")


def load(path: Path) -> ScaleMode:
    mode: ScaleMode = instantiate(OmegaConf.load(path))
    return mode


def silu_values(seed: int = 0, tail: float = 6.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.nn.functional.silu(torch.randn(4096, 16, generator=generator))
    rare = torch.rand(values.shape, generator=generator) < 0.002
    return torch.where(rare, values.abs() * tail, values)


def range_of(values: torch.Tensor, percent: float = 99.0) -> tuple[Range, Histogram]:
    histogram = Histogram()
    histogram.update(values)
    floor = torch.full((1,), -0.2785, dtype=torch.float64)
    return Range(floor, histogram.quantile(percent), histogram.absmax), histogram


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem not in WITH_SIDE_DATA], ids=lambda path: path.stem
)
def test_every_scale_mode_is_an_eight_bit_format(path: Path) -> None:
    range_, histogram = range_of(silu_values())
    code = load(path).fit(range_, histogram)
    levels = torch.unique(code.levels())
    assert levels.numel() <= 256
    assert torch.isfinite(levels).all()
    assert (levels == 0).any()
    assert 8 <= code.bits_per_value <= 8 + 1 / int(histogram.total)  # a selector a channel, if any
    every_code = torch.arange(-128, 128, dtype=torch.int8)
    decoded = reference.decode(every_code, code.rows, torch.float32)
    assert torch.unique(decoded).numel() <= 256
    assert decoded[every_code == reference.encode(torch.zeros(1), code.rows)].abs().max() == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_scale_mode_encodes_to_the_nearest_level(path: Path) -> None:
    values = silu_values(1).flatten()[:4000]
    range_, histogram = range_of(values)
    code = load(path).fit(range_, histogram)
    ranks, decoded = code.rounded(values)
    assert torch.equal(ranks[values.argsort()], ranks.sort().values)
    distance = (values[:, None].double() - torch.unique(code.levels()).double()).abs().amin(1)
    assert ((values - decoded).abs().double() <= distance * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_scale_mode_fits_per_channel_and_degenerate_channels(path: Path) -> None:
    values = silu_values(2)
    values[:, 0] = 0.0
    values[:, 1] = 3.0
    values[:, 2] = -0.2
    values[:, 3] = 0.0
    values[0, 3] = 50.0
    histogram = Histogram(torch.arange(values.shape[1]))
    histogram.update(values)
    floor = torch.full((16,), -0.2785, dtype=torch.float64)
    range_ = Range(floor, histogram.quantile(99.0), histogram.absmax)
    code = load(path).fit(range_, histogram).prove()
    assert code.groups == 16
    assert torch.isfinite(code.rounded(values)[1]).all()


positive = st.floats(1e-6, 1e6, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(inner=positive, stretch=st.floats(1.0, 1e4), floor=st.floats(-1e3, 0.0), fine=st.integers(16, 240))
def test_dual_is_proved_for_any_range(inner: float, stretch: float, floor: float, fine: int) -> None:
    one = torch.ones(1, dtype=torch.float64)
    code = Dual(fine_codes=fine).fit(Range(one * floor, one * inner, one * inner * stretch))
    levels = code.levels()[0].double()
    scale, ratio = float(code.rows[0, 0]), float(code.rows[0, 4]) + 1
    assert 1.0 <= ratio <= 4096.0
    assert levels[0] <= floor + scale  # zero lies on an integer code, so the ends may miss by a step
    if ratio < 4000:  # the cap is far beyond any measured tail
        assert levels[-1] >= inner * stretch - scale * ratio


def test_dual_spends_fine_codes_inside_and_coarse_codes_outside() -> None:
    range_, _ = range_of(silu_values(tail=20.0))
    code = Dual(fine_codes=160).fit(range_)
    scale, _, zero, knee, gain, _, _, _ = code.rows[0].tolist()
    assert knee == -128 + 159
    assert scale * (knee - zero) == pytest.approx(float(range_.inner), rel=0.02)
    assert scale * ((127 - zero) + gain * (127 - knee)) == pytest.approx(1.25 * float(range_.outer), rel=0.01)
    assert gain > 0


def test_dual_without_outliers_is_affine() -> None:
    one = torch.ones(1, dtype=torch.float64)
    code = Dual(headroom=1.0).fit(Range(-0.2785 * one, 2 * one, 2 * one))
    assert code.rows[0, 4] == 0.0


@settings(max_examples=100, deadline=None)
@given(inner=positive, knee=st.integers(-127, 126), seed=st.integers(0, 2**31))
def test_control_equals_single_bitwise_at_any_knee(inner: float, knee: int, seed: int) -> None:
    one = torch.ones(1, dtype=torch.float64)
    range_ = Range(-one, one * inner, one * inner * 2)
    single, control = Single().fit(range_), Control(knee=knee).fit(range_)
    x = torch.randn(4096, generator=torch.Generator().manual_seed(seed)) * inner * 2
    codes = reference.encode(x, single.rows)
    assert torch.equal(codes, reference.encode(x, control.rows))
    decoded = [reference.decode(codes, c.rows, torch.float32) for c in (single, control)]
    assert torch.equal(decoded[0].view(torch.int32), decoded[1].view(torch.int32))


@settings(max_examples=100, deadline=None)
@given(scale=positive, seed=st.integers(0, 2**31))
def test_single_equals_plain_int8_bitwise(scale: float, seed: int) -> None:
    one = torch.ones(1, dtype=torch.float64)
    code = Single().fit(Range(-one, one * scale * 127, one * scale * 127))
    step = code.rows[0, 0]
    x = torch.randn(4096, generator=torch.Generator().manual_seed(seed)) * scale * 60
    t = x * (1.0 / step)
    plain = torch.where(t >= 0, torch.floor(t.double() + 0.5), torch.ceil(t.double() - 0.5)).clamp(-127, 127)
    codes = reference.encode(x, code.rows)
    assert torch.equal(codes, plain.to(torch.int8))
    assert torch.equal(reference.decode(codes, code.rows, torch.float32), step * plain.float())


@given(gain=st.floats(0, 4095))
def test_gain_times_any_code_distance_is_exact(gain: float) -> None:
    rounded = round_gain(torch.tensor([gain])).float()
    distance = torch.arange(0, 256, dtype=torch.float32)
    assert torch.equal((rounded * distance).double(), rounded.double() * distance.double())


def test_ties_go_away_from_zero_in_both_families() -> None:
    knee = Single().fit(Range(-torch.ones(1), 127 * torch.ones(1), 127 * torch.ones(1)))
    table = table_code(torch.arange(-127, 128, dtype=torch.float64)[None])
    x = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5, 0.49999997, -0.49999997])
    expected = torch.tensor([1.0, 2.0, -1.0, -2.0, 3.0, 0.0, 0.0])
    for code in (knee, table):
        assert torch.equal(
            reference.decode(reference.encode(x, code.rows), code.rows, torch.float32), expected
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nan_encodes_zero_and_infinities_saturate(path: Path) -> None:
    range_, histogram = range_of(silu_values())
    code = load(path).fit(range_, histogram)
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
    decoded = code.rounded(x)[1]
    low, high = code.levels().min(), code.levels().max()
    assert decoded.tolist() == [0.0, high, low, high, low]


def test_lloyd_max_is_the_bound() -> None:
    range_, histogram = range_of(silu_values(3), 99.9)
    bound = histogram.squared_error(LloydMax(iterations=200).fit(range_, histogram))
    for mode in (Single(), Dual(), Dual(fine_codes=208), DualSymmetric(), SoftEdge(), Float8()):
        assert histogram.squared_error(mode.fit(range_, histogram)) >= bound * 0.99


def test_too_many_or_disordered_levels_are_refused() -> None:
    with pytest.raises(FormatError, match="at most 256"):
        table_code(torch.arange(257, dtype=torch.float64)[None])
    with pytest.raises(FormatError, match="monotone"):
        table_code(torch.tensor([[0.0, 2.0, 1.0]]))
    with pytest.raises(FormatError, match="zero"):
        table_code(torch.tensor([[1.0, 2.0]]))
    nan = torch.tensor([float("nan")])
    with pytest.raises(FormatError):
        knee_code(nan, torch.zeros(1), torch.zeros(1), torch.ones(1))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Dual(fine_codes=8), "scale_mode.fine_codes"),
        (lambda: Dual(headroom=0.5), "scale_mode.headroom"),
        (lambda: Control(knee=127), "scale_mode.knee"),
        (lambda: DualSymmetric(inner_codes=127), "scale_mode.inner_codes"),
        (lambda: SoftEdge(fine_codes=100, normal_codes=60), "scale_mode.fine_codes"),
        (lambda: Float8(layout="e3m4"), "scale_mode.layout"),
        (lambda: LloydMax(iterations=0), "scale_mode.iterations"),
        (lambda: DualMask(headroom=0.9), "scale_mode.headroom"),
        (lambda: DualSparse(headroom=17.0), "scale_mode.headroom"),
        (lambda: DualSparse(slack=-1.0), "scale_mode.slack"),
    ],
)
def test_bad_parameters_are_named(make: object, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()  # type: ignore[operator]
