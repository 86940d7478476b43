"""A threshold a layer: each site gets its own, the others the common one; what does not fit is refused by name."""

from __future__ import annotations

import pytest
import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.single import Single
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.per_layer import Chosen, PerLayer
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import run_calibration
from dualscale_mamba.quantization.pipeline import plan_of, prepare, turn_on
from dualscale_mamba.quantization.recipe import Recipe

FIRST, SECOND = "layers.0.mixer.ssm_input", "layers.1.mixer.ssm_input"
FLOOR = -0.2785


@pytest.fixture
def histogram() -> Histogram:
    made = Histogram()
    made.update(torch.nn.functional.silu(torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 3))
    return made


def test_a_site_has_its_own_percentile_and_split(histogram: Histogram) -> None:
    observer = PerLayer({FIRST: {"percentile": 97.0, "fine_codes": 128}}, percentile=99.5)
    own, other = observer.at(FIRST), observer.at(SECOND)
    fitted = own.fit(histogram, FLOOR, Dual())
    assert fitted.mode == Dual(fine_codes=128)
    assert torch.equal(fitted.code.rows, Percentile(97.0).fit(histogram, FLOOR, Dual(128)).code.rows)
    plain = other.fit(histogram, FLOOR, Dual())
    assert torch.equal(plain.code.rows, Percentile(99.5).fit(histogram, FLOOR, Dual()).code.rows)


def test_the_layers_of_a_model_differ() -> None:
    model = load_pretrained("random:tiny").model
    assert isinstance(model, MambaLM)
    recipe = Recipe(
        scale_mode=Dual(), observer=PerLayer({FIRST: {"percentile": 90.0, "fine_codes": 96}}, percentile=99.0)
    )
    plan_of(model, recipe)
    prepare(model, recipe)
    calibration = run_calibration(model, [torch.arange(24)[None]], recipe)
    rows = {row["name"]: row for row in turn_on(model, calibration, recipe).sites}
    assert rows[FIRST]["percentile"] == 90.0
    assert rows[FIRST]["knee"] == -128 + 96 - 1
    assert rows[SECOND]["percentile"] == 99.0
    assert rows[SECOND]["knee"] == -128 + 160 - 1
    assert rows["layers.0.mixer.z"]["percentile"] == 100.0  # another site keeps its own observer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"percentile": 40.0}, f"observer.sites.{FIRST}.percentile=40.0: allowed is a number in (50, 100]"),
        (99.0, f"observer.sites.{FIRST}=99.0: allowed is settings such as"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        PerLayer({FIRST: settings})  # type: ignore[dict-item]
    assert str(error.value).startswith(said)


def test_settings_of_another_mode_are_refused() -> None:
    observer = PerLayer({FIRST: {"fine_codes": 128}})
    with pytest.raises(
        ConfigError, match=f"observer.sites.{FIRST}.fine_codes=128: allowed is one of percentile"
    ):
        Recipe(scale_mode=Single(), observer=observer)
    with pytest.raises(ConfigError, match=r"fine_codes=300: allowed is an integer in \[16, 240\]"):
        Recipe(scale_mode=Dual(), observer=PerLayer({FIRST: {"fine_codes": 300}}))


def test_a_site_that_the_model_lacks_is_refused() -> None:
    model = load_pretrained("random:tiny").model
    assert isinstance(model, MambaLM)
    for name in ("layers.9.mixer.ssm_input", "layers.0.mixer.z"):
        recipe = Recipe(scale_mode=Dual(), observer=PerLayer({name: {"percentile": 99.0}}))
        with pytest.raises(
            ConfigError, match=f"observer.sites={name}: allowed is one of the 2 sites {FIRST}"
        ):
            plan_of(model, recipe)


def test_no_settings_is_the_percentile_alone(histogram: Histogram) -> None:
    own, plain = (one.fit(histogram, FLOOR, Single()) for one in (Chosen(99.0), Percentile(99.0)))
    assert own.mode == plain.mode
    assert torch.equal(own.code.rows, plain.code.rows)
