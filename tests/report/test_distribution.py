"""What a run keeps for pictures of its codes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.single import Single
from dualscale_mamba.observers.base import Observer
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.mse import MeanSquaredError
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import Calibration
from dualscale_mamba.quantization.pipeline import describe
from dualscale_mamba.quantization.site import SILU_FLOOR, Site
from dualscale_mamba.report.picture import furthest
from dualscale_mamba.tasks.distribution import BINS, distribution

NAMES = ("layers.0.mixer.ssm_input", "layers.1.mixer.ssm_input", "layers.0.mixer.B", "layers.0.mixer.z")


def counted(reach: float) -> Histogram:
    values = torch.nn.functional.silu(torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)))
    histogram = Histogram()
    histogram.update(torch.cat([values, torch.tensor([[reach]])]))
    return histogram


def written(carriers: tuple[str, ...], coded: bool = True) -> dict[str, Any]:
    histograms = {name: counted(9.0 + index) for index, name in enumerate(NAMES)}
    sites = {name: Site(SILU_FLOOR) for name in NAMES}
    rows = []
    for name, histogram in histograms.items() if coded else ():
        fitted = Percentile(99.0).fit(histogram, SILU_FLOOR, Dual())
        sites[name].set_code(fitted.code)
        rows.append(describe(name, histogram, fitted, Percentile(99.0), SILU_FLOOR))
    found = distribution(SimpleNamespace(sites=lambda: sites), Calibration(histograms, 1), carriers, rows)
    assert found is not None
    return found


def test_every_layer_of_the_carriers_is_kept() -> None:
    assert set(written(("ssm_input",))["sites"]) == set(NAMES[:2])
    assert set(written(("B",))["sites"]) == set(NAMES[:3])


def test_a_site_says_where_its_code_bends() -> None:
    found = written(("ssm_input",))["sites"][NAMES[0]]
    assert len(found["centres"]) == len(found["share"]) == BINS
    assert sum(found["share"]) == pytest.approx(1.0, abs=1e-3)
    assert len(found["levels"]) == 256
    # The threshold's own level is where the fine codes end, up to the rounding of zero onto a code.
    step = found["levels"][1] - found["levels"][0]
    assert found["knee"] == pytest.approx(found["threshold"], abs=step)


def test_the_furthest_layer_is_named_and_shown() -> None:
    found = written(("ssm_input",))
    shown = furthest(found)
    assert shown is not None
    assert shown["site"] == NAMES[1]
    assert shown["levels"] == found["sites"][NAMES[1]]["levels"]
    assert furthest(shown) == shown


def test_a_floating_point_site_has_no_levels() -> None:
    found = written(("ssm_input",), coded=False)["sites"][NAMES[0]]
    assert found["levels"] == []
    assert "threshold" not in found


def test_numbers_have_few_digits() -> None:
    assert all(len(f"{value:.12g}".lstrip("-0.").split("e")[0].replace(".", "")) <= 5
               for value in written(("ssm_input",))["sites"][NAMES[0]]["centres"])  # fmt: skip


@pytest.mark.parametrize("observer", [Percentile(99.9), MeanSquaredError((99.0, 99.9, 100.0))])
def test_single_is_what_dual_is_measured_against(observer: Observer) -> None:
    histogram = counted(40.0)
    rows = [
        describe(NAMES[0], histogram, observer.fit(histogram, SILU_FLOOR, mode), observer, SILU_FLOOR)
        for mode in (Single(), Dual())
    ]
    assert rows[0]["sqnr_single_db"] == rows[0]["sqnr_db"]
    assert rows[1]["sqnr_single_db"] == rows[0]["sqnr_db"]
    assert float(rows[1]["sqnr_db"]) > float(rows[0]["sqnr_db"]) + 3.0
