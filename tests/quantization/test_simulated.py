"""A site whose code is simulated: the same values as the stored code, honest bits, and no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from saved_models import Case, logits, quantized, save

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.simulated import SimulatedCode, simulated_code
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.three_segments import ThreeSegments
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.site import Site
from dualscale_mamba.sites import SSM_INPUT, is_ssm_input

SOURCES = ["random:tiny", "random:mamba2-tiny"]


@dataclass(frozen=True)
class SimulatedSingle(Single):
    """The levels of `single`, rounded to in floating point."""

    def fit(self, range_: Range, histogram: Histogram | None = None) -> SimulatedCode:
        levels = super().fit(range_, histogram).levels().double()
        return simulated_code(torch.unique(levels)[None], 8)


@pytest.fixture(autouse=True)
def by_the_reference() -> Iterator[None]:
    with ops.implementation("reference"):
        yield


def test_site_rounds_values_and_asks_for_no_codes() -> None:
    site = Site()
    one = torch.ones(1, dtype=torch.float64)
    code = ThreeSegments().fit(Range(-one, one, 2 * one))
    site.set_code(code)
    values = torch.randn(3, 4)
    assert site.is_on
    assert site.output_code() is None
    assert torch.equal(site.wrap(values), code.rounded(values)[1])
    site.set_code(None)
    assert site.wrap(values) is values


@pytest.mark.parametrize("source", SOURCES)
def test_simulated_levels_give_what_stored_levels_give(source: str) -> None:
    """Only the SSM input has a code; prefill and a step."""
    recipe = {
        "observer": Percentile(99.9),
        "sites": SSM_INPUT["mamba1" if source == SOURCES[0] else "mamba2"],
    }
    made = [
        logits(quantized(source, Case({**recipe, "scale_mode": mode}))[0])
        for mode in (Single(), SimulatedSingle())
    ]
    assert torch.allclose(made[0], made[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_three_segments_are_reported_as_nine_bits_and_not_saved(source: str, tmp_path: Path) -> None:
    recipe = {"scale_mode": ThreeSegments(), "observer": Percentile(99.95), "activation_bits": 8}
    loaded, report = quantized(source, Case(recipe))
    bits = {str(row["name"]): row["bits_per_value"] for row in report.sites}
    assert {value for name, value in bits.items() if is_ssm_input(name)} == {9.0}
    assert {value for name, value in bits.items() if not is_ssm_input(name)} == {8.0}
    assert isinstance(loaded.model, MambaLM)
    assert torch.isfinite(logits(loaded)).all()
    with pytest.raises(ConfigError, match="simulated"):
        save(tmp_path / "saved", loaded, report)
    assert not (tmp_path / "saved").exists()
