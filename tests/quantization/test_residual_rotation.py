"""A rotated residual stream: the same function, unit norms, an untied head; once only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.granularity import PerGroup
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.quantization.clusters import arrange
from dualscale_mamba.quantization.pipeline import prepare
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.rotation import base_for, rotate_residual, rotate_rows
from dualscale_mamba.quantization.weights import Grid
from dualscale_mamba.rounding.nearest import Nearest

MODELS = ["embedded:mamba1-tiny", "embedded:mamba2-tiny", "random:tiny", "random:mamba2-tiny"]
LARGER = ["mamba1-27m", "mamba2-27m"]
TOLERANCE = 1e-4


def load(source: str) -> MambaLM:
    model = load_pretrained(source).model
    assert isinstance(model, MambaLM)
    return model


def tokens_for(model: MambaLM) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (2, 96), generator=torch.Generator().manual_seed(5))


def make_difficult(model: MambaLM) -> None:
    """Norm weights that are not one, biases, outlier channels: what a rotation must carry along."""
    generator = torch.Generator().manual_seed(1)
    for block in model.blocks():
        block.norm.weight.data = torch.rand(block.norm.weight.shape, generator=generator) + 0.5
        out_proj = block.mixer.out_proj
        out_proj.bias = nn.Parameter(torch.randn(out_proj.out_features, generator=generator) * 0.1)
        out_proj.weight.data[3] *= 20.0
    norm = model.backbone.norm_f
    norm.weight.data = torch.rand(norm.weight.shape, generator=generator) * 2.0


def untie(model: MambaLM) -> None:
    generator = torch.Generator().manual_seed(2)
    model.config = dataclasses.replace(model.config, tie_embeddings=False)
    noise = torch.randn(model.lm_head.weight.shape, generator=generator) * 0.02
    model.lm_head.weight = nn.Parameter(model.lm_head.weight + noise, requires_grad=False)


@pytest.mark.parametrize("source", MODELS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("out_proj", [True, False])
def test_the_function_stays(source: str, tied: bool, out_proj: bool) -> None:
    model = load(source)
    make_difficult(model)
    if not tied:
        untie(model)
    ids = tokens_for(model)
    before = model(ids)
    embedding = model.backbone.embedding.weight.clone()
    prepare(model, Recipe(family=model.config.family, rotate=out_proj, rotate_residual=True))
    torch.testing.assert_close(model(ids), before, rtol=0, atol=TOLERANCE)
    assert not model.config.tie_embeddings
    assert model.lm_head.weight is not model.backbone.embedding.weight
    assert not torch.equal(model.backbone.embedding.weight, embedding)
    norms = [model.backbone.norm_f, *(block.norm for block in model.blocks())]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)


@pytest.mark.parametrize("name", LARGER)
def test_the_function_of_trained_models_stays(shared: Path, name: str) -> None:
    model = load(f"{shared / 'checkpoints' / name}/")
    ids = tokens_for(model)
    before = model(ids)
    prepare(model, Recipe(family=model.config.family, rotate=True, rotate_residual=True))
    torch.testing.assert_close(model(ids), before, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("source", ["embedded:mamba2-tiny", "random:mamba2-tiny"])
def test_reordered_channels_rotate_as_well(source: str) -> None:
    model = load(source)
    make_difficult(model)
    ids = tokens_for(model)
    before = model(ids)
    recipe = Recipe(family="mamba2", granularity=PerGroup(2, 2), rotate=True, rotate_residual=True)
    prepare(model, recipe, arrange(model, [ids], recipe))
    torch.testing.assert_close(model(ids), before, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("source", MODELS[:2])
def test_steps_are_those_of_the_unrotated_model(source: str) -> None:
    model = load(source)
    ids = tokens_for(model)
    before = model(ids)
    rotate_residual(model)
    cache = model.allocate_cache(len(ids))
    model(ids[:, :-1], cache)
    torch.testing.assert_close(model.step(ids[:, -1], cache), before[:, -1], rtol=0, atol=TOLERANCE)


def test_outliers_of_the_stream_are_spread() -> None:
    model = load("random:tiny")
    model.backbone.embedding.weight.data[:, 5] *= 100.0
    stream = model.backbone.embedding.weight
    spread = stream.abs().amax(1).mean() / stream.square().mean().sqrt()
    rotate_residual(model)
    stream = model.backbone.embedding.weight
    assert stream.abs().amax(1).mean() / stream.square().mean().sqrt() < 0.3 * spread


def test_twice_is_refused() -> None:
    model = load("random:tiny")
    rotate_residual(model)
    with pytest.raises(ValueError, match="rotated already"):
        rotate_residual(model)


def test_rounded_weights_are_refused() -> None:
    model = load("random:tiny")
    head = model.lm_head
    head.set_quantized(Nearest()(head.weight, Grid(8)))
    with pytest.raises(ValueError, match="before the weights are rounded"):
        rotate_residual(model)


def test_a_width_without_a_hadamard_matrix_is_refused_by_key() -> None:
    with pytest.raises(ConfigError, match=r"precision\.rotate_residual=True.*36 channels"):
        base_for(36, "precision.rotate_residual")


def test_rows_turn_as_columns_do() -> None:
    weight = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    base = base_for(24)
    dense = rotate_rows(torch.eye(24), base)
    torch.testing.assert_close(rotate_rows(weight, base), dense @ weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense @ dense.T, torch.eye(24), rtol=1e-5, atol=1e-5)
