"""prepare, calibrate, convert on the embedded model: what each step must keep and what it must change."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.affine import Affine
from dualscale_mamba.formats.base import ScaleMode, knee_code
from dualscale_mamba.formats.control import Control
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.float8 import Float8
from dualscale_mamba.formats.lloyd_max import LloydMax
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.soft_edge import SoftEdge
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.granularity import PerChannel, PerTensor
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import Pretrained, load_pretrained
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import Calibration, calibrate, calibration_key, run_calibration
from dualscale_mamba.quantization.pipeline import convert, prepare
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.sites import MAMBA1_SITES

MODES = [Single(), Control(), Affine(), Dual(), DualSymmetric(), SoftEdge(), Float8(), LloydMax(iterations=5)]


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return load_pretrained("embedded:mamba1-tiny")


@pytest.fixture(scope="module")
def tokens(pretrained: Pretrained) -> torch.Tensor:
    text = "The river runs through the old town, and in the spring the meadows beside it are green. " * 8
    return torch.tensor(pretrained.tokenizer.encode(text)[:128])[None]


@pytest.fixture(scope="module")
def calibrations(pretrained: Pretrained, tokens: torch.Tensor) -> dict[str, Calibration]:
    made = {}
    for granularity in (PerTensor(), PerChannel()):
        recipe = Recipe(granularity=granularity)
        model = prepare(copy.deepcopy(pretrained.model), recipe)
        made[granularity.name] = run_calibration(model, [tokens], recipe)
    return made


def quantized(pretrained: Pretrained, calibrations: dict[str, Calibration], recipe: Recipe) -> MambaLM:
    model = prepare(copy.deepcopy(pretrained.model), recipe)
    convert(model, calibrations[recipe.granularity.name], recipe)
    return model


@pytest.fixture
def clean(pretrained: Pretrained) -> MambaLM:
    return copy.deepcopy(pretrained.model)


def test_prepare_keeps_the_function(clean: MambaLM, pretrained: Pretrained, tokens: torch.Tensor) -> None:
    before = pretrained.model(tokens)
    after = prepare(clean, Recipe())(tokens)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_calibration_sees_every_site_and_leaves_no_trace(clean: MambaLM, tokens: torch.Tensor) -> None:
    before = clean(tokens)
    calibration = run_calibration(clean, [tokens, tokens], Recipe(rotate=False))
    assert set(calibration.histograms) == set(clean.sites())
    assert calibration.tokens == 2 * tokens.numel()
    for name, histogram in calibration.histograms.items():
        assert int(histogram.total.sum()) > 0, name
    assert all(site.histogram is None for site in clean.sites().values())
    assert torch.equal(clean(tokens), before)


def test_observers_are_detached_after_an_error(clean: MambaLM) -> None:
    with pytest.raises(IndexError):
        run_calibration(clean, [torch.full((1, 4), 10**6)], Recipe())
    assert all(site.histogram is None for site in clean.sites().values())


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel()], ids=lambda g: g.name)
@pytest.mark.parametrize("weights", [8, None], ids=["w8", "float weights"])
def test_control_equals_single_bitwise_in_the_logits(
    pretrained: Pretrained,
    calibrations: dict[str, Calibration],
    tokens: torch.Tensor,
    granularity: PerTensor,
    weights: int,
) -> None:
    logits = [
        quantized(
            pretrained, calibrations, Recipe(weights_bits=weights, scale_mode=mode, granularity=granularity)
        )(tokens)
        for mode in (Single(), Control(), Control(knee=-40))
    ]
    for other in logits[1:]:
        assert torch.equal(logits[0].view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel()], ids=lambda g: g.name)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: type(m).__name__)
def test_every_mode_runs_prefill_and_steps_alike(
    pretrained: Pretrained,
    calibrations: dict[str, Calibration],
    tokens: torch.Tensor,
    mode: ScaleMode,
    granularity: PerTensor,
) -> None:
    recipe = Recipe(scale_mode=mode, granularity=granularity, observer=Percentile(99.0))
    model = quantized(pretrained, calibrations, recipe)
    full = model(tokens[:, :24])
    assert torch.isfinite(full).all()
    cache = model.allocate_cache(1)
    first = model(tokens[:, :7], cache)
    steps = [model.step(tokens[:, t], cache) for t in range(7, 24)]
    joined = torch.cat([first, torch.stack(steps, 1)], 1)
    # a value that rounds to the next code in one of the two orders of summation moves logits a little
    assert (joined - full).abs().mean() < 0.02 * full.abs().mean()


def test_int8_weights_and_all_sites_stay_near_the_float_model(
    pretrained: Pretrained, calibrations: dict[str, Calibration], tokens: torch.Tensor
) -> None:
    reference = torch.log_softmax(pretrained.model(tokens).double(), -1)

    def divergence(recipe: Recipe) -> float:
        logits = quantized(pretrained, calibrations, recipe)(tokens).double()
        return float((reference.exp() * (reference - torch.log_softmax(logits, -1))).sum(-1).mean())

    dual = divergence(Recipe(scale_mode=Dual(), observer=Percentile(99.0)))
    clipped = divergence(Recipe(scale_mode=Single(), observer=Percentile(90.0)))
    per_token = divergence(
        Recipe(scale_mode=Dual(), observer=Percentile(99.0), linear_input_scale="per_token")
    )
    conv_output = divergence(Recipe(scale_mode=Dual(), observer=Percentile(99.0), x_proj_reads="conv_output"))
    assert 0 < dual < 0.01
    assert 0 < per_token < 0.01
    assert 0 < conv_output < 0.01
    assert clipped > 10 * dual


@pytest.mark.parametrize("site", list(MAMBA1_SITES))
def test_any_single_site_may_be_int8(
    pretrained: Pretrained, calibrations: dict[str, Calibration], tokens: torch.Tensor, site: str
) -> None:
    recipe = Recipe(weights_bits=None, sites=(site,), scale_mode=Dual(), observer=Percentile(99.0))
    model = quantized(pretrained, calibrations, recipe)
    on = {name.rsplit(".", 1)[-1] for name, s in model.sites().items() if s.is_on}
    assert on == {site}
    logits = model(tokens)
    assert not torch.equal(logits, pretrained.model(tokens))
    torch.testing.assert_close(logits.softmax(-1), pretrained.model(tokens).softmax(-1), rtol=0, atol=0.2)


@pytest.mark.parametrize("mode", [Affine(), DualSymmetric(), Float8()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("site", list(MAMBA1_SITES))
def test_any_site_may_carry_any_mode_that_needs_no_floor(
    pretrained: Pretrained,
    calibrations: dict[str, Calibration],
    tokens: torch.Tensor,
    site: str,
    mode: ScaleMode,
) -> None:
    recipe = Recipe(scale_mode=mode, scale_mode_sites=(site,), observer=Percentile(100.0))
    model = quantized(pretrained, calibrations, recipe)
    plain = quantized(pretrained, calibrations, Recipe())(tokens)
    logits = model(tokens)
    assert not torch.equal(logits, plain)
    torch.testing.assert_close(logits.softmax(-1), plain.softmax(-1), rtol=0, atol=0.2)
    cache = model.allocate_cache(1)
    model(tokens[:, :9], cache)
    assert torch.isfinite(model.step(tokens[:, 9], cache)).all()


def test_a_site_may_change_its_code(
    pretrained: Pretrained, calibrations: dict[str, Calibration], tokens: torch.Tensor
) -> None:
    """Codes joined for the product's epilogue follow the sites; a float input after that is refused."""
    model = quantized(pretrained, calibrations, Recipe())
    model(tokens)
    site = model.sites()["layers.0.mixer.z"]
    assert site.code is not None
    wider = knee_code(
        site.code.rows[:, 0].double() * 4, *torch.tensor([[0.0], [127.0], [1.0]]).double(), qmin=-127
    )
    site.set_code(wider)
    fresh = quantized(pretrained, calibrations, Recipe())
    fresh.sites()["layers.0.mixer.z"].set_code(wider)
    assert torch.equal(model(tokens), fresh(tokens))
    model.sites()["layers.0.mixer.in_proj_input"].set_code(None)
    with pytest.raises(RuntimeError, match="int8 weight only"):
        model(tokens)


