"""Trials change nothing that stays, and measure what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dualscale_mamba import ops
from dualscale_mamba.evaluation.scoring import compare
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.profiling.memory import is_tied, weights
from dualscale_mamba.quantization import sensitivity
from dualscale_mamba.quantization.allocation import allocate
from dualscale_mamba.quantization.layer_costs import Decision, Sizes, Stopwatch
from dualscale_mamba.quantization.pipeline import convert, prepare_and_calibrate
from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe
from dualscale_mamba.quantization.sensitivity import (
    SITES_ALONE,
    Bench,
    Found,
    Text,
    measure,
    quantized,
    restored,
    rounding_without_inputs,
    trials,
)
from dualscale_mamba.rounding.nearest import Nearest
from dualscale_mamba.sites import EMBEDDING, HEAD

FAMILIES = {"mamba1": "random:tiny", "mamba2": "random:mamba2-tiny"}
WORDS = ("w8a8", "w4a8", "w4a16", "w8a16")
OUTER = ("w8a16", "w4a16")


@pytest.fixture(params=FAMILIES)
def bench(request: pytest.FixtureRequest) -> Bench:
    family = request.param
    model: MambaLM = load_pretrained(FAMILIES[family]).model
    windows = torch.randint(0, 4096, (2, 17), generator=torch.Generator().manual_seed(0))
    recipe = Recipe(family=family, weights=WeightRecipe(group_size=32))
    with ops.implementation("reference"):
        calibration = prepare_and_calibrate(model, [windows], recipe)
        with torch.no_grad():
            texts = [Text.read(model, windows, model(windows[:, :-1]))]
        yield Bench(model, calibration, recipe, texts)


def whole(model: MambaLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_model_is_restored_bitwise(bench: Bench) -> None:
    before, tied = whole(bench.model), is_tied(bench.model)
    assert tied
    measure(bench, trials(bench.model, WORDS, OUTER, "layer"), {})
    after = bench.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert is_tied(bench.model)
    assert all(site.code is None for site in bench.model.sites().values())
    assert bench.divergence() == pytest.approx(0.0, abs=1e-12)


def test_it_is_restored_after_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole(bench.model)

    def killed(*_: object) -> None:
        assert bench.model.weight_layers()[EMBEDDING].is_quantized
        raise KeyboardInterrupt

    monkeypatch.setattr(sensitivity, "turn_on", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(bench, trials(bench.model, ("w4a16",), OUTER, "block"), {SITES_ALONE: {"w16a16": 0.0}})
    after = bench.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_divergence_is_that_of_an_evaluation(bench: Bench) -> None:
    windows = torch.cat([bench.texts[0].ids, bench.texts[0].ids[:, :1]], 1)
    logits = bench.model(windows[:, :-1])
    with restored(bench.model):
        convert(bench.model, bench.calibration, bench.recipe)
        expected = float(compare(bench.model, logits, windows).kl.mean())
        assert expected > 1e-6
        assert bench.divergence() == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("layer", ["layers.1.mixer.in_proj", HEAD])
def test_a_trial_begins_where_it_differs(bench: Bench, layer: str) -> None:
    word = "w4a16" if layer == HEAD else "w4a8"
    own = replace(
        bench.recipe, weights=WeightRecipe(bits=None, group_size=32), sites=(), layers={layer: word}
    )
    with quantized(bench.model, bench.calibration, own, [layer]):
        assert bench.first(layer) > 0
        assert bench.divergence(bench.first(layer)) == bench.divergence(0) > 0


def test_a_killed_run_goes_on(bench: Bench) -> None:
    wanted = trials(bench.model, WORDS, OUTER, "block")
    kept: list[Found] = []

    def kill(found: Found) -> None:
        kept.append({unit: dict(words) for unit, words in found.items()})
        if len(kept) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(bench, wanted, {}, kill)
    resumed: list[Found] = []
    found = measure(bench, wanted, kept[-1], lambda now: resumed.append(now))
    assert len(resumed) == 1 + len(wanted) - 4
    assert found == measure(bench, wanted, {})
    assert found[SITES_ALONE]["w16a16"] > 0


def test_fewer_bits_diverge_more(bench: Bench) -> None:
    found = measure(bench, trials(bench.model, WORDS, OUTER, "block"), {})
    for unit, words in found.items():
        if unit not in (SITES_ALONE, EMBEDDING, HEAD):
            assert words["w4a16"] > words["w8a16"] > 0, unit
            assert words["w8a8"] > words["w8a16"], unit
    assert found[HEAD]["w4a16"] > found[HEAD]["w8a16"]


def test_x_proj_has_no_input_of_its_own() -> None:
    """The SSM input's code belongs to the scan too, and is measured with the sites of no layer."""
    model = load_pretrained(FAMILIES["mamba1"]).model
    wanted = {trial.unit: trial.widths for trial in trials(model, ("w4a8",), (), "layer")}
    assert "layers.0.mixer.dt_proj" not in wanted, "4 inputs cannot be packed in eights"
    assert EMBEDDING not in wanted
    blocks = trials(model, ("w4a8",), (), "block")
    assert [trial.unit for trial in blocks] == ["layers.0", "layers.1"]
    assert blocks[0].widths["layers.0.mixer.dt_proj"] == "w8a8"
    assert blocks[0].widths["layers.0.mixer.x_proj"] == "w4a8"


