"""prepare, calibrate, convert on the embedded models: what each step must keep and what it must change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

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
from dualscale_mamba.granularity import Granularity, PerChannel, PerGroup, PerTensor
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import Pretrained, load_pretrained
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import Calibration, calibration_key, run_calibration
from dualscale_mamba.quantization.clusters import Arrangement
from dualscale_mamba.quantization.pipeline import arrange, convert, prepare, prepare_and_calibrate
from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe
from dualscale_mamba.sites import GROUPED, SITES, SSM_INPUT, is_ssm_input

MODES = [Single(), Control(), Affine(), Dual(), DualSymmetric(), SoftEdge(), Float8(), LloydMax(iterations=5)]


GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(), PerGroup()]
EVERY_SITE = [(family, site) for family, sites in SITES.items() for site in sites]


@dataclass
class Subject:
    """A loaded model of one family and its statistics at each granularity."""

    pretrained: Pretrained
    tokens: torch.Tensor
    calibrations: dict[str, tuple[Calibration, Arrangement | None]]

    @property
    def family(self) -> str:
        return self.pretrained.config.family

    def recipe(self, **arguments: Any) -> Recipe:
        return Recipe(family=self.family, **arguments)

    def fresh(self) -> MambaLM:
        model = copy.deepcopy(self.pretrained.model)
        assert isinstance(model, MambaLM)
        return model

    def quantized(self, recipe: Recipe) -> MambaLM:
        calibration, arrangement = self.calibrations[recipe.granularity.name]
        model = prepare(self.fresh(), recipe, arrangement)
        convert(model, calibration, recipe)
        return model

    def divergence(self, recipe: Recipe) -> float:
        reference = torch.log_softmax(self.pretrained.model(self.tokens).double(), -1)
        logits = self.quantized(recipe)(self.tokens).double()
        return float((reference.exp() * (reference - torch.log_softmax(logits, -1))).sum(-1).mean())


@pytest.fixture(scope="module", params=list(SITES))
def subject(request: pytest.FixtureRequest) -> Subject:
    pretrained = load_pretrained(f"embedded:{request.param}-tiny")
    text = "The river runs through the old town, and in the spring the meadows beside it are green. " * 8
    tokens = torch.tensor(pretrained.tokenizer.encode(text)[:128])[None]
    made = Subject(pretrained, tokens, {})
    for granularity in GRANULARITIES:
        recipe = made.recipe(granularity=granularity, scale_mode_sites=GROUPED[request.param])
        model = made.fresh()
        arrangement = arrange(model, [tokens], recipe)
        calibration = run_calibration(prepare(model, recipe, arrangement), [tokens], recipe, arrangement)
        made.calibrations[granularity.name] = calibration, arrangement
    return made


def of_family(subject: Subject, family: str) -> None:
    if subject.family != family:
        pytest.skip(f"a site of {family}")


def test_prepare_keeps_the_function(subject: Subject) -> None:
    before = subject.pretrained.model(subject.tokens)
    after = prepare(subject.fresh(), subject.recipe())(subject.tokens)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_calibration_sees_every_site_and_leaves_no_trace(subject: Subject) -> None:
    model, tokens = subject.fresh(), subject.tokens
    before = model(tokens)
    calibration = run_calibration(model, [tokens, tokens], subject.recipe(rotate=False))
    assert set(calibration.histograms) == set(model.sites())
    assert calibration.tokens == 2 * tokens.numel()
    for name, histogram in calibration.histograms.items():
        assert int(histogram.total.sum()) > 0, name
    assert all(site.statistic is None for site in model.sites().values())
    assert torch.equal(model(tokens), before)


def test_observers_are_detached_after_an_error(subject: Subject) -> None:
    model = subject.fresh()
    for granularity in (PerTensor(), PerGroup()):
        recipe = subject.recipe(granularity=granularity)
        batches = [torch.full((1, 4), 10**6)]
        observe = arrange if granularity.name == "per_group" else run_calibration
        with pytest.raises(IndexError):
            observe(model, batches, recipe)
        assert all(site.statistic is None for site in model.sites().values())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.name)
@pytest.mark.parametrize("weights", [8, None], ids=["w8", "float weights"])
def test_control_equals_single_bitwise_in_the_logits(
    subject: Subject, granularity: Granularity, weights: int | None
) -> None:
    arguments = {
        "weights": WeightRecipe(weights),
        "granularity": granularity,
        "scale_mode_sites": GROUPED[subject.family],
    }
    logits = [
        subject.quantized(subject.recipe(scale_mode=mode, **arguments))(subject.tokens)
        for mode in (Single(), Control(), Control(knee=-40))
    ]
    for other in logits[1:]:
        assert torch.equal(logits[0].view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.name)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: type(m).__name__)
def test_every_mode_runs_prefill_and_steps_alike(
    subject: Subject, mode: ScaleMode, granularity: Granularity
) -> None:
    carriers = GROUPED[subject.family] if granularity.name == "per_group" else None
    recipe = subject.recipe(
        scale_mode=mode, granularity=granularity, observer=Percentile(99.0), scale_mode_sites=carriers
    )
    model, tokens = subject.quantized(recipe), subject.tokens
    full = model(tokens[:, :24])
    assert torch.isfinite(full).all()
    cache = model.allocate_cache(1)
    first = model(tokens[:, :7], cache)
    steps = [model.step(tokens[:, t], cache) for t in range(7, 24)]
    joined = torch.cat([first, torch.stack(steps, 1)], 1)
    # a value that rounds to the next code in one of the two orders of summation moves logits a little
    assert (joined - full).abs().mean() < 0.02 * full.abs().mean()


def test_int8_weights_and_all_sites_stay_near_the_float_model(subject: Subject) -> None:
    def divergence(**arguments: Any) -> float:
        return subject.divergence(subject.recipe(**arguments))

    dual = divergence(scale_mode=Dual(), observer=Percentile(99.0))
    clipped = divergence(scale_mode=Single(), observer=Percentile(90.0))
    per_token = divergence(scale_mode=Dual(), observer=Percentile(99.0), linear_input_scale="per_token")
    assert 0 < dual < 0.01
    assert 0 < per_token < 0.01
    assert clipped > 10 * dual
    if subject.family == "mamba1":
        assert 0 < divergence(scale_mode=Dual(), observer=Percentile(99.0), x_proj_reads="conv_output") < 0.01


def test_more_codes_bring_a_single_scale_nearer(subject: Subject) -> None:
    """On the calibration text itself, where no channel meets a value that it has not seen."""
    arguments = {"weights": WeightRecipe(None), "scale_mode": Single(), "observer": Percentile(100.0)}
    arguments |= {"sites": SSM_INPUT[subject.family], "rotate": False}
    tensor, channel, group = (
        subject.divergence(subject.recipe(granularity=granularity, **arguments))
        for granularity in GRANULARITIES
    )
    assert channel < group < tensor


@pytest.mark.parametrize(("family", "site"), EVERY_SITE)
def test_any_single_site_may_be_int8(subject: Subject, family: str, site: str) -> None:
    of_family(subject, family)
    recipe = subject.recipe(
        weights=WeightRecipe(None), sites=(site,), scale_mode=Dual(), observer=Percentile(99.0)
    )
    model, tokens = subject.quantized(recipe), subject.tokens
    on = {name.rsplit(".", 1)[-1] for name, s in model.sites().items() if s.is_on}
    assert on == {site}
    logits, plain = model(tokens), subject.pretrained.model(tokens)
    assert not torch.equal(logits, plain)
    torch.testing.assert_close(logits.softmax(-1), plain.softmax(-1), rtol=0, atol=0.2)


@pytest.mark.parametrize("mode", [Affine(), DualSymmetric(), Float8()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(("family", "site"), EVERY_SITE)
def test_any_site_may_carry_any_mode_that_needs_no_floor(
    subject: Subject, family: str, site: str, mode: ScaleMode
) -> None:
    of_family(subject, family)
    tokens = subject.tokens
    recipe = subject.recipe(scale_mode=mode, scale_mode_sites=(site,), observer=Percentile(100.0))
    model = subject.quantized(recipe)
    plain = subject.quantized(subject.recipe())(tokens)
    logits = model(tokens)
    assert not torch.equal(logits, plain)
    torch.testing.assert_close(logits.softmax(-1), plain.softmax(-1), rtol=0, atol=0.2)
    cache = model.allocate_cache(1)
    model(tokens[:, :9], cache)
    assert torch.isfinite(model.step(tokens[:, 9], cache)).all()


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.name)
@pytest.mark.parametrize("sites", [("x",), ("B",), ("x", "B", "C"), ("C", "x")], ids="".join)
def test_subsets_of_the_convolutions_outputs(
    subject: Subject, granularity: Granularity, sites: tuple[str, ...]
) -> None:
    of_family(subject, "mamba2")
    recipe = subject.recipe(
        weights=WeightRecipe(None), rotate=False, sites=sites, scale_mode_sites=sites, scale_mode=Dual(),
        observer=Percentile(99.0), granularity=granularity,
    )  # fmt: skip
    model = subject.quantized(recipe)
    assert {name.rsplit(".", 1)[-1] for name, s in model.sites().items() if s.is_on} == set(sites)
    assert 0 < subject.divergence(recipe) < 2e-3


def test_a_site_may_change_its_code(subject: Subject) -> None:
    """Codes joined for the product's epilogue follow the sites; a layer whose input is int8 no more reads values."""
    model, tokens = subject.quantized(subject.recipe()), subject.tokens
    model(tokens)
    site = model.sites()["layers.0.mixer.z"]
    assert site.code is not None
    wider = knee_code(
        site.code.rows[:, 0].double() * 4, *torch.tensor([[0.0], [127.0], [1.0]]).double(), qmin=-127
    )
    site.set_code(wider)
    fresh = subject.quantized(subject.recipe())
    fresh.sites()["layers.0.mixer.z"].set_code(wider)
    assert torch.equal(model(tokens), fresh(tokens))
    model.sites()["layers.0.mixer.in_proj_input"].set_code(None)
    plain = subject.pretrained.model(tokens)
    torch.testing.assert_close(model(tokens).softmax(-1), plain.softmax(-1), rtol=0, atol=0.3)


