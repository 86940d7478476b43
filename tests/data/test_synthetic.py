"""Made values have the tails that were published, and the floor that SiLU has."""

from __future__ import annotations

import pytest
import torch

from dualscale_mamba.data.synthetic import Regime, regimes_of, synthesize
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.site import SILU_FLOOR

# Layers of mamba-130m over documents of at most 512 tokens: quantiles of the magnitude at 99.95 and 99.99 %, maximum.
PUBLISHED = {0: (2.230, 2.254, 2.380), 1: (1.404, 2.575, 4.872), 2: (2.565, 3.012, 7.701)}
TOKENS, CHANNELS = 512, 1536


@pytest.mark.parametrize("layer", PUBLISHED)
def test_tails_are_those_that_were_published(layer: int) -> None:
    first, second, maximum = PUBLISHED[layer]
    values = synthesize(Regime({99.95: first, 99.99: second}, maximum), TOKENS, CHANNELS)
    ordered = values.abs().flatten().sort().values
    for percent, expected in ((99.95, first), (99.99, second)):
        assert float(ordered[int(percent / 100 * len(ordered))]) == pytest.approx(expected, rel=0.01)
    assert float(values.max()) == pytest.approx(maximum, rel=1e-5)
    assert float(values.min()) >= SILU_FLOOR - 1e-6
    assert 0.0004 < float((values.abs() > first).float().mean()) < 0.0006


def test_body_is_that_of_the_last_layer() -> None:
    """Mean 0.0031 and deviation 0.1283 were published; its 99.95 % are 1.5446."""
    values = synthesize(Regime({99.95: 1.5446}, 2.2), TOKENS, CHANNELS)
    assert float(values.mean()) == pytest.approx(0.0031, abs=0.001)
    assert float(values.std()) == pytest.approx(0.1283, rel=0.03)


def test_channels_are_the_models_and_values_are_the_draws() -> None:
    regime = Regime(zero=0.25, constant=0.25, spike=0.25, maximum=9.0)
    first, second = (synthesize(regime, 64, 16, seed=1, draw=draw) for draw in (0, 1))
    for found in (first, second):
        nonzero = (found != 0).sum(0)
        assert int((nonzero == 0).sum()) == 4
        assert int((nonzero == 1).sum()) == 4
        assert float(found[:, nonzero == 1].amax(0).min()) == 9.0
    constant = (first == first[:1]).all(0) & (first[0] != 0)
    assert int(constant.sum()) == 4
    assert torch.equal(first[:, constant], second[:, constant])
    assert not torch.equal(first, second)
    assert torch.equal(first, synthesize(regime, 64, 16, seed=1, draw=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiles": [[99.9, 2.0]]}, r"task\.regimes\.a\.quantiles"),
        ({"quantiles": [[99.9, 2.0], [99.95, 1.0]], "maximum": 3.0}, "magnitudes that ascend"),
        ({"quantiles": [[98.0, 2.0]], "maximum": 3.0}, "percentages between body=99 and 100"),
        ({"zero": 0.7, "spike": 0.7}, r"task\.regimes\.a\.zero"),
        ({"body": 100.0}, r"task\.regimes\.a\.body"),
        ({"tail": 1}, r"task\.regimes\.a="),
    ],
)
def test_mistakes_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        regimes_of({"a": settings})
