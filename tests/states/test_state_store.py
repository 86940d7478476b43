"""What lies in the cache between two steps, and that it is the same wherever it is computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from state_models import FORMATS, SOURCES, encoded, ids, plain, said
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.float8 import Float8
from dualscale_mamba.formats.single import Single
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.memory import Memory
from dualscale_mamba.states import residual
from dualscale_mamba.states.calibration import encode_states, normalized
from dualscale_mamba.states.counter import mixed_, mixed_number, uniforms
from dualscale_mamba.states.format import StateFormat
from dualscale_mamba.states.store import Coding, StateStore, lowest_code

STORED = {
    "int8": torch.int8, "int8_dual": torch.int8, "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2_stochastic": torch.float8_e5m2,
}  # fmt: skip
CHANNELS, STATES = 6, 16


def whole(value: float) -> Tensor:
    return torch.full((1,), value, dtype=torch.float64)


def store_of(rounding: str, mode: str = "single", dynamic: bool = False, **settings: int) -> StateStore:
    """A store of values up to 1."""
    modes = {
        "single": Single().fit(Range(whole(-1), whole(1), whole(1))),
        "dual": DualSymmetric().fit(Range(whole(-1), whole(0.3), whole(1))),
        "e4m3": Float8().fit(Range(whole(-448), whole(448), whole(448))),
    }
    storage, reach = ("float8_e4m3fn", 1 / 448) if mode == "e4m3" else ("int8", 1.0)
    rows = modes[mode].rows + 0.0
    scale = None if dynamic else torch.full((CHANNELS,), reach)
    made = StateStore()
    coding = Coding(
        storage,
        "dynamic" if dynamic else "static",
        rounding,
        reach=reach,
        lowest=lowest_code(rows),
        **settings,
    )
    made.turn_on(coding, rows, scale, layer=2)
    return made


def fresh(store: StateStore, batch: int = 1) -> LayerCache:
    return store.empty(torch.zeros(batch, 3, CHANNELS), torch.zeros(batch, CHANNELS, STATES))


def random_state(batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, CHANNELS, STATES, generator=generator) * 1.9 - 0.95


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("family", SOURCES)
def test_codes_lie_in_the_cache(family: str, name: str) -> None:
    model = encoded(family, name)
    cache = model.allocate_cache(2)
    for layer in cache.layers:
        assert layer.ssm.dtype == STORED[name]
        assert layer.ssm.element_size() == 1
    assert all(
        (block.mixer.state_store.values(layer) == 0).all()
        for block, layer in zip(model.blocks(), cache.layers, strict=True)
    )
    model(ids(model, 2, 5), cache)
    model.step(ids(model, 2, 1)[:, 0], cache)
    for block, layer in zip(model.blocks(), cache.layers, strict=True):
        assert layer.ssm.dtype == STORED[name]
        h = block.mixer.state_store.values(layer)
        assert h.dtype == torch.float32
        assert h.isfinite().all()
        assert h.abs().max() > 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", SOURCES)
def test_bytes_are_counted(family: str, name: str) -> None:
    """The tensors' own bytes, the formula, and the bits that a result reports say the same."""
    model = encoded(family, name)
    store, channels, states = (
        model.blocks()[0].mixer.state_store, model.config.d_inner, model.config.d_state,
    )  # fmt: skip
    assert store.coding is not None
    cache = model.allocate_cache(3)
    layer = cache.layers[0]
    beside = sum(tensor.nbytes for each, tensor in layer.tensors().items() if each not in ("conv", "count"))
    assert beside == 3 * channels * states * store.coding.bits_per_value(states) / 8
    assert cache.nbytes == sum(t.nbytes for each in cache.layers for t in each.tensors().values())
    metrics = Memory(batch_sizes=(1, 3), lengths=(8,), measure=False)(Subject(model, model.device))
    found = {key: metric.value for key, metric in metrics.items() if "workspace" not in key}
    for key, value in found.items():
        computed = key.replace("memory/", "memory/computed/")
        assert "computed/" in key or "side" in key or found[computed] == value, key
    assert found["memory/state/batch_3"] == cache.nbytes
    assert "memory/weights/other" not in found


