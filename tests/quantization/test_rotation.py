"""Rotation keeps the model's function and its matrices are Hadamard."""

from __future__ import annotations

import pytest
import torch

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.ops import reference
from dualscale_mamba.quantization.rotation import BASE_ORDERS, base_for, hadamard_base, rotate_columns


@pytest.mark.parametrize("order", BASE_ORDERS)
def test_bases_are_hadamard(order: int) -> None:
    base = hadamard_base(order)
    assert set(base.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(base @ base.T, order * torch.eye(order))


@pytest.mark.parametrize("channels", [1, 2, 512, 12, 1536, 3072, 20, 40, 5120, 28, 448])
def test_rotated_weight_times_rotated_input_is_the_product(channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(8, channels, generator=generator, dtype=torch.float64)
    y = torch.randn(5, channels, generator=generator)
    base = base_for(channels)
    rotated, _ = reference.hadamard_quant(y, base, None, False, torch.float32)
    product = rotated @ rotate_columns(weight.float(), base).T
    torch.testing.assert_close(product.double(), y.double() @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 36, 100, 11])
def test_other_dimensions_are_refused_by_number(channels: int) -> None:
    with pytest.raises(ConfigError, match=str(channels)):
        base_for(channels)
