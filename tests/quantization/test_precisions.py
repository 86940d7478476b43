"""Every width on both families: the same function, whatever computes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from dualscale_mamba import ops
from dualscale_mamba.configuration import instantiate
from dualscale_mamba.configuration.startup import CONF
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.models.weight_layer import CODES
from dualscale_mamba.profiling.memory import stored_tensors
from dualscale_mamba.quantization.calibration import Calibration, run_calibration
from dualscale_mamba.quantization.pipeline import convert, prepare, quantize_weights, rounding_key
from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe
from dualscale_mamba.quantization.weight_pass import bits_per_weight
from dualscale_mamba.quantization.widths import parse
from dualscale_mamba.sites import INPUT_SITES, SITES, SSM_INPUT

Compose = Callable[..., DictConfig]
PRECISIONS = sorted(path.stem for path in (CONF / "precision").glob("*.yaml"))
MODES = {
    "single": "observer.percentile=99.99",
    "dual": "observer.percentile=99",
    "fp16": "observer.percentile=99",
}
# Bounds of the divergence from the unquantized model: a wrong kernel is far beyond all of them.
NEAR = {
    "none": 1e-9,
    "ssm_input": 2e-3,
    "w8a16": 2e-3,
    "w8a8": 5e-3,
    "w4a16": 0.04,
    "w4a8": 0.04,
    "mixed": 0.04,
}
# A sum in another order lets a few values round to the next code.
FLIPPED = 1.5e-3
TEXT = "The river runs through the old town, and in the spring the meadows beside it are green. " * 8


@dataclass
class Subject:
    """An embedded model and what it says of a text."""

    model: MambaLM
    tokens: torch.Tensor
    logits: torch.Tensor

    def quantized(self, recipe: Recipe) -> MambaLM:
        model = prepare(copy.deepcopy(self.model), recipe)
        calibration = (
            run_calibration(model, [self.tokens], recipe)
            if recipe.quantizes_activations
            else Calibration({}, 0)
        )
        convert(model, calibration, recipe, [self.tokens])
        return model


@pytest.fixture(scope="module", params=list(SITES))
def subject(request: pytest.FixtureRequest) -> Subject:
    pretrained = load_pretrained(f"embedded:{request.param}-tiny")
    assert isinstance(pretrained.model, MambaLM)
    tokens = torch.tensor(pretrained.tokenizer.encode(TEXT)[:128])[None]
    return Subject(pretrained.model, tokens, pretrained.model(tokens))


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> float:
    """Mean KL, nats a token."""
    expected, found = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def recipe_of(composed: Compose, subject: Subject, *overrides: str) -> Recipe:
    return instantiate.recipe(composed(f"model={subject.model.config.family}_tiny", *overrides))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_width_changes_the_bits_and_not_the_function(
    subject: Subject, composed: Compose, precision: str, mode: str
) -> None:
    tokens = subject.tokens
    recipe = recipe_of(composed, subject, f"precision={precision}", f"scale_mode={mode}", MODES[mode])
    model = subject.quantized(recipe)
    logits = model(tokens)
    assert divergence(subject.logits, logits) < NEAR[precision]
    with ops.implementation("reference"):
        assert divergence(model(tokens), logits) < FLIPPED
    # The very values that the codes stand for, multiplied in floating point.
    decoded = copy.deepcopy(model)
    for layer in decoded.weight_layers().values():
        layer.set_float(layer.decoded_weight())
    assert divergence(decoded(tokens), logits) < FLIPPED
    cache = model.allocate_cache(1)
    parts = [model(tokens[:, :40], cache)]
    parts += [model.step(tokens[:, t], cache)[:, None] for t in range(40, 64)]
    assert divergence(logits[:, :64], torch.cat(parts, 1)) < FLIPPED


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_scales_of_a_token(subject: Subject, composed: Compose, precision: str) -> None:
    recipe = recipe_of(composed, subject, f"precision={precision}", "precision.linear_input_scale=per_token")
    model = subject.quantized(recipe)
    assert {name.rpartition(".")[2] for name, site in model.sites().items() if site.per_token} == {
        "in_proj_input",
        "out_proj_input",
    }
    logits = model(subject.tokens)
    assert 0 < divergence(subject.logits, logits) < NEAR[precision]
    with ops.implementation("reference"):
        assert divergence(model(subject.tokens), logits) < FLIPPED


def test_the_ssm_input_keeps_its_code_where_layers_read_values(subject: Subject, composed: Compose) -> None:
    (carrier,) = SSM_INPUT[subject.model.config.family]
    for precision in ("w8a16", "w4a16"):
        model = subject.quantized(recipe_of(composed, subject, f"precision={precision}"))
        assert {name.rpartition(".")[2] for name, site in model.sites().items() if site.is_on} == {carrier}
        layers = model.weight_layers().items()
        assert all(layer.decodes for name, layer in layers if isinstance(layer, Linear) and name != "lm_head")


def test_patterns_decide_for_their_layers_alone(subject: Subject, composed: Compose) -> None:
    layers = "{layers.1.*: w8a8, layers.3.*: w8a16, *.out_proj: w4a16, layers.2.mixer.in_proj: w16a16, lm_head: w4a16}"
    overrides = ("precision=w4a8", f"+precision.layers={layers}", "precision.weights.embedding=8")
    recipe = recipe_of(composed, subject, *overrides, "precision.weights.group_size=64")
    model = subject.quantized(recipe)
    expected = {"layers.0.mixer.in_proj": "w4a8", "layers.1.mixer.in_proj": "w8a8", "layers.2.mixer.in_proj": "w16a16",
                "layers.3.mixer.in_proj": "w8a16", "layers.0.mixer.out_proj": "w4a16",
                "layers.1.mixer.out_proj": "w4a16", "lm_head": "w4a16", "embedding": "w8a16"}  # fmt: skip
    if subject.model.config.family == "mamba1":
        expected |= {"layers.0.mixer.x_proj": "w4a8", "layers.1.mixer.x_proj": "w8a8", "layers.3.mixer.x_proj": "w8a16",
                     "layers.0.mixer.dt_proj": "w8a8", "layers.3.mixer.dt_proj": "w8a16"}  # fmt: skip
    held, sites = model.weight_layers(), model.sites()
    kinds = {None: torch.float32, 8: torch.int8, 4: torch.uint8}
    for name, word in expected.items():
        layer, width = held[name], parse(word)
        assert recipe.width_of(name) == word
        stored = layer.weight if layer.weight_codes is None else layer.weight_codes
        assert (layer.bits, stored.dtype) == (width.weights, kinds[width.weights]), name
        assert layer.grid is None or layer.grid.group_size == (64 if width.weights == 4 else None)
        if name in ("lm_head", "embedding"):
            continue
        assert isinstance(layer, Linear)
        assert layer.decodes == (width.activations is None), name
        mixer, _, kind = name.rpartition(".")
        site = INPUT_SITES[model.config.family][kind]
        on = width.activations is not None or site in SSM_INPUT[model.config.family]
        assert sites[f"{mixer}.{site}"].is_on == on, name
    assert divergence(subject.logits, model(subject.tokens)) < 0.1


def test_a_pattern_turns_the_input_of_its_layer_on_where_all_else_is_floating(
    subject: Subject, composed: Compose
) -> None:
    overrides = ("precision=none", "scale_mode=fp16", "+precision.layers={layers.4.mixer.in_proj: w8a8}")
    recipe = recipe_of(composed, subject, *overrides)
    assert recipe.quantizes_activations
    model = subject.quantized(recipe)
    assert [name for name, site in model.sites().items() if site.is_on] == ["layers.4.mixer.in_proj_input"]
    assert [name for name, layer in model.weight_layers().items() if layer.is_quantized] == [
        "layers.4.mixer.in_proj"
    ]
    assert 0 < divergence(subject.logits, model(subject.tokens)) < NEAR["w8a8"]


@pytest.mark.parametrize("bits", [8, 4])
def test_embedding_and_head(subject: Subject, bits: int) -> None:
    """Each alone, then both: what a row stands for is what the lookup gives."""
    far = {8: 0.001, 4: 0.2}[bits]
    for names in ({"embedding": bits}, {"head": bits}, {"embedding": bits, "head": bits}):
        weights = WeightRecipe(None, **names)
        recipe = Recipe(
            subject.model.config.family, weights, activation_bits=None, scale_mode=Unquantized(), rotate=False
        )
        model = subject.quantized(recipe)
        embedding, head = model.backbone.embedding, model.lm_head
        assert (embedding.bits, head.bits) == (names.get("embedding"), names.get("head"))
        ids = torch.tensor([[3, 0], [3, 4095]])
        assert torch.equal(embedding(ids), embedding.decoded_weight()[ids])
        assert 0 < divergence(subject.logits, model(subject.tokens)) < far


def test_a_tied_head_shares_the_codes_of_the_embedding(subject: Subject) -> None:
    def stored(weights: WeightRecipe, rotate_residual: bool = False) -> MambaLM:
        family = subject.model.config.family
        return subject.quantized(Recipe(family, weights, rotate_residual=rotate_residual))

    def nbytes(model: MambaLM) -> int:
        return sum(t.nbytes for name, t in stored_tensors(model) if "embedding" in name or "lm_head" in name)

    assert subject.model.lm_head.weight is subject.model.backbone.embedding.weight
    tied = stored(WeightRecipe(8, 32, 4, 4))
    assert tied.lm_head.weight_codes is tied.backbone.embedding.weight_codes
    alone = stored(WeightRecipe(8, 32, 4, None))
    rows, columns = tied.lm_head.rows, tied.lm_head.columns
    assert nbytes(tied) == rows * (columns // 2 + 2 * columns // 32 + 4)
    assert nbytes(alone) == nbytes(tied) + rows * columns * 4
    two = stored(WeightRecipe(8, 32, 8, 4))
    assert nbytes(two) == nbytes(tied) + rows * (columns + 4 + 4)
    apart = stored(WeightRecipe(8, 32, 4, 4), rotate_residual=True)  # the head has taken the last norm in
    assert nbytes(apart) == 2 * nbytes(tied)
    assert torch.isfinite(apart(subject.tokens)).all()


def test_bits_of_a_weight_count_its_scales(subject: Subject) -> None:
    model = subject.quantized(Recipe(subject.model.config.family, WeightRecipe(8, 128, 8, 8)))
    weights = sum(layer.rows * layer.columns for layer in list(model.weight_layers().values())[:-1])
    rows = sum(layer.rows for layer in list(model.weight_layers().values())[:-1])
    assert bits_per_weight(model) == pytest.approx(8 + 32 * rows / weights)
    assert bits_per_weight(subject.model) == 32


def test_inputs_make_rounding_better(subject: Subject, composed: Compose) -> None:
    found = [
        divergence(subject.logits, subject.quantized(recipe)(subject.tokens))
        for rounding in ("nearest", "gptq")
        for recipe in [recipe_of(composed, subject, "precision=w4a16", f"rounding={rounding}")]
    ]
    assert found[1] < 0.8 * found[0]


def test_rounded_weights_are_kept_and_serve_every_scale_mode(
    subject: Subject, composed: Compose, tmp_path: Path
) -> None:
    def rounded(*overrides: str, batches: Sequence[torch.Tensor] = ()) -> tuple[str, MambaLM]:
        recipe = recipe_of(composed, subject, "precision=w4a8", "rounding=gptq", *overrides)
        model = prepare(copy.deepcopy(subject.model), recipe)
        key = rounding_key(["weights", "tokens"], model, recipe)
        quantize_weights(model, recipe, batches, tmp_path, key)
        return key, model

    key, first = rounded(batches=[subject.tokens])
    same, second = rounded("scale_mode=single", "observer=absmax", "precision.linear_input_scale=per_token")
    assert key == same  # and no text: they must have been read
    for name, layer in first.weight_layers().items():
        other = second.weight_layers()[name]
        assert layer.grid == other.grid
        if layer.weight_codes is not None:
            for part in CODES:
                assert torch.equal(getattr(layer, part), getattr(other, part)), (name, part)
    assert torch.equal(first(subject.tokens), second(subject.tokens))
    for override in ("rounding.act_order=true", "rounding.damping=0.02", "precision.rotate=false",
                     "precision.weights.group_size=64", "precision.weights.head=8", "precision.rotate_residual=true",
                     "+precision.layers.lm_head=w8a16"):  # fmt: skip
        assert rounded(override, batches=[subject.tokens])[0] != key, override
    (path,) = [path for path in (tmp_path / "weights").glob("*.safetensors") if path.stem == key]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="no floating-point inputs"):  # damaged: computed again, from no text
        rounded()
