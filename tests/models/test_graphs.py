"""Graphed models say bitwise what the models say; on the CPU a recording that runs again stands for the capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.models import graphs
from dualscale_mamba.models.capture import Recorded
from dualscale_mamba.models.generation import generate
from dualscale_mamba.models.graphs import GraphedLM, graphed
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.profiling.latency import Drive
from dualscale_mamba.quantization.pipeline import convert, prepare_and_calibrate
from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe

WIDTHS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "w8a8": {},
    "w4a8": {"weights": WeightRecipe(4, 64, 4, 4)},
}
SOURCES = {"mamba1": "embedded:mamba1-tiny", "mamba2": "embedded:mamba2-tiny"}
LENGTH, STEPS = 11, 5


def made(family: str, width: str, device: str) -> MambaLM:
    """A trained model of some width; half precision on a GPU."""
    types = {"dtype": torch.float16} if device == "cuda" else {}
    model = load_pretrained(SOURCES[family], device=device, **types).model
    assert isinstance(model, MambaLM)
    changes = WIDTHS[width]
    if changes is not None:
        layers = {"layers": {"*.dt_proj": "w8a8"}} if family == "mamba1" and "weights" in changes else {}
        recipe = Recipe(family=family, scale_mode=Dual(), **changes, **layers)
        convert(model, prepare_and_calibrate(model, [ids(model, 1, 24)], recipe), recipe)
    return model


def ids(model: MambaLM, batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator).to(model.device)


class Counted:
    """In the place of a capture: runs the work again, into the same tensor, as a replay does."""

    def __init__(self) -> None:
        self.captures = self.replays = self.drops = 0

    def record(self, work: Callable[[], Tensor], stream: Any, pool: Any, prompt: Tensor | None) -> Recorded:
        self.captures += 1
        work()
        result = torch.full_like(work(), torch.nan)

        def replay() -> None:
            self.replays += 1
            result.copy_(work())

        def drop() -> None:
            self.drops += 1

        return Recorded(replay, result, drop, pool, prompt)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Graphs may be made on the CPU, of recordings."""
    made = Counted()
    monkeypatch.setattr(graphs, "record", made.record)
    monkeypatch.setattr(graphs, "new_stream", lambda device: None)
    monkeypatch.setattr(graphs, "why_not", lambda model: None)
    return made


