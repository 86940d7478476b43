"""Block after block: every layer sees its own inputs, made by the rounded blocks before it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.quantization.pipeline import prepare
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight
from dualscale_mamba.rounding.gptq import Gptq
from dualscale_mamba.rounding.hessians import InputProduct, quantize_sequentially
from dualscale_mamba.rounding.nearest import Nearest

MODELS = ["embedded:mamba1-tiny", "embedded:mamba2-tiny"]


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest) -> MambaLM:
    model = load_pretrained(request.param).model
    assert isinstance(model, MambaLM)
    return model


@pytest.fixture
def model(loaded: MambaLM) -> MambaLM:
    own = copy.deepcopy(loaded)
    own.tie()
    return own


@pytest.fixture
def batches(loaded: MambaLM) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, loaded.config.vocab_size, (2, 80), generator=generator) for _ in range(2)]


class Recording(Nearest):
    """Nearest, that keeps what it was given."""

    def __init__(self) -> None:
        object.__setattr__(self, "seen", [])

    @property
    def needs_inputs(self) -> bool:
        return True

    def __call__(self, weight: Tensor, grid: Grid, hessian: Tensor | None = None) -> QuantizedWeight:
        self.seen.append(hessian)  # type: ignore[attr-defined]
        return super().__call__(weight, grid)


def seen_by(model: MambaLM, name: str, batches: list[Tensor]) -> Tensor:
    """The second moments of the inputs of a layer, taken from the calls of the layer itself."""
    rows: list[Tensor] = []
    layer = model.weight_layers()[name]
    handle = layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].detach()))
    for batch in batches:
        model(batch)
    handle.remove()
    x = torch.cat([r.reshape(-1, r.shape[-1]) for r in rows]).double()
    return (x.T @ x / len(x)).float()


def test_moments_are_those_of_all_rows() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    product = InputProduct()
    product.update(x[:24].reshape(2, 12, 6))
    product.update(x[24:])
    assert product.tokens == 40
    torch.testing.assert_close(product.hessian(), x.T @ x / 40)
    with pytest.raises(ValueError, match="saw no"):
        InputProduct().hessian()


@pytest.mark.parametrize("rotate", [False, True])
def test_every_layer_sees_its_own_inputs(model: MambaLM, batches: list[Tensor], rotate: bool) -> None:
    prepare(model, Recipe(family=model.config.family, rotate=rotate))
    last = len(model.blocks()) - 1
    names = [name for name in model.weight_layers() if name.startswith(f"layers.{last}.")] + ["lm_head"]
    before = {f"layers.{i}.mixer.in_proj": Grid(4, 32) for i in range(last)}
    first = copy.deepcopy(model)
    quantize_sequentially(first, batches, before, Nearest())
    expected = [seen_by(first, name, batches) for name in names[:-1]]
    recording = Recording()
    quantize_sequentially(model, batches, before | dict.fromkeys(names, Grid(8)), recording)
    found = recording.seen[-len(names) :]  # type: ignore[attr-defined]
    for hessian, other in zip(found, expected, strict=False):
        torch.testing.assert_close(hessian, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    head = seen_by(model, "lm_head", batches)  # its inputs come from blocks that are all rounded now
    torch.testing.assert_close(found[-1], head, rtol=1e-3, atol=1e-4 * float(head.abs().max()))


def test_what_is_planned_is_rounded_and_nothing_else(model: MambaLM, batches: list[Tensor]) -> None:
    plan = {"layers.0.mixer.in_proj": Grid(4, 64), "layers.1.mixer.out_proj": Grid(8), "embedding": Grid(8)}
    made = quantize_sequentially(model, batches, plan, Gptq())
    assert set(made) == set(plan)
    for name, layer in model.weight_layers().items():
        assert layer.grid == plan.get(name)
        if name in plan:
            assert torch.equal(layer.decoded_weight(), made[name].decoded())
    assert all(site.statistic is None for site in model.sites().values())


def test_twice_the_same_bits(model: MambaLM, batches: list[Tensor]) -> None:
    plan = {name: Grid(4, 32) for name in model.weight_layers() if name.startswith("layers.")}
    other = copy.deepcopy(model)
    made, again = (quantize_sequentially(m, batches, plan, Gptq(act_order=True)) for m in (model, other))
    assert all(torch.equal(made[name].codes, again[name].codes) for name in plan)
    assert all(torch.equal(made[name].scale, again[name].scale) for name in plan)


def test_nearest_needs_no_text(model: MambaLM) -> None:
    plan = {name: Grid(8) for name in model.weight_layers() if name != "lm_head"}
    weights = {name: layer.weight for name, layer in model.weight_layers().items()}
    made = quantize_sequentially(model, [], plan, Nearest())
    assert all(torch.equal(made[name].codes, Nearest()(weights[name], Grid(8)).codes) for name in plan)


def test_without_text_gptq_says_what_is_wrong(model: MambaLM) -> None:
    with pytest.raises(ValueError, match="saw no floating-point inputs"):
        quantize_sequentially(model, [], {"layers.0.mixer.in_proj": Grid(8)}, Gptq())


def test_a_layer_that_is_not_there_is_named(model: MambaLM) -> None:
    with pytest.raises(KeyError, match=r"layers\.9\.mixer\.gate"):
        quantize_sequentially(model, [], {"layers.9.mixer.gate": Grid(8)}, Nearest())


def test_output_errs_less_than_with_nearest(model: MambaLM, batches: list[Tensor]) -> None:
    """||X (W - Q)^T|| of real layers, over their real inputs."""
    plan = {name: Grid(4, 128) for name in model.weight_layers() if name.startswith("layers.0.")}
    weights = {name: model.weight_layers()[name].weight.double() for name in plan}
    recording = Recording()
    nearest = quantize_sequentially(copy.deepcopy(model), batches, plan, recording)
    hessians = dict(zip(plan, recording.seen, strict=True))  # type: ignore[attr-defined]
    made = quantize_sequentially(model, batches, plan, Gptq())

    def error(name: str, rounded: QuantizedWeight) -> float:
        lost = weights[name] - rounded.decoded().double()
        return float(((lost @ hessians[name].double()) * lost).sum())

    for name in plan:
        assert error(name, made[name]) < 0.85 * error(name, nearest[name]), name
