from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Code, knee_code, table_code
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import Pretrained
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.sites import MAMBA1_SITES

IDS = torch.randint(0, 4096, (2, 21), generator=torch.Generator().manual_seed(1))


def plain_code(step: float, ratio: float = 1.0, zero: float = 0.0, knee: float = 127.0) -> Code:
    values = (torch.tensor([value], dtype=torch.float64) for value in (step, zero, knee, ratio))
    return knee_code(*values, has_knee=ratio > 1.0)


def observed_maxima(model: MambaLM) -> dict[str, float]:
    """Largest magnitude at each site of an unquantized run."""
    maxima: dict[str, float] = {}

    class Largest:
        def __init__(self, name: str) -> None:
            self.name = name

        def update(self, values: torch.Tensor) -> None:
            maxima[self.name] = max(maxima.get(self.name, 0.0), float(values.abs().max()))

    for name, site in model.sites().items():
        site.histogram = Largest(name)  # type: ignore[assignment]
    model(IDS)
    for site in model.sites().values():
        site.histogram = None
    return maxima


def turn_on(model: MambaLM, *names: str) -> MambaLM:
    """Symmetric int8 codes at the named kinds of site."""
    maxima = observed_maxima(model)
    for name, site in model.sites().items():
        if name.rsplit(".", 1)[1] in names:
            site.set_code(plain_code(max(maxima[name], 1e-6) / 127))
    return model


def even_table(limit: float) -> Code:
    """255 levels, evenly spaced: what a symmetric code has, written as a table."""
    return table_code(torch.arange(-127, 128, dtype=torch.float64)[None] * (limit / 127))


def test_sites_are_named_by_layer(small: MambaLM) -> None:
    names = list(small.sites())
    assert len(names) == 2 * 9
    assert names[0] == "layers.0.mixer.in_proj_input"
    assert small.sites()["layers.1.mixer.ssm_input"].floor == pytest.approx(-0.27846454)
    assert [name for name, site in small.sites().items() if site.floor is not None] == [
        "layers.0.mixer.ssm_input",
        "layers.1.mixer.ssm_input",
    ]


def test_calibration_sees_every_site(small: MambaLM) -> None:
    for site in small.sites().values():
        site.histogram = Histogram()
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
    assert cache.nbytes == 2 * 2 * (3 * 128 * 4 + 128 * 16 * 4)
    assert cache.batch_size == 2


@given(lengths=st.lists(st.integers(0, 6), max_size=6))
@settings(deadline=None)
def test_conv_state_is_the_last_inputs(lengths: list[int]) -> None:
    state = LayerCache(torch.zeros(1, 3, 2), torch.zeros(1, 2, 4))
    seen = torch.zeros(1, 3, 2)
    for length in lengths:
        x = torch.rand(1, length, 2)
        seen = torch.cat([seen, x], dim=1)
        state.push(x)
    torch.testing.assert_close(state.conv, seen[:, -3:], atol=0, rtol=0)


@pytest.mark.parametrize("name", MAMBA1_SITES)
def test_each_site_alone_stays_close(tiny: Pretrained, name: str) -> None:
    model = tiny.model
    assert isinstance(model, MambaLM)
    quantized = turn_on(copy.deepcopy(model), name)
    before, after = model(IDS).log_softmax(-1), quantized(IDS).log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    assert 0 < divergence < 0.05


