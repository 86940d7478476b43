"""A block's token as one operator: the same bits as by the mixer, and only where everything suits it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import knee_code
from dualscale_mamba.formats.control import Control
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.models import joined
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.quantization.pipeline import convert, prepare_and_calibrate
from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe
from dualscale_mamba.states.store import Coding

WIDTHS = {"weights": WeightRecipe(4), "layers": {"*.dt_proj": "w8a8"}}
IDS = torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def compiled(reference: None) -> Iterator[None]:
    """The operator is only taken where kernels are."""
    with ops.implementation("compiled"):
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every device has the kernel; what it was asked for with."""
    made: list[bool] = []
    run: Callable[..., Any] = ops.mamba_layer_step

    def counted(**arguments: Any) -> Any:
        made.append(arguments["knee"])
        return run(**arguments)

    monkeypatch.setattr(ops, "mamba_layer_step", counted)
    monkeypatch.setattr(ops, "fits_layer_step", lambda *sizes: True)
    return made


def quantized(**changes: Any) -> MambaLM:
    """A small model with random weights."""
    model = load_pretrained("random:tiny").model
    assert isinstance(model, MambaLM)
    recipe = Recipe(**{"scale_mode": Dual(), **changes})
    convert(model, prepare_and_calibrate(model, [IDS], recipe), recipe)
    return model


def tokens(model: MambaLM) -> tuple[Tensor, list[Tensor]]:
    """Logits after a prompt and three tokens, and the states."""
    cache = model.allocate_cache(2)
    model(IDS[:, :5], cache)
    logits = [model.step(IDS[:, at], cache) for at in (5, 6, 7)]
    return torch.stack(logits), [each for layer in cache.layers for each in (layer.conv, layer.ssm)]


def test_same_bits(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized()
    got = tokens(model)
    assert calls == [True] * 6  # two layers, three tokens
    monkeypatch.setattr(ops, "fits_layer_step", lambda *sizes: False)
    want = tokens(model)
    assert len(calls) == 6
    assert torch.equal(got[0], want[0])
    for one, other in zip(got[1], want[1], strict=True):
        assert torch.equal(one, other)


def test_four_bits_but_for_dt_proj(calls: list[bool]) -> None:
    """The recipe of W4A8: a model's rank is no whole number of groups."""
    logits, _ = tokens(quantized(**WIDTHS))
    assert calls == [True] * 6
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"linear_input_scale": "per_token"},
        {"rotate": False},
        {"x_proj_reads": "decoded"},
        {"layers": {"*.dt_proj": "w8a16"}},
        {"scale_mode": Control(), "scale_mode_sites": ("dt_input",)},
        {"scale_mode": DualSymmetric()},
        {"sites": ("ssm_input",)},
    ],
    ids=str,
)
def test_by_the_mixer(changes: dict[str, Any], calls: list[bool]) -> None:
    """Scales of rows, no rotation, floats somewhere, a knee where none may be, a table."""
    model = quantized(**changes)
    logits, _ = tokens(model)
    assert not calls
    assert torch.isfinite(logits).all()


def test_not_with_coded_states(calls: list[bool]) -> None:
    model = quantized()
    one = torch.ones(1, dtype=torch.float64)
    rows = knee_code(one / 127, 0 * one, 127 * one, one).rows
    for layer, block in enumerate(model.blocks()):
        block.mixer.state_store.turn_on(Coding(), rows, None, layer)
    tokens(model)
    assert not calls


def test_not_of_many_values(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond some number eight kernels are faster."""
    monkeypatch.setattr(joined, "MOST_VALUES", 2 * quantized().config.d_inner - 1)
    tokens(quantized())
    assert not calls


def test_not_by_the_reference(calls: list[bool]) -> None:
    with ops.implementation("reference"):
        tokens(quantized())
    assert not calls