def test_trials_round_without_inputs() -> None:
    class Needy(Nearest):
        @property
        def needs_inputs(self) -> bool:  # type: ignore[override]
            return True

    recipe = Recipe(rounding=Needy())
    assert type(rounding_without_inputs(recipe).rounding) is Nearest
    assert rounding_without_inputs(Recipe()) == Recipe()


def test_costs_are_those_of_the_converted_model(bench: Bench) -> None:
    """Bytes of the decided layers, and their bits, against the tensors of a model with these widths."""
    wanted = trials(bench.model, WORDS, OUTER, "layer")
    found = {trial.unit: dict.fromkeys(WORDS + OUTER, 0.0) for trial in wanted}
    sizes = Sizes(bench.model, bench.recipe.weights)
    decision = Decision(wanted, found, sizes, tied=True)
    for budget in (4.8, 6.0, 9.0):
        made = allocate(decision.options(sizes.bits, scale=decision.weights), budget)
        assert made.cost == pytest.approx(decision.total(made.widths, sizes.bits) / decision.weights)
        with restored(bench.model):
            convert(bench.model, bench.calibration, replace(bench.recipe, layers=made.widths))
            bench.model.tie()
            parts = weights(bench.model)
            stored = parts["embedding"] + parts["projections"]
        assert stored == decision.total(made.widths, sizes.bytes)


def test_a_tied_pair_costs_once_only_where_its_widths_are_equal(bench: Bench) -> None:
    wanted = trials(bench.model, ("w8a8",), OUTER, "block")
    found = {trial.unit: dict.fromkeys(WORDS + OUTER, 1.0) for trial in wanted}
    sizes = Sizes(bench.model, bench.recipe.weights)
    pairs = [o for o in Decision(wanted, found, sizes, tied=True).options(sizes.bytes) if HEAD in o.widths]
    assert len(pairs) == len(OUTER) ** 2
    costs = {(o.widths[EMBEDDING], o.widths[HEAD]): o.cost for o in pairs}
    assert costs["w8a16", "w4a16"] == costs["w8a16", "w8a16"] + costs["w4a16", "w4a16"]
    assert all(o.kl == 2.0 for o in pairs)
    apart = Decision(wanted, found, sizes, tied=False).options(sizes.bytes)
    assert {o.unit for o in apart} >= {EMBEDDING, HEAD}


def test_a_token_moves_what_is_stored(bench: Bench) -> None:
    sizes = Sizes(bench.model, bench.recipe.weights)
    name = "layers.0.mixer.in_proj"
    rows, columns = sizes.shape(name)
    assert sizes.moved(name, "w8a8") == sizes.bytes(name, "w8a8") + columns + 4 * rows
    assert sizes.moved(name, "w8a16") - sizes.moved(name, "w8a8") == 3 * columns
    assert sizes.moved(EMBEDDING, "w8a16") < sizes.bytes(EMBEDDING, "w8a16") / 500


def test_equal_shapes_are_timed_once(bench: Bench) -> None:
    watch = Stopwatch(Sizes(bench.model, bench.recipe.weights))
    first = watch("layers.0.mixer.out_proj", "w4a8")
    assert first > 0
    assert watch("layers.1.mixer.out_proj", "w4a8") == first
    assert watch(EMBEDDING, "w8a16") == 0