def test_off_is_the_same_function(subject: Subject) -> None:
    recipe = subject.recipe(
        weights=WeightRecipe(None), activation_bits=None, rotate=False, scale_mode=Unquantized()
    )
    assert torch.equal(subject.quantized(recipe)(subject.tokens), subject.pretrained.model(subject.tokens))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.name)
def test_report_holds_thresholds_scales_and_shares(subject: Subject, granularity: Granularity) -> None:
    recipe = subject.recipe(scale_mode=Dual(), observer=Percentile(99.0), granularity=granularity)
    calibration, arrangement = subject.calibrations[granularity.name]
    report = convert(prepare(subject.fresh(), recipe, arrangement), calibration, recipe)
    rows = [row for row in report.sites if is_ssm_input(str(row["name"]))]
    assert len(rows) == subject.pretrained.config.n_layer
    for row in rows:
        assert row["bits_per_value"] == 8
        assert 0 < float(row["threshold"]) < float(row["range_max"])
        if granularity.name != "per_tensor":  # means over codes of different scales
            continue
        assert float(row["outlier_share"]) == pytest.approx(0.01, abs=0.002)
        assert float(row["outer_scale"]) == pytest.approx(
            float(row["inner_scale"]) * float(row["ratio"]), rel=1e-3
        )
        assert float(row["range_max"]) <= float(row["level_max"])
        assert 100 < float(row["codes_used"]) <= 256
    assert report.summary[f"{SSM_INPUT[subject.family][0]}/threshold"] > 0