def test_off_is_the_same_function(
    pretrained: Pretrained, calibrations: dict[str, Calibration], tokens: torch.Tensor
) -> None:
    recipe = Recipe(weights_bits=None, activation_bits=None, rotate=False, scale_mode=Unquantized())
    assert torch.equal(quantized(pretrained, calibrations, recipe)(tokens), pretrained.model(tokens))


def test_report_holds_thresholds_scales_and_shares(
    pretrained: Pretrained, calibrations: dict[str, Calibration]
) -> None:
    recipe = Recipe(scale_mode=Dual(), observer=Percentile(99.0))
    model = prepare(copy.deepcopy(pretrained.model), recipe)
    report = convert(model, calibrations["per_tensor"], recipe)
    rows = [row for row in report.sites if str(row["name"]).endswith("ssm_input")]
    assert len(rows) == pretrained.config.n_layer
    for row in rows:
        assert float(row["outlier_share"]) == pytest.approx(0.01, abs=0.002)
        assert float(row["outer_scale"]) == pytest.approx(
            float(row["inner_scale"]) * float(row["ratio"]), rel=1e-3
        )
        assert 0 < float(row["threshold"]) < float(row["range_max"]) <= float(row["level_max"])
        assert row["bits_per_value"] == 8
        assert 100 < float(row["codes_used"]) <= 256
    assert report.summary["ssm_input/threshold"] > 0


