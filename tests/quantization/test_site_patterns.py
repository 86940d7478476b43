"""Any subset of sites, in any layers, at any format: what is named is int8, and nothing else."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.affine import Affine
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.float8 import Float8
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.three_segments import ThreeSegments
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.granularity import PerChannel
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import Calibration, run_calibration
from dualscale_mamba.quantization.pipeline import turn_on
from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe
from dualscale_mamba.quantization.sensitivity import restored
from dualscale_mamba.quantization.site_patterns import SiteFormat, contains, occurs, within
from dualscale_mamba.sites import SITES

FAMILIES = {"mamba1": "random:tiny", "mamba2": "random:mamba2-tiny"}
MODES: tuple[ScaleMode, ...] = (Single(), Affine(), DualSymmetric(), Float8(), ThreeSegments())
LAYERS = 2
TOKENS = torch.randint(0, 4000, (2, 20), generator=torch.Generator().manual_seed(3))


@cache
def counted(family: str) -> tuple[MambaLM, Calibration]:
    model = load_pretrained(FAMILIES[family]).model
    assert isinstance(model, MambaLM)
    with ops.implementation("reference"):
        return model, run_calibration(model, [TOKENS], alone(family, ()))


def alone(family: str, sites: tuple[str, ...], **more: object) -> Recipe:
    """Nothing quantized but the sites."""
    settings_: dict[str, object] = {"scale_mode": Single(), "observer": Percentile(100.0), **more}
    return Recipe(
        family=family, weights=WeightRecipe(None), rotate=False, sites=sites, scale_mode_sites=sites, overrides={},
        **settings_,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_subset_at_every_format_runs(family: str, data: st.DataObject) -> None:
    model, calibration = counted(family)
    places = [(layer, name) for layer in range(LAYERS) for name in SITES[family]]
    chosen = data.draw(st.sets(st.sampled_from(places)), label="sites")
    sites = tuple(f"layers.{layer}.{name}" for layer, name in sorted(chosen))
    formats = {
        f"layers.{layer}.{name}": SiteFormat(data.draw(st.sampled_from(MODES)), Percentile(99.9))
        for layer, name in sorted(chosen)
    }
    recipe = alone(family, sites, formats=formats)
    recipe.check(tuple(model.weight_layers()), tuple(model.sites()))
    with ops.implementation("reference"), torch.no_grad(), restored(model):
        plain = model(TOKENS)
        report = turn_on(model, calibration, recipe)
        on = {name for name, site in model.sites().items() if site.is_on}
        assert on == {f"layers.{layer}.mixer.{name}" for layer, name in chosen}
        names = {row["name"]: row["format"] for row in report.sites}
        for text, own in formats.items():
            full = text.replace(".", ".mixer.", 2).replace(".mixer.", ".", 1)
            assert names[full] == type(own.mode).__name__.lower()
        logits = model(TOKENS)
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, plain) == (not chosen)
        cache_ = model.allocate_cache(2)
        model(TOKENS[:, :9], cache_)
        assert torch.isfinite(model.step(TOKENS[:, 9], cache_)).all()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("z",), {"layers.0.mixer.z", "layers.11.mixer.z"}),
        (("layers.11.z",), {"layers.11.mixer.z"}),
        (("layers.11.mixer.z",), {"layers.11.mixer.z"}),
        (("layers.11",), {f"layers.11.mixer.{name}" for name in SITES["mamba1"]}),
        (("layers.1*.[BC]",), {"layers.11.mixer.B", "layers.11.mixer.C"}),
        (("all", "-layers.*", "B", "-layers.0.B"), {"layers.11.mixer.B"}),
        (
            ("-layers.11", "-*_input", "-z", "-delta"),
            {f"layers.0.mixer.{name}" for name in ("B", "C")},
        ),
        ((), set()),
    ],
)
def test_the_last_name_that_fits_decides(names: tuple[str, ...], expected: set[str]) -> None:
    every = [f"layers.{layer}.mixer.{name}" for layer in (0, 11) for name in SITES["mamba1"]]
    assert {site for site in every if contains(names, site)} == expected
    for site in expected:
        assert occurs(names, site.rpartition(".")[2])


def test_names_without_a_layer_are_those_of_some() -> None:
    assert within(("x", "layers.0.B"), [2, 3]) == ("layers.2.x", "layers.3.x", "layers.0.B")
    assert within(("x",), None) == ("x",)
    left = within(("-x",), [1])
    assert not contains(left, "layers.1.mixer.x")
    assert contains(left, "layers.1.mixer.z")
    assert not contains(left, "layers.0.mixer.z")


def test_leaving_one_out_leaves_the_others() -> None:
    for family, sites in SITES.items():
        for name in sites:
            active = Recipe(family=family, sites=(f"-{name}",)).active_sites
            assert set(active) == set(sites) - {name}


def test_a_layer_that_is_not_there_is_told(  # before anything is counted
) -> None:
    model, _ = counted("mamba1")
    with pytest.raises(ConfigError, match=r"quantize\.sites=layers\.7\.z: allowed is a layer in 0 to 1"):
        alone("mamba1", ("layers.7.z",)).check(tuple(model.weight_layers()), tuple(model.sites()))


def test_a_format_of_its_own_wins_and_may_switch_off() -> None:
    formats = {"layers.0.*": SiteFormat(Affine()), "z": SiteFormat(Unquantized())}
    recipe = Recipe(family="mamba1", scale_mode=Dual(), formats=formats)
    assert isinstance(recipe.mode_of("layers.0.mixer.B"), Affine)
    assert isinstance(recipe.mode_of("layers.1.mixer.ssm_input"), Dual)
    assert recipe.mode_of("layers.0.mixer.z") is None
    assert not recipe.is_active("layers.1.mixer.z")
    with pytest.raises(ConfigError, match="dual at site z"):
        Recipe(family="mamba1", formats={"z": SiteFormat(Dual())})
    with pytest.raises(ConfigError, match=r"quantize\.formats=B: allowed is a site that is quantized"):
        alone("mamba1", ("z",), formats={"B": SiteFormat(Affine())})


def test_layers_that_do_not_carry_have_one_code(  # although all layers are counted a channel
) -> None:
    model = load_pretrained("random:tiny").model
    recipe = Recipe(
        family="mamba1", weights=WeightRecipe(None), rotate=False, scale_mode=Dual(), granularity=PerChannel(),
        scale_mode_sites=("layers.1.ssm_input",), observer=Percentile(99.0),
    )  # fmt: skip
    with ops.implementation("reference"):
        turn_on(model, run_calibration(model, [TOKENS], recipe), recipe)
    groups = [model.sites()[f"layers.{i}.mixer.ssm_input"].code.groups for i in range(LAYERS)]
    assert groups[0] == 1 < groups[1]
