"""What holds for a language model of either family: prefill and step agree, sites change little, states stay put."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from coded import IDS, observed_maxima, plain_code, turn_on
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.quantization.site import SILU_FLOOR
from dualscale_mamba.quantization.weights import Grid
from dualscale_mamba.rounding.nearest import Nearest
from dualscale_mamba.sites import SITES

RANDOM = {"mamba1": "random:tiny", "mamba2": "random:mamba2-tiny"}
ALL_SITES = [(family, name) for family, names in SITES.items() for name in names]
# Bytes of the states of one sequence in one layer, convolution and state space.
STATE_BYTES = {"mamba1": 3 * 128 * 4 + 128 * 16 * 4, "mamba2": 3 * (128 + 2 * 32) * 4 + 128 * 16 * 4}


@pytest.fixture(params=RANDOM)
def small(request: pytest.FixtureRequest) -> MambaLM:
    model = load_pretrained(RANDOM[request.param], family=request.param).model
    assert isinstance(model, MambaLM)
    return model


def embedded(family: str) -> MambaLM:
    model = load_pretrained(f"embedded:{family}-tiny").model
    assert isinstance(model, MambaLM)
    return model


def divergence(before: torch.Tensor, after: torch.Tensor) -> float:
    before, after = before.log_softmax(-1), after.float().log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_sites_are_named_by_layer(small: MambaLM) -> None:
    family = SITES[small.config.family]
    assert list(small.sites()) == [f"layers.{i}.mixer.{name}" for i in range(2) for name in family]
    floors = {name.rsplit(".", 1)[1]: site.floor for name, site in small.sites().items()}
    assert floors == {name: SILU_FLOOR if after_silu else None for name, after_silu in family.items()}
    assert pytest.approx(-0.27846454) == SILU_FLOOR


def test_calibration_sees_every_site(small: MambaLM) -> None:
    for site in small.sites().values():
        site.statistic = Histogram()
    before = small(IDS)
    assert set(observed_maxima(small)) == set(small.sites())
    torch.testing.assert_close(small(IDS), before, atol=0, rtol=0)


def test_last_only_is_the_last_position(small: MambaLM) -> None:
    torch.testing.assert_close(small(IDS, last_only=True), small(IDS)[:, -1:], atol=1e-6, rtol=0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 21), max_size=4))
def test_a_prefill_may_be_cut_anywhere(small: MambaLM, cuts: list[int]) -> None:
    whole, cache = small(IDS), small.allocate_cache(2)
    bounds = [0, *sorted(cuts), IDS.shape[1]]
    parts = [small(IDS[:, a:b], cache) for a, b in itertools.pairwise(bounds) if b > a]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
    assert cache.position == IDS.shape[1]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 20])
def test_steps_continue_a_prefill(small: MambaLM, length: int) -> None:
    whole, cache = small(IDS), small.allocate_cache(2)
    parts = [small(IDS[:, :length], cache)]
    parts += [small.step(IDS[:, t], cache)[:, None] for t in range(length, IDS.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


def test_rows_do_not_see_each_other(small: MambaLM) -> None:
    torch.testing.assert_close(small(IDS[1:]), small(IDS)[1:], atol=1e-5, rtol=0)


def test_cache_keeps_its_memory(small: MambaLM) -> None:
    cache = small.allocate_cache(2)
    before = [(state.conv.data_ptr(), state.ssm.data_ptr()) for state in cache.layers]
    small(IDS, cache)
    small.step(IDS[:, 0], cache)
    assert before == [(state.conv.data_ptr(), state.ssm.data_ptr()) for state in cache.layers]
    assert cache.nbytes == 2 * 2 * STATE_BYTES[small.config.family]
    assert cache.batch_size == 2


@pytest.mark.parametrize(("family", "name"), ALL_SITES)
def test_each_site_alone_stays_close(family: str, name: str) -> None:
    model = embedded(family)
    quantized = turn_on(copy.deepcopy(model), name)
    assert 0 < divergence(model(IDS), quantized(IDS)) < 0.05


def test_int8_everywhere_prefills_and_steps_alike(small: MambaLM) -> None:
    turn_on(small, *SITES[small.config.family])
    cache = small.allocate_cache(2)
    assert all(state.conv.dtype == torch.int8 for state in cache.layers)
    whole = small(IDS)
    parts = [small(IDS[:, :2], cache), small(IDS[:, 2:9], cache)]
    parts += [small.step(IDS[:, t], cache)[:, None] for t in range(9, IDS.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-3, rtol=0)


@pytest.mark.parametrize("family", SITES)
def test_int8_weights_and_activations_do_not_depend_on_the_cut(family: str) -> None:
    """Integer products are exact, so that no code flips: only the float head rounds by its shape."""
    model = turn_on(embedded(family), *SITES[family])
    for block in model.blocks():
        for linear, _ in block.mixer.projections():
            linear.set_quantized(Nearest()(linear.weight, Grid(8)))
    whole, cache = model(IDS), model.allocate_cache(2)
    parts = [model(IDS[:, :2], cache), model(IDS[:, 2:9], cache)]
    parts += [model.step(IDS[:, t], cache)[:, None] for t in range(9, IDS.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("grid", [Grid(8), Grid(4, 32)], ids=["w8", "w4"])
def test_quantized_layers_keep_no_float_weight(small: MambaLM, grid: Grid) -> None:
    for name, layer in small.weight_layers().items():
        own = grid if layer.columns % 8 == 0 else Grid(8)
        layer.set_quantized(Nearest()(layer.weight, own))
        assert layer.weight.numel() == 0, name
        assert (layer.bits, layer.is_quantized) == (own.bits, True)
    decoded = copy.deepcopy(small)
    for layer in decoded.weight_layers().values():
        layer.set_float(layer.decoded_weight())
    torch.testing.assert_close(small(IDS), decoded(IDS), atol=1e-4, rtol=0)


def test_empty_conv_state_decodes_to_zero(small: MambaLM) -> None:
    code = plain_code(0.01, zero=-77.0)
    small.sites()["layers.0.mixer.conv_input"].set_code(code)
    conv = small.allocate_cache(1).layers[0].conv
    assert conv.unique().tolist() == [-77]


def test_rotation_and_its_weight_cancel(small: MambaLM) -> None:
    expected = small(IDS)
    hadamard = torch.ones(1, 1)
    while hadamard.shape[0] < 128:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    for block in small.blocks():
        block.mixer.rotation = torch.ones(1, 1)
        block.mixer.out_proj.weight.data = block.mixer.out_proj.weight.data @ hadamard / 128**0.5
    torch.testing.assert_close(small(IDS), expected, atol=1e-5, rtol=0)
    for code, per_token in ((plain_code(observed_maxima(small)["layers.0.mixer.out_proj_input"] / 127), False),
                            (plain_code(1.0), True)):  # fmt: skip
        small.sites()["layers.0.mixer.out_proj_input"].set_code(code, per_token=per_token)
        torch.testing.assert_close(small(IDS), expected, atol=0.02, rtol=0)


def test_per_token_norm(small: MambaLM) -> None:
    expected = small(IDS)
    small.sites()["layers.0.mixer.in_proj_input"].set_code(plain_code(1.0), per_token=True)
    torch.testing.assert_close(small(IDS), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("family", SITES)
def test_half_precision_keeps_the_recurrence_in_fp32(family: str) -> None:
    exact = embedded(family)
    model = MambaLM(exact.config, torch.bfloat16, torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    state = model.state_dict()
    assert model.backbone.embedding.weight.dtype == torch.bfloat16
    kept = {value.dtype for name, value in state.items() if "A_log" in name or "norm" in name}
    assert kept == {torch.float32}
    assert divergence(exact(IDS), model(IDS)) < 0.02
    assert model.allocate_cache(1).layers[0].ssm.dtype == torch.float32


def test_new_weights_replace_the_state_matrix(small: MambaLM) -> None:
    small(IDS)
    mixer = small.blocks()[0].mixer
    state = {name: value.clone() for name, value in small.state_dict().items()}
    state["backbone.layers.0.mixer.A_log"] += 1.0
    small.load_state_dict(state)
    torch.testing.assert_close(mixer.decay(), -torch.exp(mixer.A_log), atol=0, rtol=0)


def test_types_of_the_state() -> None:
    with pytest.raises(ConfigError, match=r"model\.state_dtype=bfloat16: allowed is float32 or float16"):
        load_pretrained("random:mamba2-tiny", state_dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"model\.state_dtype=float16: allowed is float32 for Mamba-1"):
        load_pretrained("random:tiny", state_dtype=torch.float16)
