"""Every rounding: on its grid, deterministic, and no worse than the one that knows less."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight
from dualscale_mamba.rounding.base import Rounding
from dualscale_mamba.rounding.gptq import Gptq, inverse_factor
from dualscale_mamba.rounding.mse import MseClip
from dualscale_mamba.rounding.nearest import Nearest

GRIDS = [Grid(8), Grid(4, 32), Grid(4, 128)]
ROUNDINGS: list[Rounding] = [
    Nearest(),
    MseClip(),
    Gptq(),
    Gptq(act_order=True),
    Gptq(block_size=32, scale=Nearest()),
]


def layer(rows: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the second moments of correlated inputs with a few large channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator) * 0.05
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(4 * inputs, inputs, generator=generator) @ (mixing + 0.3 * torch.eye(inputs))
    x[:, :: max(1, inputs // 3)] *= 10.0
    return weight, x.T @ x / len(x)


def output_error(weight: Tensor, made: QuantizedWeight, hessian: Tensor) -> float:
    """The mean of ||(W - Q) x||^2 over the tokens."""
    lost = (weight - made.decoded()).double()
    return float(((lost @ hessian.double()) * lost).sum())


def weight_error(weight: Tensor, made: QuantizedWeight) -> float:
    return float((weight - made.decoded()).double().square().sum())


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=repr)
@settings(max_examples=8, deadline=None)
@given(
    grid=st.sampled_from(GRIDS), rows=st.integers(1, 9), inputs=st.integers(2, 300), seed=st.integers(0, 99)
)
def test_codes_are_on_the_grid_and_the_same_twice(
    rounding: Rounding, grid: Grid, rows: int, inputs: int, seed: int
) -> None:
    weight, hessian = layer(rows, inputs, seed)
    made, again = (rounding(weight, grid, hessian) for _ in range(2))
    lowest, highest = grid.levels
    assert made.codes.dtype == torch.int8
    assert made.codes.shape == weight.shape
    assert lowest <= int(made.codes.min()) <= int(made.codes.max()) <= highest
    assert made.scale.shape == ((rows,) if grid.bits == 8 else (rows, grid.groups(inputs)))
    assert torch.equal(made.codes, again.codes)
    assert torch.equal(made.scale, again.scale)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_magnitude_is_the_outermost_code(sign: float) -> None:
    weight = torch.linspace(-0.5, 1.0, 32)[None] * sign
    made = Nearest()(weight, Grid(4, 32))
    assert made.codes[0, -1] == -8
    assert made.scale.item() == -sign / 8
    assert made.codes[0, 0] == 4


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_searched_scales_err_less_in_every_row(grid: Grid) -> None:
    weight, _ = layer(16, 256)
    for nearest, searched, row in zip(
        Nearest()(weight, grid).decoded(), MseClip()(weight, grid).decoded(), weight, strict=True
    ):
        assert (searched - row).square().sum() <= (nearest - row).square().sum() * (1 + 1e-6)
    if grid.bits == 4:
        assert weight_error(weight, MseClip()(weight, grid)) < 0.95 * weight_error(
            weight, Nearest()(weight, grid)
        )


def test_searching_in_chunks_is_searching_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = layer(33, 200)
    whole = MseClip()(weight, Grid(4, 32))
    monkeypatch.setattr("dualscale_mamba.rounding.mse.CHUNK_ELEMENTS", 700)
    parts = MseClip()(weight, Grid(4, 32))
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scale, parts.scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("inputs", [128, 200])
def test_gptq_errs_less_in_the_output(grid: Grid, act_order: bool, inputs: int) -> None:
    weight, hessian = layer(24, inputs)
    nearest = output_error(weight, Nearest()(weight, grid), hessian)
    assert output_error(weight, Gptq(act_order=act_order)(weight, grid, hessian), hessian) < 0.7 * nearest


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_know_nothing_of_each_other_leave_nearest(grid: Grid, act_order: bool) -> None:
    weight, _ = layer(6, 200)
    hessian = torch.diag(torch.rand(200, generator=torch.Generator().manual_seed(3)) + 0.1)
    made, nearest = Gptq(act_order=act_order, scale=Nearest())(weight, grid, hessian), Nearest()(weight, grid)
    assert torch.equal(made.codes, nearest.codes)
    assert torch.equal(made.scale, nearest.scale)


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_inputs_are_rounded_to_nearest(act_order: bool) -> None:
    weight, hessian = layer(6, 64)
    dead = [0, 5, 40]
    hessian[dead] = 0.0
    hessian[:, dead] = 0.0
    made, nearest = (
        Gptq(act_order=act_order, scale=Nearest())(weight, Grid(8), hessian),
        Nearest()(weight, Grid(8)),
    )
    assert torch.equal(made.codes[:, dead], nearest.codes[:, dead])


def test_inputs_of_few_tokens_are_damped_until_they_can_be_decomposed() -> None:
    weight, _ = layer(6, 64)
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) * 1e3
    hessian = row.T @ row  # of rank one
    made = Gptq(damping=1e-9)(weight, Grid(4, 32), hessian)
    assert made.decoded().isfinite().all()


def test_blocks_of_updates_do_not_change_the_result() -> None:
    weight, hessian = layer(12, 264)
    errors = [
        output_error(weight, Gptq(block_size=size)(weight, Grid(4, 64), hessian), hessian)
        for size in (32, 64, 512)
    ]
    assert max(errors) < 1.01 * min(errors)  # sums in another order may turn a code at a tie


def test_the_factor_is_that_of_the_inverse() -> None:
    _, hessian = layer(2, 48)
    factor = inverse_factor(hessian, 0.01)
    assert torch.equal(factor, factor.triu())
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(48)
    torch.testing.assert_close((factor.T @ factor).double(), damped.double().inverse(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (None, "second moments"),
        (torch.eye(7), "second moments"),
        (torch.full((8, 8), torch.nan), "not finite"),
        (torch.zeros(8, 8), "every input"),
        (torch.eye(8) - 200 * torch.ones(8, 8).triu(1) - 200 * torch.ones(8, 8).tril(-1), "semi-definite"),
    ],
)
def test_what_is_no_second_moment_is_refused(hessian: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gptq()(torch.ones(2, 8), Grid(8), hessian)


@pytest.mark.parametrize(
    ("rounding", "settings_", "key"),
    [
        (Gptq, {"damping": 0.0}, "damping"),
        (Gptq, {"block_size": 100}, "block_size"),
        (MseClip, {"narrowest": 1.0}, "narrowest"),
        (MseClip, {"steps": 1}, "steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(rounding: type, settings_: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=f"rounding.{key}"):
        rounding(**settings_)
