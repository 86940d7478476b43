"""selective_scan and its one-token form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    FLOATS,
    assert_as_good,
    choices,
    codes_of,
    integers,
    knee_rows,
    normals,
    strided,
    true_scan,
)

from dualscale_mamba import ops

SHAPES = choices([1, 2, 3, 7, 16, 31, 64, 65, 257], [1, 5, 16, 33, 512], [1, 3, 0], [16, 4, 17, 64])


def inputs(
    batch: int, length: int, channels: int, states: int, kind: torch.dtype, device: torch.device
) -> list[Any]:
    """All arguments up to `initial`; for int8 everything is coded."""

    def activation(last: int, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor | None]:
        v = normals(batch, length, last, seed=seed, device=device) + shift
        if kind != torch.int8:
            return v.to(kind), None
        code = knee_rows(seed=seed, device=device)
        return ops.encode(v, code), code

    decay = -torch.exp(normals(channels, states, seed=11, device=device))
    skip, bias = normals(channels, seed=12, device=device), normals(channels, seed=13, device=device)
    initial = normals(batch, channels, states, seed=14, device=device)
    u, delta, z = activation(channels, 1), activation(channels, 2, -2.0), activation(channels, 3)
    b, c = activation(states, 4), activation(states, 5)
    return [*u, *delta, decay, *b, *c, skip, *z, bias, initial]


def compare(arguments: list[Any], dtype: torch.dtype, given: list[Any] | None = None) -> None:
    """Both results against fp64, by the bound of `cases`."""
    got = ops.selective_scan(*(given or arguments), dtype)
    with ops.implementation("reference"):
        reference = ops.selective_scan(*arguments, dtype)
    true_y, true_state, terms = true_scan(*arguments)
    assert_as_good(got[0], reference[0], true_y, terms)
    assert_as_good(got[1], reference[1], true_state)


@pytest.mark.parametrize("kind", [*FLOATS, torch.int8])
@pytest.mark.parametrize(("length", "channels", "batch", "states"), SHAPES)
def test_sequence(
    length: int, channels: int, batch: int, states: int, kind: torch.dtype, device: torch.device
) -> None:
    arguments = inputs(batch, length, channels, states, kind, device)
    dtype = torch.float32 if kind == torch.int8 else kind
    compare(arguments, dtype)
    views = [strided(v) if torch.is_tensor(v) and v.dim() == 3 else v for v in arguments]
    compare(arguments, dtype, views)
    bare = list(arguments)
    for optional in (9, 10, 11, 12, 13):
        bare[optional] = None
    compare(bare, torch.float32)


@pytest.mark.parametrize("length", [3, 70])
def test_every_code_of_u(length: int, device: torch.device) -> None:
    arguments = inputs(2, length, 33, 16, torch.int8, device)
    for code in codes_of(33, seed=8, device=device):
        arguments[1] = code
        compare(arguments, torch.float16)
        mixed = inputs(2, length, 33, 16, torch.bfloat16, device)  # coded u, everything else floating point
        mixed[0], mixed[1] = arguments[0], code
        compare(mixed, torch.bfloat16)


@pytest.mark.parametrize("kind", [torch.float32, torch.int8])
@pytest.mark.parametrize(("channels", "batch", "states"), [(5, 1, 16), (33, 3, 16), (70, 2, 7), (16, 0, 16)])
def test_steps_continue_a_sequence(
    channels: int, batch: int, states: int, kind: torch.dtype, device: torch.device
) -> None:
    """A prefix in one call and the rest token by token agree with one call to fp32 rounding."""
    length, prefix = 40, 33
    arguments = inputs(batch, length, channels, states, kind, device)
    y, last = ops.selective_scan(*arguments)

    def part(where: Any) -> list[Any]:
        rows = (0, 2, 5, 7, 10)
        return [v[:, where] if i in rows else v for i, v in enumerate(arguments)]

    start, state = ops.selective_scan(*part(slice(0, prefix)))
    torch.testing.assert_close(start, y[:, :prefix], rtol=2e-5, atol=2e-5)
    for t in range(prefix, length):
        step = part(t)[:-1]
        before = state.clone()
        y_t = ops.selective_state_update(state, *step)
        torch.testing.assert_close(y_t, y[:, t], rtol=2e-5, atol=2e-5)
        with ops.implementation("reference"):
            torch.testing.assert_close(y_t, ops.selective_state_update(before, *step), rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(state, before, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(state, last, rtol=2e-5, atol=2e-5)


def part_of(arguments: list[Any], where: Any) -> list[Any]:
    """The same call with a part of each activation and of the states before."""
    return [v[where] if i in (0, 2, 5, 7, 10, 13) else v for i, v in enumerate(arguments)]


@pytest.mark.parametrize(("channels", "batch"), [(48, 3), (1056, 4), (4224, 2)])
def test_a_sequence_does_not_depend_on_its_batch(channels: int, batch: int, device: torch.device) -> None:
    """Bit by bit, though a GPU keeps other numbers of states in a thread for other sizes."""
    arguments = inputs(batch, 21, channels, 16, torch.int8, device)
    y, last = ops.selective_scan(*arguments)
    for i in range(batch):
        one, state = ops.selective_scan(*part_of(arguments, slice(i, i + 1)))
        assert torch.equal(one[0], y[i])
        assert torch.equal(state[0], last[i])


def test_a_token_does_not_depend_on_those_after_it(device: torch.device) -> None:
    """Bit by bit, though a GPU reads the steps of a long sequence from a table."""
    arguments = inputs(1, 1100, 20, 16, torch.int8, device)
    y, _ = ops.selective_scan(*arguments)
    part = [v[:, :50] if i in (0, 2, 5, 7, 10) else v for i, v in enumerate(arguments)]
    assert torch.equal(ops.selective_scan(*part)[0], y[:, :50])
    compare(arguments, torch.float32)


@pytest.mark.parametrize("kind", [torch.float16, torch.int8])
@pytest.mark.parametrize("states", [7, 16, 33])
def test_a_step_does_not_depend_on_its_batch(states: int, kind: torch.dtype, device: torch.device) -> None:
    arguments = inputs(9, 1, 72, states, kind, device)
    step = [v[:, 0] if i in (0, 2, 5, 7, 10) else v for i, v in enumerate(arguments)]
    state = step.pop()
    together = state.clone()
    y = ops.selective_state_update(together, *step, torch.float32)
    for i in range(9):
        alone = state[i : i + 1].clone()
        own = [v[i : i + 1] if j in (0, 2, 5, 7, 10) else v for j, v in enumerate(step)]
        assert torch.equal(ops.selective_state_update(alone, *own, torch.float32)[0], y[i])
        assert torch.equal(alone[0], together[i])


def test_initial_state_is_not_written(device: torch.device) -> None:
    arguments = inputs(2, 0, 6, 16, torch.float32, device)
    initial = arguments[-1].clone()
    y, last = ops.selective_scan(*arguments)
    assert y.shape == (2, 0, 6)
    assert torch.equal(last, initial)
    last.zero_()
    assert torch.equal(arguments[-1], initial)


def test_extreme_steps(device: torch.device) -> None:
    """A huge step forgets everything, a tiny one changes nothing, and NaN is not hidden."""
    arguments = inputs(1, 3, 16, 16, torch.float32, device)
    arguments[12] = None
    arguments[2] = (
        torch.tensor([300.0, -120.0, 25.0], device=device)[None, :, None].expand(1, 3, 16).contiguous()
    )
    compare(arguments, torch.float32)
    arguments[2][0, 1, 4] = torch.nan
    y, last = ops.selective_scan(*arguments)
    assert y[0, 1:, 4].isnan().all()
    assert last[0, 4].isnan().all()
    assert not last[0, 5].isnan().any()


def test_control_is_single(device: torch.device) -> None:
    arguments = inputs(2, 20, 24, 16, torch.int8, device)
    coded = (1, 3, 6, 8, 11)
    for i in coded:
        arguments[i] = knee_rows(seed=i, ratio=1.0, device=device)
    control = list(arguments)
    for i in coded:
        control[i] = arguments[i].clone()
        control[i][:, 3] = 5.0 * i - 40
    for one, other in zip(ops.selective_scan(*arguments), ops.selective_scan(*control), strict=True):
        assert torch.equal(one, other)
    step, controlled = (
        [v[:, 0] if i in (0, 2, 5, 7, 10) else v for i, v in enumerate(a)][:-1] for a in (arguments, control)
    )
    one, other = (ops.selective_state_update(arguments[-1].clone(), *v) for v in (step, controlled))
    assert torch.equal(one, other)


def test_refusals(device: torch.device) -> None:
    good = inputs(2, 4, 6, 16, torch.float32, device)
    code = knee_rows(device=device)

    def changed(*pairs: tuple[int, Any]) -> list[Any]:
        arguments = list(good)
        for i, v in pairs:
            arguments[i] = v
        return arguments

    q = integers(2, 4, 16, device=device)
    for arguments, message in (
        (
            changed((5, q), (6, code)),
            r"selective_scan: B is int8 but delta is not, allowed is int8 for all of",
        ),
        (changed((0, good[0].int())), r"selective_scan: u is int32 and has no code"),
        (changed((4, good[4].double())), r"selective_scan: A is float64, allowed is float32"),
        (changed((4, good[4][:5])), r"selective_scan: A has shape \(5, 16\), allowed is shape \(6, 16\)"),
        (changed((9, good[9][:3])), r"selective_scan: D has shape \(3\)"),
        (changed((13, good[13][:1])), r"selective_scan: initial has shape \(1, 6, 16\), .*\(2, 6, 16\)"),
        (
            changed((7, good[7][:, :3])),
            r"selective_scan: C has shape \(2, 3, 16\), allowed is shape \(2, 4, 16\)",
        ),
        (changed((2, good[2].transpose(1, 2).contiguous().transpose(1, 2))), r"delta has last stride 4"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.selective_scan(*arguments)