def test_statistics_are_saved_and_reused_bitwise(
    pretrained: Pretrained, tokens: torch.Tensor, tmp_path: Path
) -> None:
    recipe = Recipe(scale_mode=Dual(), observer=Percentile(99.0))
    key = calibration_key(["weights", "tokens"], recipe)
    made = []
    for _ in range(2):
        model = prepare(copy.deepcopy(pretrained.model), recipe)
        made.append(calibrate(model, [tokens], recipe, tmp_path, key))
        convert(model, made[-1], recipe)
    assert not made[0].reused
    assert made[1].reused
    for name, histogram in made[0].histograms.items():
        assert torch.equal(histogram.counts, made[1].histograms[name].counts)
    assert key != calibration_key(["weights", "tokens"], Recipe(rotate=False))
    assert key != calibration_key(["other", "tokens"], recipe)
    assert key == calibration_key(["weights", "tokens"], Recipe(scale_mode=Single()))


def test_damaged_statistics_are_computed_again(
    pretrained: Pretrained, tokens: torch.Tensor, tmp_path: Path
) -> None:
    recipe = Recipe()
    calibrate(prepare(copy.deepcopy(pretrained.model), recipe), [tokens], recipe, tmp_path, "k")
    (path,) = (tmp_path / "calibration").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    again = calibrate(prepare(copy.deepcopy(pretrained.model), recipe), [tokens], recipe, tmp_path, "k")
    assert not again.reused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": ("u",)}, r"precision\.sites=u: allowed is one of in_proj_input"),
        ({"weights_bits": 3}, r"precision\.weights\.bits=3: allowed is 8 or null"),
        ({"x_proj_reads": "both"}, r"precision\.x_proj_reads=both"),
        ({"linear_input_scale": "dynamic"}, r"precision\.linear_input_scale=dynamic"),
        ({"linear_input_scale": "per_token", "rotate": False}, r"precision\.rotate=False"),
        ({"scale_mode": Dual(), "scale_mode_sites": ("z",)}, "dual at site z.*dual_symmetric"),
        ({"granularity": PerChannel(), "scale_mode_sites": ("z",)}, "per_channel at site z"),
    ],
)
def test_recipes_that_cannot_work_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**arguments)  # type: ignore[arg-type]