@pytest.mark.parametrize("granularity", [PerTensor(), PerGroup()], ids=lambda g: g.name)
def test_statistics_are_saved_and_reused_bitwise(
    subject: Subject, tmp_path: Path, granularity: Granularity
) -> None:
    recipe = subject.recipe(scale_mode=Dual(), observer=Percentile(99.0), granularity=granularity)
    key = calibration_key(["weights", "tokens"], recipe)
    made, logits = [], []
    for _ in range(2):
        model = subject.fresh()
        made.append(prepare_and_calibrate(model, [subject.tokens], recipe, tmp_path, key))
        convert(model, made[-1], recipe)
        logits.append(model(subject.tokens))
    assert not made[0].reused
    assert made[1].reused
    assert torch.equal(*logits)
    for name, histogram in made[0].histograms.items():
        assert torch.equal(histogram.counts, made[1].histograms[name].counts)
    assert key != calibration_key(
        ["weights", "tokens"], subject.recipe(rotate=False, granularity=granularity)
    )
    assert key != calibration_key(["weights", "tokens"], subject.recipe(granularity=PerGroup(2, 2)))
    assert key != calibration_key(["other", "tokens"], recipe)
    assert key == calibration_key(["weights", "tokens"], subject.recipe(granularity=granularity))


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_damaged_statistics_are_computed_again_with_their_arrangement(
    subject: Subject, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    recipe = subject.recipe(granularity=PerGroup())
    first = prepare_and_calibrate(subject.fresh(), [subject.tokens], recipe, tmp_path, "k")
    (path,) = (tmp_path / "calibration").glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    again = prepare_and_calibrate(subject.fresh(), [subject.tokens], recipe, tmp_path, "k")
    assert not again.reused
    read = prepare_and_calibrate(
        subject.fresh(), [], recipe, tmp_path, "k"
    )  # no text: it must have been read
    assert read.reused
    for other in (again, read):
        assert other.arrangement is not None
        assert first.arrangement is not None
        assert other.arrangement.state().keys() == first.arrangement.state().keys()
        for name, tensor in first.arrangement.state().items():
            assert torch.equal(other.arrangement.state()[name], tensor)


def test_full_disk_costs_only_the_cache(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("dualscale_mamba.quantization.storage.save_file", full)
    recipe = subject.recipe()
    made = prepare_and_calibrate(subject.fresh(), [subject.tokens], recipe, tmp_path, "k")
    assert made.tokens == subject.tokens.numel()
    assert made.path is None
    assert "No space left" in caplog.text
    assert [path.suffix for path in (tmp_path / "calibration").iterdir()] == [".lock"]
    with pytest.raises(OSError, match="No space left"):
        made.save(tmp_path / "wanted.safetensors")


def test_folder_that_cannot_be_made_costs_only_the_cache(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text("a file where the folder should be")
    made = prepare_and_calibrate(subject.fresh(), [subject.tokens], subject.recipe(), tmp_path, "k")
    assert (made.reused, made.path) == (False, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "mamba3"}, r"model\.family=mamba3: allowed is mamba1 or mamba2"),
        ({"sites": ("u",)}, r"precision\.activations\.sites=u: allowed is one of in_proj_input"),
        ({"scale_mode_sites": ("x",)}, r"quantize\.sites=x: allowed is one of .* in a mamba1 model"),
        ({"family": "mamba2", "sites": ("delta",)}, r"sites=delta: allowed is one of .* in a mamba2 model"),
        ({"family": "mamba2", "x_proj_reads": "conv_output"}, "only Mamba-1 has an x_proj"),
        ({"activation_bits": 4}, r"precision\.activations\.bits=4: allowed is 8 or null"),
        ({"x_proj_reads": "both"}, r"precision\.x_proj_reads=both"),
        ({"linear_input_scale": "dynamic"}, r"precision\.linear_input_scale=dynamic"),
        ({"linear_input_scale": "per_token", "rotate": False}, r"precision\.rotate=False"),
        ({"scale_mode": Dual(), "scale_mode_sites": ("z",)}, "dual at site z.*dual_symmetric"),
        ({"granularity": PerChannel(), "scale_mode_sites": ("z",)}, "per_channel at site z"),
        (
            {"family": "mamba2", "granularity": PerGroup(), "scale_mode_sites": ("dt",)},
            "per_group at site dt",
        ),
    ],
)
def test_recipes_that_cannot_work_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**arguments)  # type: ignore[arg-type]
