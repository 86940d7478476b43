"""causal_conv1d_encode and its one-token form."""

from __future__ import annotations

import pytest
import torch
from cases import (
    FLOATS,
    assert_as_good,
    assert_codes_close,
    choices,
    codes_of,
    integers,
    knee_rows,
    normals,
    strided,
    true_conv,
)

from dualscale_mamba import ops

SHAPES = choices([1, 2, 3, 7, 16, 31, 64, 65, 257], [1, 5, 16, 33, 512], [1, 3, 0], [4, 2, 3])


def taps(channels: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return normals(channels, width, seed=6, device=device), normals(channels, seed=7, device=device)


@pytest.mark.parametrize("kind", [*FLOATS, torch.int8])
@pytest.mark.parametrize(("length", "channels", "batch", "width"), SHAPES)
def test_sequence(
    length: int, channels: int, batch: int, width: int, kind: torch.dtype, device: torch.device
) -> None:
    weight, bias = taps(channels, width, device)
    x, before = (
        normals(batch, length, channels, device=device),
        normals(batch, width - 1, channels, device=device),
    )
    x_code = knee_rows(device=device) if kind == torch.int8 else None
    inputs = [ops.encode(v, x_code) if x_code is not None else v.to(kind) for v in (x, before)]
    dtype = torch.float32 if kind == torch.int8 else kind
    for with_bias, initial, view in ((bias, inputs[1], False), (None, None, True)):
        given = strided(inputs[0]) if view else inputs[0]
        got = ops.causal_conv1d_encode(given, x_code, weight, with_bias, initial, None, dtype)
        with ops.implementation("reference"):
            reference = ops.causal_conv1d_encode(inputs[0], x_code, weight, with_bias, initial, None, dtype)
        assert_as_good(got, reference, true_conv(inputs[0], x_code, weight, with_bias, initial))
        for code in codes_of(channels, device=device):
            got = ops.causal_conv1d_encode(given, x_code, weight, with_bias, initial, code)
            with ops.implementation("reference"):
                reference = ops.causal_conv1d_encode(inputs[0], x_code, weight, with_bias, initial, code)
            assert_codes_close(got, reference, share=0.01 + 1.0 / max(got.numel(), 1))


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(("channels", "batch", "width"), [(5, 1, 2), (33, 3, 3), (600, 2, 4), (16, 0, 4)])
def test_steps_continue_a_sequence(
    channels: int, batch: int, width: int, coded: bool, device: torch.device
) -> None:
    """A prefix in one call and the rest token by token give the codes of one call, bit by bit."""
    weight, bias = taps(channels, width, device)
    x = integers(batch, 9, channels, device=device) if coded else normals(batch, 9, channels, device=device)
    x_code, code = (knee_rows(device=device) if coded else None), knee_rows(channels, seed=1, device=device)
    whole = ops.causal_conv1d_encode(x, x_code, weight, bias, None, code)
    prefix = 5
    assert torch.equal(
        ops.causal_conv1d_encode(x[:, :prefix], x_code, weight, bias, None, code), whole[:, :prefix]
    )
    wide = torch.zeros(batch, width + 2, channels, dtype=x.dtype, device=device)
    state = wide[:, 1:width]  # rows of a larger cache: strided
    state.copy_(x[:, prefix - width + 1 : prefix])
    for t in range(prefix, 9):
        y = ops.causal_conv1d_update(x[:, t], x_code, state, weight, bias, code)
        assert torch.equal(y, whole[:, t])
    assert torch.equal(state, x[:, 9 - width + 1 :])
    assert not wide[:, 0].any()
    assert not wide[:, width:].any()
    rest = ops.causal_conv1d_encode(
        x[:, prefix:], x_code, weight, bias, x[:, prefix - width + 1 : prefix], code
    )
    assert torch.equal(rest, whole[:, prefix:])


def test_control_is_single(device: torch.device) -> None:
    weight, bias = taps(40, 4, device)
    x, single = integers(2, 20, 40, device=device), knee_rows(ratio=1.0, device=device)
    control = single.clone()
    control[:, 3] = -7.0
    expected = ops.causal_conv1d_encode(x, single, weight, bias, None, single)
    assert torch.equal(ops.causal_conv1d_encode(x, control, weight, bias, None, control), expected)
    state = x[:, :3].clone()
    expected = ops.causal_conv1d_update(x[:, 4], single, state.clone(), weight, bias, single)
    assert torch.equal(ops.causal_conv1d_update(x[:, 4], control, state, weight, bias, control), expected)


def test_empty_length(device: torch.device) -> None:
    weight, bias = taps(6, 4, device)
    y = ops.causal_conv1d_encode(
        torch.zeros(2, 0, 6, device=device), None, weight, bias, None, knee_rows(device=device)
    )
    assert y.shape == (2, 0, 6)
    assert y.dtype == torch.int8


def test_refusals(device: torch.device) -> None:
    weight, bias = taps(6, 4, device)
    x, code = torch.zeros(2, 8, 6, device=device), knee_rows(device=device)
    q = x.to(torch.int8)
    with pytest.raises(RuntimeError, match=r"causal_conv1d_encode: x is int8 and has no code"):
        ops.causal_conv1d_encode(q, None, weight)
    with pytest.raises(
        RuntimeError, match=r"causal_conv1d_encode: x is float32 though it has a code, allowed is int8"
    ):
        ops.causal_conv1d_encode(x, code, weight)
    with pytest.raises(RuntimeError, match=r"causal_conv1d_encode: x_code has shape \(6, 8\), .*\(1, 8\)"):
        ops.causal_conv1d_encode(q, knee_rows(6, device=device), weight)
    with pytest.raises(RuntimeError, match=r"causal_conv1d_encode: weight has 5 taps, allowed is 2, 3 or 4"):
        ops.causal_conv1d_encode(x, None, torch.zeros(6, 5, device=device))
    with pytest.raises(
        RuntimeError, match=r"causal_conv1d_encode: bias has shape \(5\), allowed is shape \(6\)"
    ):
        ops.causal_conv1d_encode(x, None, weight, bias[:5])
    with pytest.raises(RuntimeError, match=r"causal_conv1d_encode: initial has shape \(2, 4, 6\)"):
        ops.causal_conv1d_encode(x, None, weight, bias, x[:, :4])
    with pytest.raises(RuntimeError, match=r"causal_conv1d_update: state is float16, allowed is float32"):
        ops.causal_conv1d_update(x[:, 0], None, x[:, :3].half(), weight)
    with pytest.raises(RuntimeError, match=r"causal_conv1d_encode: dtype is int32"):
        ops.causal_conv1d_encode(x, None, weight, bias, None, None, torch.int32)
