"""Numbers of formats are those of the coded values; a proposal is the best of what was tried."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.affine import Affine
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.lloyd_max import LloydMax
from dualscale_mamba.formats.single import Single
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.mse import MeanSquaredError
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import run_calibration
from dualscale_mamba.quantization.fidelity import OBJECTIVES, candidates, compare, error_of, propose
from dualscale_mamba.quantization.pipeline import prepare
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.sensitivity import Bench, Text
from dualscale_mamba.sites import short_name

FLOOR = -0.27846454276107403
MODES = {"single": Single(), "affine": Affine(), "dual": Dual(), "dual_symmetric": DualSymmetric()}
PERCENTILES = (97.0, 99.0, 99.9, 100.0)


def values(seed: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.silu(torch.randn(8192, generator=generator) * spread)


def counted(x: Tensor, resolution: int | None = None) -> Histogram:
    made = Histogram(resolution=resolution)
    made.update(x)
    return made


@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 30.0))
@settings(max_examples=15, deadline=None)
def test_no_format_passes_the_bound_by_much(seed: int, spread: float) -> None:
    """Lloyd's iteration ends near a minimum: another format may be better by little."""
    lines = list(compare("per_tensor", {"a": (counted(values(seed, spread)), FLOOR)}, MODES, (99.0, 100.0)))
    assert {line.format for line in lines} == set(MODES)
    assert all(line.below_bound_db > -0.2 for line in lines)


@pytest.mark.parametrize("name", MODES)
def test_a_line_says_what_coding_the_values_does(name: str) -> None:
    x = values(3, 4.0)
    (line,) = compare("per_tensor", {"a": (counted(x), FLOOR)}, {name: MODES[name]}, (99.9,))
    code = Percentile(99.9).fit(counted(x), FLOOR, MODES[name]).code
    codes = ops.encode(x[:, None], code.rows)
    back = ops.decode(codes, code.rows, torch.float32)[:, 0]
    error = (back.double() - x.double()).square().mean()
    assert line.squared_error == pytest.approx(float(error), rel=0.05)  # to a bin's width
    ratio = 10 * torch.log10(x.double().square().mean() / error)
    assert line.sqnr_db == pytest.approx(float(ratio), abs=0.25)
    levels = code.levels()
    clipped = ((x < levels.min()) | (x > levels.max())).double().mean()
    assert line.clipped_share == pytest.approx(float(clipped), abs=2e-3)
    assert line.codes_used >= codes.unique().numel() - 1


def test_a_format_without_its_floor_is_left_out() -> None:
    lines = compare("per_tensor", {"a": (counted(values(0, 1.0)), None)}, MODES, (99.0,))
    assert {line.format for line in lines} == {name for name, mode in MODES.items() if not mode.needs_floor}


def test_candidates_are_the_best_of_all_settings() -> None:
    histogram = counted(values(1, 5.0))
    best, *others = candidates(histogram, FLOOR, Dual(), PERCENTILES, most=6)
    assert len(others) == 5
    searched = MeanSquaredError(PERCENTILES).fit(histogram, FLOOR, Dual())
    assert torch.equal(best.fit(histogram, FLOOR, Dual()).code.rows, searched.code.rows)
    assert candidates(histogram, FLOOR, Single(), PERCENTILES, most=99)[0].settings == {}
    assert len(candidates(histogram, FLOOR, Single(), PERCENTILES, most=99)) == len(PERCENTILES)


@pytest.fixture(params=["random:tiny", "random:mamba2-tiny"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    model = load_pretrained(request.param).model
    assert isinstance(model, MambaLM)
    recipe = Recipe(family=model.config.family, scale_mode=Dual())
    prepare(model, recipe)
    ids = torch.randint(0, 4000, (2, 33), generator=torch.Generator().manual_seed(1))
    with ops.implementation("reference"), torch.no_grad():
        calibration = run_calibration(model, [ids[:, :-1]], recipe)
        text = Text.read(model, ids, model(ids[:, :-1]))
        yield Bench(model, calibration, recipe, [text])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_proposal_is_no_worse_than_what_is_configured(bench: Bench, objective: str) -> None:
    before = bench.model(bench.texts[0].ids)
    found = propose(bench, objective, (95.0, 99.0, 99.9), most=3, percentile=99.0)
    carriers = [name for name in bench.model.sites() if short_name(name) in bench.recipe.carriers]
    assert [one.site for one in found] == carriers
    for one in found:
        assert 0 < one.error <= one.configured
        assert one.tried == 4
        assert 50 < one.settings["percentile"] <= 100
    assert torch.equal(bench.model(bench.texts[0].ids), before)  # the model is as it was


def test_the_error_of_a_site_is_its_own(bench: Bench) -> None:
    """In a model of which one site is coded, divergence and output error are those of the bench."""
    name = next(name for name in bench.model.sites() if short_name(name) in bench.recipe.carriers)
    site, histogram = bench.model.sites()[name], bench.calibration.histograms[name]
    fitted = Percentile(99.0).fit(histogram, site.floor, Dual())
    text = bench.texts[0]
    output = error_of(bench, "output", name, site, fitted)
    kl = error_of(bench, "kl", name, site, fitted)
    assert site.code is None
    plain = bench.model(text.ids).double().log_softmax(-1)
    site.set_code(fitted.code)
    coded = bench.model(text.ids).double().log_softmax(-1)
    mixed, _ = bench.model.blocks()[0](*text.hidden[0], None)
    site.set_code(None)
    assert kl == pytest.approx(float((plain.exp() * (plain - coded)).sum(-1).mean()), rel=1e-6, abs=1e-12)
    change = (mixed.double() - text.hidden[1][0].double()).square().sum()
    assert output == pytest.approx(float(change / text.hidden[1][0].double().square().sum()))


def test_the_bound_is_that_of_the_format_itself() -> None:
    histogram = counted(values(2, 3.0))
    (line,) = compare("per_tensor", {"a": (histogram, FLOOR)}, {"lloyd_max": LloydMax()}, (100.0,))
    assert line.below_bound_db == 0.0
