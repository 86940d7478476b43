from __future__ import annotations

import pytest
import torch
from coded import IDS, even_table, observed_maxima, plain_code, turn_on
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import Code
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.mamba import MambaMixer


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
        assert isinstance(block.mixer, MambaMixer)
        block.mixer.x_proj_reads = "conv_output"
    isolated = small(IDS)
    assert not torch.equal(codes, isolated)
    torch.testing.assert_close(codes, isolated, atol=0.01, rtol=0)


def test_per_token_scales_need_a_rotation(small: MambaLM) -> None:
    small.sites()["layers.0.mixer.out_proj_input"].set_code(plain_code(1.0), per_token=True)
    with pytest.raises(ConfigError, match="rotate"):
        small(IDS)