def test_a_state_in_eight_bits_takes_a_quarter() -> None:
    before, after = (each.allocate_cache(1) for each in (plain("mamba2"), encoded("mamba2", "int8_static")))
    assert sum(4 * layer.ssm.nbytes for layer in after.layers) == sum(
        layer.ssm.nbytes for layer in before.layers
    )


@pytest.mark.parametrize("family", SOURCES)
def test_values_are_kept_as_before(family: str) -> None:
    """Without codes the operators still get the cache's own tensor, and a cache has nothing else."""
    model = plain(family)
    cache = model.allocate_cache(1)
    held = [layer.ssm.data_ptr() for layer in cache.layers]
    model(ids(model, 1, 3), cache)
    model.step(ids(model, 1, 1)[:, 0], cache)
    assert [layer.ssm.data_ptr() for layer in cache.layers] == held
    assert set(cache.layers[0].tensors()) == {"conv", "ssm"}
    assert all(store.values(layer) is layer.ssm for store, layer in _stores(model, cache.layers))


def _stores(model: object, layers: list[LayerCache]) -> Iterator[tuple[StateStore, LayerCache]]:
    yield from zip((block.mixer.state_store for block in model.blocks()), layers, strict=True)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["single", "dual", "e4m3"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "error_feedback"])
@pytest.mark.parametrize("is_dynamic", [False, True])
def test_compiled_and_reference_agree_bitwise(rounding: str, mode: str, is_dynamic: bool) -> None:
    store = store_of(rounding, mode, is_dynamic)
    caches = []
    for implementation in ("reference", "compiled"):
        with ops.implementation(implementation):
            cache = fresh(store, 2)
            for seed in range(4):
                h = random_state(2, seed) * 1.2  # some beyond the last level
                h[0, 0] = torch.tensor([0.0, torch.nan, torch.inf, -torch.inf] * 4)
                store.keep(cache, h, tokens=1)
            caches.append((cache, store.values(cache)))
    (one, first), (other, second) = caches
    assert all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True)
    )
    assert torch.equal(first.nan_to_num(), second.nan_to_num())


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["single", "dual", "e4m3"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "error_feedback"])
@pytest.mark.parametrize("is_dynamic", [False, True])
def test_a_gpu_keeps_the_same_bits(rounding: str, mode: str, is_dynamic: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    found = []
    for device, implementation in (("cpu", "reference"), ("cuda", "compiled")):
        with ops.implementation(implementation):
            store = store_of(rounding, mode, is_dynamic).to(device)
            cache = store.empty(
                torch.zeros(2, 3, CHANNELS, device=device), torch.zeros(2, CHANNELS, STATES, device=device)
            )
            for seed in range(4):
                store.keep(cache, (random_state(2, seed) * 1.2).to(device), tokens=1)
            found.append([*cache.tensors().values(), store.values(cache)])
    assert all(
        torch.equal(a.view(torch.uint8), b.cpu().view(torch.uint8)) for a, b in zip(*found, strict=True)
    )


@pytest.mark.parametrize("mode", ["single", "dual", "e4m3"])
def test_nearest_is_half_away_from_zero(mode: str) -> None:
    store = store_of("nearest", mode)
    assert store.rows is not None
    levels = store.rows[0, :256].unique() if store.rows.shape[1] > 8 else torch.arange(-127, 128) / 127
    unit = 1 / 448 if mode == "e4m3" else 1.0
    h = random_state()
    cache = fresh(store)
    store.keep(cache, h, tokens=1)
    error = (store.values(cache) - h).abs()
    best = (h[..., None] - levels * unit).abs().amin(-1)
    assert torch.allclose(error, best, atol=1e-7)
    if mode == "single":  # a tie, exact in fp32
        store.scale = torch.full((CHANNELS,), 127.0)
        tie = torch.full((1, CHANNELS, STATES), 2.5)
        tie[..., ::2] = -2.5
        store.keep(cache, tie, tokens=1)
        assert cache.ssm[0, 0, :2].tolist() == [-3, 3]


def test_words_are_what_the_formula_says() -> None:
    words = torch.randint(0, 2**32, (1000,), generator=torch.Generator().manual_seed(0))
    expected = [mixed_number(word) for word in words.tolist()]
    assert mixed_(words.clone()).tolist() == expected
    assert len(set(expected)) == len(set(words.tolist()))  # a bijection


def test_numbers_are_uniform_and_independent() -> None:
    """64 positions of 16,384 elements: moments, a histogram, and pairs of neighbours in both directions."""
    drawn = uniforms(0, 1, torch.arange(1, 65, dtype=torch.int32), 16384)
    assert 0.0 <= float(drawn.min()) < float(drawn.max()) < 1.0
    assert abs(float(drawn.double().mean()) - 0.5) < 4 * (1 / 12 / drawn.numel()) ** 0.5
    assert abs(float(drawn.double().var()) * 12 - 1) < 5e-3
    pairs = [drawn, drawn[:, ::2] * 16 // 1 + drawn[:, 1::2], drawn[::2] * 16 // 1 + drawn[1::2]]
    for own, bins in zip(pairs, (256, 256, 256), strict=True):
        place = (own * bins / (16 if own is not drawn else 1)).long().flatten()
        counts = torch.bincount(place.clamp_max(bins - 1), minlength=bins).double()
        expected = counts.mean()
        spread = float(((counts - expected) ** 2 / expected).sum())
        assert spread < 255 + 6 * (2 * 255) ** 0.5
    other = uniforms(0, 2, torch.arange(1, 65, dtype=torch.int32), 16384)
    assert abs(float(torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1])) < 5e-3


def test_a_number_has_a_name() -> None:
    """Seed, layer, position and element: neither the batch nor what was drawn before matters."""
    positions = torch.tensor([7, 3], dtype=torch.int32)
    both = uniforms(5, 2, positions, 100)
    assert torch.equal(both[1:], uniforms(5, 2, positions[1:], 100))
    assert torch.equal(both[:, :40], uniforms(5, 2, positions, 40))
    assert not torch.equal(both, uniforms(6, 2, positions, 100))
    assert not torch.equal(both, uniforms(5, 3, positions, 100))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("mode", ["single", "dual", "e4m3"])
def test_stochastic_rounding_is_unbiased(mode: str) -> None:
    """The mean of 2,000 roundings is the value to within its own standard error; nearest would fail this."""
    draws = 2000
    store, h = store_of("stochastic", mode), random_state()
    cache, total, squares = fresh(store), torch.zeros_like(h), torch.zeros_like(h)
    for _ in range(draws):
        store.keep(cache, h, tokens=1)
        error = store.values(cache) - h
        total += error
        squares += error.square()
    deviation = (squares / draws).sqrt().clamp_min(1e-9)
    assert (total.abs() / draws < 5 * deviation / draws**0.5).all()
    nearest = store_of("nearest", mode)
    cache = fresh(nearest)
    nearest.keep(cache, h, tokens=1)
    assert not ((nearest.values(cache) - h).abs() < 5 * deviation / draws**0.5).all()


def test_stochastic_rounding_takes_neighbours_only() -> None:
    store, h = store_of("stochastic"), random_state()
    h[0, 0, 0], h[0, 0, 1] = 0.0, 5.0
    cache, exact = fresh(store), ops.encode(h, store_of("nearest").rows)  # type: ignore[arg-type]
    for _ in range(50):
        store.keep(cache, h, tokens=1)
        assert (cache.ssm.int() - exact.int()).abs().max() <= 1
        assert cache.ssm[0, 0, :2].tolist() == [0, 127]
    assert cache.count is not None
    assert cache.count.tolist() == [50]


@pytest.mark.parametrize("bits", [4, 8])
def test_residual_codes_survive_packing(bits: int) -> None:
    top = residual.largest(bits)
    codes = torch.arange(-top, top + 1).to(torch.int8)
    codes = torch.cat([codes, codes[:1]]).expand(3, -1)
    stored = residual.packed(codes, bits)
    assert stored.nbytes * 8 == codes.numel() * bits
    assert torch.equal(residual.unpacked(stored, bits), codes)


@pytest.mark.parametrize("mode", ["single", "dual", "e4m3"])
def test_error_feedback_keeps_small_steps(mode: str) -> None:
    """A state that grows by a fiftieth of a level each time: nearest never moves, error feedback follows."""
    count, ends = 200, {}
    gap = {"single": 1 / 127, "dual": 0.95 / 17, "e4m3": 1 / 16}[mode]  # of the levels around 0.5
    step = gap / 50
    for rounding in ("nearest", "error_feedback"):
        store = store_of(rounding, mode, residual_bits=8)
        cache = fresh(store)
        store.keep(cache, torch.full((1, CHANNELS, STATES), 0.5), tokens=1)
        begun = store.values(cache)
        for _ in range(count):
            store.keep(cache, store.values(cache) + step, tokens=1)
        ends[rounding] = float((store.values(cache) - begun - step * count).abs().max())
    assert ends["nearest"] > 0.9 * step * count
    assert ends["error_feedback"] < 0.5 * ends["nearest"]


def test_error_feedback_has_less_bias_in_the_long_run() -> None:
    """h' = a h + b with a near 1, whose fixed point lies between two codes."""
    decay, gain = 0.98, 0.0123
    wanted = gain / (1 - decay)
    bias = {}
    for rounding in ("nearest", "error_feedback", "stochastic"):
        store = store_of(rounding, residual_bits=4)
        cache, total = fresh(store), 0.0
        for at in range(1500):
            store.keep(cache, decay * store.values(cache) + gain, tokens=1)
            total += float(store.values(cache).mean()) if at >= 500 else 0.0
        bias[rounding] = abs(total / 1000 - wanted)
    assert bias["error_feedback"] < 0.25 * bias["nearest"]
    assert bias["stochastic"] < 0.25 * bias["nearest"]


@pytest.mark.parametrize("name", ["int8", "int8_stochastic", "int8_error_feedback", "fp8_e4m3"])
@pytest.mark.parametrize("family", SOURCES)
def test_a_text_does_not_depend_on_its_place_in_the_batch(family: str, name: str) -> None:
    model = encoded(family, name)
    prompt, tokens = ids(model, 3, 6), ids(model, 3, 4, seed=1)
    order = torch.tensor([2, 0, 1])
    straight, moved = said(model, prompt, tokens), said(model, prompt[order], tokens[order])
    assert all(torch.allclose(a[order], b, atol=2e-4) for a, b in zip(straight, moved, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(straight, said(model, prompt, tokens), strict=True))


def test_seeds_round_otherwise() -> None:
    model = plain("mamba1")
    prompt, tokens = ids(model, 1, 4), ids(model, 1, 3, seed=1)
    found = []
    for seed in (0, 0, 1):
        encode_states(model, StateFormat(rounding="stochastic", seed=seed), [])
        found.append(said(model, prompt, tokens)[-1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_normalized_counts_are_those_of_normalized_values() -> None:
    values = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1, 9, 0.1, 4, 2.0]
    )
    counted, expected = Histogram(torch.arange(5)), Histogram()
    counted.update(values)
    scale = counted.absmax
    expected.update((values.double() / scale).float())
    found = normalized(counted, scale)
    assert int(found.total) == int(expected.total)
    assert float(found.absmax) == pytest.approx(1.0)
    for percent in (50.0, 90.0, 99.0):
        assert float(found.quantile(percent)) == pytest.approx(float(expected.quantile(percent)), rel=0.07)


def test_states_of_another_type_are_refused() -> None:
    model = plain("mamba2", state_dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"model\.state_dtype=torch\.float16: allowed is float32"):
        encode_states(model, StateFormat(), [])
    with pytest.raises(ConfigError, match=r"calibration\.samples=0"):
        encode_states(plain("mamba1"), StateFormat(scale="static"), [])