@pytest.fixture(params=["recorded", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where models lie: on the CPU with recordings in the place of captures, and on a GPU."""
    if request.param == "recorded":
        request.getfixturevalue("counted")
        yield "cpu"
        return
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    with ops.implementation("compiled"):
        yield "cuda"


def ungraphed(model: MambaLM, prompt: Tensor, steps: int = STEPS) -> list[Tensor]:
    """Logits behind the prompt, and behind each of the likeliest tokens after it."""
    cache = model.allocate_cache(len(prompt))
    said = [model(prompt, cache, last_only=True)[:, -1]]
    for _ in range(steps):
        said.append(model.step(said[-1].argmax(-1), cache))
    return said


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("family", SOURCES)
def test_bitwise_what_the_model_says(kind: str, family: str, width: str) -> None:
    """Prefills and steps of two batches, each size of two prompts in turn: states begin empty."""
    model = made(family, width, kind)
    fast = GraphedLM(model)
    for batch in (1, 3):
        fast.prepare(batch, LENGTH)
        for seed in (1, 2):
            prompt = ids(model, batch, LENGTH, seed)
            expected = ungraphed(model, prompt)
            cache = fast.allocate_cache(batch)
            found = [fast(prompt, cache, last_only=True)[:, -1]]
            for _ in range(STEPS):
                found.append(fast.step(found[-1].argmax(-1), cache))
            assert same(found, expected)
            assert cache.position == LENGTH + STEPS
            greedy = fast.greedy(prompt, STEPS + 1)
            assert greedy.tolist() == torch.stack([each.argmax(-1) for each in expected], 1).tolist()
    assert fast.captured == ((1, LENGTH), (1, 0), (3, LENGTH), (3, 0))


@pytest.mark.parametrize("family", SOURCES)
def test_two_texts_in_turn(kind: str, family: str) -> None:
    """Caches of one size take turns in the static states, and none is mixed into another."""
    model = made(family, "w8a8", kind)
    fast = GraphedLM(model)
    fast.prepare(2, LENGTH)
    prompts = [ids(model, 2, LENGTH, seed) for seed in (3, 4)]
    expected = [ungraphed(model, prompt) for prompt in prompts]
    caches = [fast.allocate_cache(2) for _ in prompts]
    found = [
        [fast(prompt, cache, last_only=True)[:, -1]] for prompt, cache in zip(prompts, caches, strict=True)
    ]
    for _ in range(STEPS):
        for said, cache in zip(found, caches, strict=True):
            said.append(fast.step(said[-1].argmax(-1), cache))
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert [cache.position for cache in caches] == [LENGTH + STEPS] * 2


def test_a_capture_in_the_midst_of_a_text_changes_nothing(kind: str) -> None:
    model = made("mamba1", "w8a8", kind)
    fast = GraphedLM(model)
    prompt = ids(model, 1, LENGTH)
    expected = ungraphed(model, prompt)
    cache = fast.allocate_cache(1)
    found = [fast(prompt, cache, last_only=True)[:, -1]]  # not prepared: nothing is captured yet
    assert fast.captured == ()
    for number in range(STEPS):
        found.append(fast.step(found[-1].argmax(-1), cache))
        fast.prepare(1, 3 + number)
    assert same(found, expected)


def test_prefills_that_are_not_replayed(kind: str) -> None:
    """All positions, a second part of a text, and no cache at all."""
    model = made("mamba2", "w8a8", kind)
    fast = GraphedLM(model)
    fast.prepare(1, LENGTH)
    prompt = ids(model, 1, LENGTH)
    cache, own = fast.allocate_cache(1), model.allocate_cache(1)
    assert torch.equal(fast(prompt, cache), model(prompt, own))
    assert torch.equal(fast(prompt, cache, last_only=True), model(prompt, own, last_only=True))
    assert cache.position == own.position == 2 * LENGTH
    assert torch.equal(fast.step(prompt[:, 0], cache), model.step(prompt[:, 0], own))
    assert torch.equal(fast(prompt), model(prompt))


def test_a_step_from_empty_states(kind: str) -> None:
    model = made("mamba1", "w8a8", kind)
    fast = GraphedLM(model)
    token = ids(model, 2, 1)[:, 0]
    for _ in range(2):
        assert torch.equal(
            fast.step(token, fast.allocate_cache(2)), model.step(token, model.allocate_cache(2))
        )


def test_it_generates(kind: str) -> None:
    model = made("mamba2", "none", kind)
    prompt = ids(model, 2, LENGTH)
    for settings in ({}, {"temperature": 0.7, "top_p": 0.9, "seed": 3}, {"eos_id": 1}):
        with torch.inference_mode():
            expected = torch.stack(list(generate(model, prompt, max_new_tokens=6, **settings)))
            found = torch.stack(list(generate(GraphedLM(model), prompt, max_new_tokens=6, **settings)))
        assert torch.equal(found, expected)


def test_what_is_timed_makes_the_same_tokens(kind: str) -> None:
    model = made("mamba2", "w8a8", kind)
    fast = GraphedLM(model)
    plain, replayed = (Drive(each, 2, LENGTH, model.device) for each in (model, fast))
    assert torch.equal(replayed.prefill(), plain.prefill())
    for drive in (plain, replayed):
        drive.fill()
    for _ in range(2):
        assert torch.equal(replayed.step(), plain.step())
    assert torch.equal(replayed.steps(4), plain.steps(4))
    assert torch.equal(replayed.to_the_last(4), plain.to_the_last(4))
    assert fast.captured == ((2, LENGTH), (2, 0))


def test_results_are_the_callers_own(kind: str) -> None:
    model = made("mamba1", "none", kind)
    fast = GraphedLM(model)
    fast.prepare(1, LENGTH)
    cache, prompt = fast.allocate_cache(1), ids(model, 1, LENGTH)
    first = fast(prompt, cache, last_only=True)
    step = fast.step(prompt[:, 0], cache)
    token = fast.greedy_step(prompt[:, 1], cache)
    kept = [first.clone(), step.clone(), token.clone()]
    fast(ids(model, 1, LENGTH, 7), fast.allocate_cache(1), last_only=True)
    for seed in range(3):
        fast.greedy_step(ids(model, 1, 1, seed)[:, 0], cache)
    assert same([first, step, token], kept)


def test_inside_and_outside_of_inference_mode(kind: str) -> None:
    model = made("mamba1", "w8a8", kind)
    prompt = ids(model, 1, LENGTH)
    expected = ungraphed(model, prompt)
    with torch.inference_mode():
        fast = GraphedLM(model)
        fast.prepare(1, LENGTH)
        cache = fast.allocate_cache(1)
        found = [fast(prompt, cache, last_only=True)[:, -1]]
    for number in range(STEPS):
        with torch.inference_mode(number % 2 == 0):
            found.append(fast.step(found[-1].argmax(-1), cache))
    assert same(found, expected)


def test_the_graph_not_used_for_longest_goes_first(small: MambaLM, counted: Counted) -> None:
    fast = GraphedLM(small, limit=3)
    fast.prepare(1, 4, 5)
    fast.prepare(1, 4)
    assert (fast.captured, counted.captures) == (((1, 5), (1, 0), (1, 4)), 3)
    fast.prepare(2)
    assert (fast.captured, counted.drops) == (((1, 0), (1, 4), (2, 0)), 1)
    fast.prepare(2, 4)
    fast.prepare(3)
    assert fast.captured == ((2, 0), (2, 4), (3, 0))
    assert set(fast._slots) == {2, 3}  # no graph is left of batch 1, so its states are gone too
    with pytest.raises(ConfigError, match="limit=3: allowed is 4 or more"):
        fast.prepare(1, 4, 5, 6)


def test_a_text_outlives_the_graphs_of_its_size(small: MambaLM, counted: Counted) -> None:
    fast = GraphedLM(small, limit=1)
    prompts = {batch: ids(small, batch, LENGTH, batch) for batch in (1, 2, 3)}
    expected = {batch: ungraphed(small, prompt) for batch, prompt in prompts.items()}
    caches = {batch: fast.allocate_cache(batch) for batch in prompts}
    found = {b: [fast(prompt, caches[b], last_only=True)[:, -1]] for b, prompt in prompts.items()}
    assert len(fast._slots) == 1  # without a graph the states of one size are kept, no more
    for _ in range(STEPS):
        for batch, said in found.items():
            said.append(fast.step(said[-1].argmax(-1), caches[batch]))
    assert counted.captures == 3 * STEPS
    assert all(same(found[batch], expected[batch]) for batch in prompts)


def test_a_text_that_is_over_is_not_kept(small: MambaLM, counted: Counted) -> None:
    fast = GraphedLM(small)
    first, second = fast.allocate_cache(1), fast.allocate_cache(1)
    token = ids(small, 1, 1)[:, 0]
    fast.step(token, first)
    fast.step(token, second)
    assert first.apart is not None
    fast.step(token, first)
    assert first.apart is None
    assert second.apart is not None
    del first
    fast.step(token, second)
    assert second.apart is None


def test_a_prepared_prefill_is_one_replay(small: MambaLM, counted: Counted) -> None:
    fast = GraphedLM(small)
    fast.prepare(1, LENGTH)
    fast(ids(small, 1, LENGTH), fast.allocate_cache(1), last_only=True)
    assert counted.replays == 1
    fast(ids(small, 1, LENGTH - 1), fast.allocate_cache(1), last_only=True)
    assert counted.replays == 1
    fast.greedy(ids(small, 1, LENGTH), 4)
    assert (counted.replays, counted.captures) == (5, 2)


@pytest.mark.parametrize("change", ["code", "weight", "moved", "buffer"])
def test_a_model_that_changes_is_refused(counted: Counted, change: str) -> None:
    model = made("mamba1", "w8a8", "cpu")
    fast = GraphedLM(model)
    fast.prepare(1, 4)
    cache, token = fast.allocate_cache(1), ids(model, 1, 1)[:, 0]
    fast.step(token, cache)
    mixer = model.blocks()[0].mixer
    if change == "code":
        mixer.z.set_code(None)
    elif change == "weight":
        model.backbone.norm_f.weight = torch.nn.Parameter(
            torch.ones(model.config.d_model), requires_grad=False
        )
    elif change == "moved":
        model.backbone.norm_f.weight.data = model.backbone.norm_f.weight.data.clone()
    else:
        mixer.in_proj.weight_scale = mixer.in_proj.weight_scale.clone()
    for call in (
        lambda: fast.step(token, cache),
        lambda: fast(ids(model, 1, 4), fast.allocate_cache(1), last_only=True),
        lambda: fast.prepare(2),
    ):
        with pytest.raises(ConfigError, match=r"cuda_graphs=True: .*Make another GraphedLM"):
            call()


def test_weights_may_change_in_place(kind: str) -> None:
    model = made("mamba1", "none", kind)
    fast = GraphedLM(model)
    token, cache = ids(model, 1, 1)[:, 0], fast.allocate_cache(1)
    before = fast.step(token, cache)
    with torch.no_grad():
        model.backbone.norm_f.weight.mul_(1.5)
    found = fast.step(token, fast.allocate_cache(1))
    assert torch.equal(found, model.step(token, model.allocate_cache(1)))
    assert not torch.equal(found, before)


def test_calls_that_cannot_be(small: MambaLM, counted: Counted) -> None:
    fast, other = GraphedLM(small), GraphedLM(small)
    cache, prompt = fast.allocate_cache(2), ids(small, 2, 4)
    for foreign in (other.allocate_cache(2), small.allocate_cache(2)):
        with pytest.raises(ConfigError, match="a cache of this object's allocate_cache"):
            fast.step(prompt[:, 0], foreign)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"input_ids=\(3,\): allowed is token ids \(2,\)"):
        fast.step(ids(small, 3, 1)[:, 0], cache)
    with pytest.raises(ConfigError, match=r"input_ids=\(2,\): allowed is token ids \(2, length\)"):
        fast(prompt[:, 0], cache)
    with (
        ops.implementation("compiled"),
        pytest.raises(ConfigError, match="ops=compiled: allowed is reference"),
    ):
        fast.step(prompt[:, 0], cache)
    for call in (lambda: fast.allocate_cache(0), lambda: fast.prepare(0), lambda: fast.prepare(1, 0)):
        with pytest.raises(ConfigError, match="=0: allowed is 1"):
            call()
    with pytest.raises(ConfigError, match="tokens=0"):
        fast.greedy(prompt, 0)
    with pytest.raises(ConfigError, match="limit=0"):
        GraphedLM(small, limit=0)


def test_a_model_under_observation_is_refused(small: MambaLM, counted: Counted) -> None:
    site = next(iter(small.sites().values()))
    site.statistic = SimpleNamespace(update=lambda values: None)
    with pytest.raises(ConfigError, match=r"is observed\. Finish the calibration first"):
        GraphedLM(small).prepare(1)


def test_elsewhere_than_on_a_gpu_it_is_refused(small: MambaLM) -> None:
    with pytest.raises(ConfigError, match=r"the model lies on cpu\. Move a native model to a CUDA device"):
        GraphedLM(small)
    assert graphed(small) == (small, "the model lies on cpu")
    assert graphed(small, wanted=False) == (small, "not asked for")
    assert graphed(torch.nn.Identity())[1] == "the model is not of the native implementation"