def test_int8_everywhere_prefills_and_steps_alike(small: MambaLM) -> None:
    turn_on(small, *MAMBA1_SITES)
    cache = small.allocate_cache(2)
    assert all(state.conv.dtype == torch.int8 for state in cache.layers)
    whole = small(IDS)
    parts = [small(IDS[:, :2], cache), small(IDS[:, 2:9], cache)]
    parts += [small.step(IDS[:, t], cache)[:, None] for t in range(9, IDS.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-3, rtol=0)


def test_int8_weights_and_activations_do_not_depend_on_the_cut(tiny: Pretrained) -> None:
    """Integer products are exact, so that no code flips: only the float head rounds by its shape."""
    model = copy.deepcopy(tiny.model)
    assert isinstance(model, MambaLM)
    turn_on(model, *MAMBA1_SITES)
    for block in model.blocks():
        for linear in (block.mixer.in_proj, block.mixer.x_proj, block.mixer.dt_proj, block.mixer.out_proj):
            linear.quantize_weight()
    whole, cache = model(IDS), model.allocate_cache(2)
    parts = [model(IDS[:, :2], cache), model(IDS[:, 2:9], cache)]
    parts += [model.step(IDS[:, t], cache)[:, None] for t in range(9, IDS.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)


def test_empty_conv_state_decodes_to_zero(small: MambaLM) -> None:
    code = plain_code(0.01, zero=-77.0)
    small.sites()["layers.0.mixer.conv_input"].set_code(code)
    conv = small.allocate_cache(1).layers[0].conv
    assert conv.unique().tolist() == [-77]


def test_scan_takes_tables_and_channels_for_u(small: MambaLM) -> None:
    expected = small(IDS)
    limit = observed_maxima(small)["layers.0.mixer.ssm_input"]
    per_channel = Code(plain_code(limit / 127).rows.expand(128, 8).contiguous())
    for code in (even_table(limit), per_channel):
        small.sites()["layers.0.mixer.ssm_input"].set_code(code)
        torch.testing.assert_close(small(IDS), expected, atol=0.02, rtol=0)
        cache = small.allocate_cache(2)
        torch.testing.assert_close(small.step(IDS[:, 0], cache), small(IDS[:, :1])[:, 0], atol=1e-5, rtol=0)


def test_mixed_scan_inputs_are_decoded(small: MambaLM) -> None:
    """int8 delta beside a float B, and a table for C: the scan gets values."""
    expected = small(IDS)
    turn_on(small, "delta")
    limit = observed_maxima(small)["layers.0.mixer.C"]
    small.sites()["layers.0.mixer.C"].set_code(even_table(limit))
    torch.testing.assert_close(small(IDS), expected, atol=0.02, rtol=0)


def test_x_proj_may_read_the_conv_output(small: MambaLM) -> None:
    turn_on(small, "ssm_input")
    codes = small(IDS)
    for block in small.blocks():
        block.mixer.x_proj_reads = "conv_output"
    isolated = small(IDS)
    assert not torch.equal(codes, isolated)
    torch.testing.assert_close(codes, isolated, atol=0.01, rtol=0)


def test_rotation_and_its_weight_cancel(small: MambaLM) -> None:
    expected = small(IDS)
    hadamard = torch.ones(1, 1)
    while hadamard.shape[0] < 128:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    for block in small.blocks():
        block.mixer.rotation = torch.ones(1, 1)
        block.mixer.out_proj.weight.data = block.mixer.out_proj.weight.data @ hadamard / 128**0.5
    torch.testing.assert_close(small(IDS), expected, atol=1e-5, rtol=0)


def test_per_token_scales_need_a_rotation(small: MambaLM) -> None:
    small.sites()["layers.0.mixer.out_proj_input"].set_code(plain_code(1.0), per_token=True)
    with pytest.raises(ConfigError, match="rotate"):
        small(IDS)


def test_per_token_norm(small: MambaLM) -> None:
    expected = small(IDS)
    small.sites()["layers.0.mixer.in_proj_input"].set_code(plain_code(1.0), per_token=True)
    torch.testing.assert_close(small(IDS), expected, atol=0.02, rtol=0)


def test_half_precision_keeps_the_recurrence_in_fp32(tiny: Pretrained) -> None:
    model = MambaLM(tiny.config, torch.bfloat16, torch.bfloat16)
    model.load_state_dict(tiny.model.state_dict())
    state = model.state_dict()
    assert model.backbone.embedding.weight.dtype == torch.bfloat16
    assert {value.dtype for name, value in state.items() if "A_log" in name or "norm" in name} == {
        torch.float32
    }
    before, after = tiny.model(IDS).log_softmax(-1), model(IDS).float().log_softmax(-1)
    assert (before.exp() * (before - after)).sum(-1).mean() < 0.02
    assert model.allocate_cache(1).layers[0].ssm.dtype == torch.float32


def test_new_weights_replace_the_state_matrix(small: MambaLM) -> None:
    small(IDS)
    mixer = small.blocks()[0].mixer
    state = {name: value.clone() for name, value in small.state_dict().items()}
    state["backbone.layers.0.mixer.A_log"] += 1.0
    small.load_state_dict(state)
    torch.testing.assert_close(mixer.decay(), -torch.exp(mixer.A_log), atol=0, rtol=0)
