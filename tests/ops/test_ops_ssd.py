"""ssd_scan and its one-token form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import (
    FLOATS,
    KINDS,
    KNEE,
    KNEE_ROWS,
    TABLE,
    Kind,
    assert_as_good,
    choices,
    integers,
    knee_rows,
    low_precision_ssd,
    normals,
    ssd_inputs,
    strided,
    true_ssd,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualscale_mamba import ops

# Places among the arguments: x, delta, B and C, their codes, and others.
ACTIVATIONS, CODES = (0, 2, 5, 7), (1, 3, 6, 8)
SKIP, BIAS, LOW, HIGH, GROUPS, INITIAL = range(9, 15)
LENGTHS = [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 257]
HEADS = [(4, 2), (1, 1), (8, 8), (4, 1)]  # and their groups
HEAD_DIMS = [16, 5, 32, 64, 1, 80]
STATES = [64, 16, 7, 128, 1, 256]
SHAPES = choices(LENGTHS, HEADS, HEAD_DIMS, STATES, [2, 1, 3, 1, 0, 1, 3])


def changed(arguments: list[Any], changes: dict[int, Any]) -> list[Any]:
    return [changes.get(i, v) for i, v in enumerate(arguments)]


def token(arguments: list[Any], t: Any) -> list[Any]:
    """Token t, or a slice of tokens, of all activations; without `initial`."""
    return [v[:, t] if i in ACTIVATIONS else v for i, v in enumerate(arguments)][:INITIAL]


def compare(
    arguments: list[Any],
    dtype: torch.dtype,
    state_dtype: torch.dtype = torch.float32,
    views: list[Any] | None = None,
    chunk: int = 256,
) -> None:
    """Both results against fp64, by the bound of `cases`; `views` hold the same values."""
    got = ops.ssd_scan(*(views or arguments), chunk, state_dtype, dtype)
    if got[0].is_cuda and dtype != torch.float32:
        reference = low_precision_ssd(arguments, state_dtype, dtype)
    else:
        with ops.implementation("reference"):
            reference = ops.ssd_scan(*arguments, chunk, state_dtype, dtype)
    true_y, true_state, terms = true_ssd(*arguments)
    assert_as_good(got[0], reference[0], true_y, terms)
    assert_as_good(got[1], reference[1], true_state, operands=dtype if got[1].is_cuda else torch.float32)


def compare_step(arguments: list[Any], dtype: torch.dtype, state_dtype: torch.dtype) -> None:
    """The first token alone, its state among other values."""
    before = arguments[INITIAL].to(state_dtype)
    first = token(arguments, slice(0, 1))
    states = [strided(before), before.clone()]
    one = token(arguments, 0)
    y = ops.ssd_state_update(states[0], *one, dtype)
    with ops.implementation("reference"):
        reference = ops.ssd_state_update(states[1], *one, dtype)
    true_y, true_state, terms = true_ssd(*first, before)
    assert_as_good(y, reference, true_y[:, 0], terms)
    assert_as_good(states[0], states[1], true_state)


@pytest.mark.parametrize("kind", [*FLOATS, KNEE])
@pytest.mark.parametrize(("length", "heads", "head_dim", "states", "batch"), SHAPES)
def test_sequence(
    length: int,
    heads: tuple[int, int],
    head_dim: int,
    states: int,
    batch: int,
    kind: Kind,
    device: torch.device,
) -> None:
    arguments = ssd_inputs(batch, length, heads, head_dim, states, (kind,) * 4, device)
    dtype = kind if isinstance(kind, torch.dtype) else torch.float32
    compare(arguments, dtype)
    compare_step(arguments, dtype, torch.float32)
    half = changed(arguments, {INITIAL: arguments[INITIAL].half()})
    views = [strided(v) if i in (*ACTIVATIONS, INITIAL) else v for i, v in enumerate(half)]
    compare(half, dtype, torch.float16, views, chunk=64)
    compare_step(arguments, dtype, torch.float16)


@pytest.mark.parametrize("shift", range(len(KINDS)))
@pytest.mark.parametrize("dtype", FLOATS)
def test_mixed_kinds(dtype: torch.dtype, shift: int, device: torch.device) -> None:
    """Every kind of x, B and C beside others, in every position."""
    deltas: list[Kind] = [*FLOATS, KNEE]
    kinds = (KINDS[shift], deltas[shift % 4], KINDS[(shift + 3) % 7], KINDS[(shift + 5) % 7])
    for length, heads in ((70, (6, 2)), (9, (2, 1))):
        arguments = ssd_inputs(2, length, heads, 16, 32, kinds, device)
        compare(arguments, dtype, chunk=16)
        compare_step(arguments, dtype, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
def test_optional_arguments(dtype: torch.dtype, device: torch.device) -> None:
    arguments = ssd_inputs(2, 40, kinds=(KNEE_ROWS, KNEE, TABLE, dtype), device=device)
    for changes in (
        {SKIP: None, BIAS: None, INITIAL: None},
        {SKIP: None},
        {BIAS: None, LOW: 0.1, HIGH: 0.3},
        {LOW: 0.2, HIGH: 0.2},
        {HIGH: 0.05, INITIAL: None},
    ):
        compare(changed(arguments, changes), dtype)
        if INITIAL not in changes:
            compare_step(changed(arguments, changes), dtype, torch.float16)


def test_views_of_one_tensor(device: torch.device) -> None:
    """x, B and C lie side by side in one tensor, and batch and length may be swapped in memory."""
    heads, head_dim, groups, states = 4, 16, 2, 32
    sizes = (heads * head_dim, groups * states, groups * states)
    both, code = integers(33, 3, sum(sizes), device=device), knee_rows(sum(sizes), device=device)
    swapped = both.transpose(0, 1)
    delta = normals(33, 3, heads, device=device).transpose(0, 1)
    views = [part for pair in zip(swapped.split(sizes, -1), code.split(sizes), strict=True) for part in pair]
    rest = ssd_inputs(3, 0, (heads, groups), head_dim, states, device=device)[SKIP:]
    decay = -torch.ones(heads, device=device)
    arguments = [*views[:2], delta, None, decay, *views[2:], *rest]
    compact = [v.contiguous() if torch.is_tensor(v) else v for v in arguments]
    for dtype in FLOATS:
        compare(compact, dtype, torch.float32, arguments)
        compare_step(arguments, dtype, torch.float32)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, KNEE])
@pytest.mark.parametrize(("heads", "head_dim", "states", "batch"), [((4, 2), 16, 64, 3), ((3, 1), 5, 7, 1)])
def test_steps_continue_a_sequence(
    heads: tuple[int, int], head_dim: int, states: int, batch: int, kind: Kind, device: torch.device
) -> None:
    """A prefix in one call and the rest token by token agree with one call to fp32 rounding."""
    length, prefix = 73, 66
    arguments = ssd_inputs(batch, length, heads, head_dim, states, (kind,) * 4, device)
    y, last = ops.ssd_scan(*arguments)
    start, state = ops.ssd_scan(*token(arguments, slice(0, prefix)), arguments[INITIAL])
    outputs = [start]
    for t in range(prefix, length):
        outputs.append(ops.ssd_state_update(state, *token(arguments, t))[:, None])
    for got, expected in ((torch.cat(outputs, dim=1), y), (state, last)):
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=float(2e-6 * expected.abs().max()))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 140), share=st.floats(0, 1), seed=st.integers(0, 6), coded=st.booleans())
def test_a_sequence_cut_anywhere(
    length: int, share: float, seed: int, coded: bool, device: torch.device
) -> None:
    """The state carries all that the second part needs to know of the first."""
    cut = round(share * length)
    kinds = (KINDS[seed] if coded else torch.float32, KNEE if coded else torch.float32, torch.float32, KNEE)
    arguments = ssd_inputs(2, length, HEADS[seed % 4], 8, 16, kinds, device)
    y, last = ops.ssd_scan(*arguments)
    first, state = ops.ssd_scan(*token(arguments, slice(0, cut)), arguments[INITIAL])
    second, end = ops.ssd_scan(*token(arguments, slice(cut, None)), state)
    for got, expected in ((torch.cat([first, second], dim=1), y), (end, last)):
        atol = float(2e-6 * expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("length", [0, 5])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float16])
def test_initial_state_is_not_written(length: int, state_dtype: torch.dtype, device: torch.device) -> None:
    arguments = ssd_inputs(2, length, device=device)
    arguments[INITIAL] = arguments[INITIAL].to(state_dtype)
    initial = arguments[INITIAL].clone()
    y, last = ops.ssd_scan(*arguments, state_dtype=state_dtype)
    assert y.shape == (2, length, 64)
    assert last.dtype == state_dtype
    if not length:
        assert torch.equal(last, initial)
        assert not ops.ssd_scan(*arguments[:INITIAL])[1].any()
    last.zero_()
    assert torch.equal(arguments[INITIAL], initial)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_steps(dtype: torch.dtype, device: torch.device) -> None:
    """A huge step forgets everything, a tiny one changes nothing, and NaN is not hidden."""
    arguments = ssd_inputs(1, 6, device=device)
    arguments[BIAS] = None
    steps = torch.tensor([1.0, 300.0, -120.0, 25.0, 2e4, -1.0], device=device)
    arguments[2] = steps[None, :, None].expand(1, 6, 4).contiguous()
    compare(arguments, dtype)
    arguments[2][0, 2, 1] = torch.nan
    y, last = ops.ssd_scan(*arguments, dtype=dtype)
    heads = y.unflatten(-1, (4, 16))
    assert heads[0, 2:, 1].isnan().all()
    assert last[0, 1].isnan().all()
    assert not heads[..., [0, 2, 3], :].isnan().any()
    assert not last[:, [0, 2, 3]].isnan().any()
    state = arguments[INITIAL].clone()
    y = ops.ssd_state_update(state, *token(arguments, 2), dtype=dtype)
    assert y[0, 16:32].isnan().all()
    assert not y[0, 32:].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", [KNEE, KNEE_ROWS])
def test_control_is_single(kind: int, dtype: torch.dtype, device: torch.device) -> None:
    arguments = ssd_inputs(2, 20, kinds=(kind, KNEE, kind, kind), device=device)
    for i in CODES:
        arguments[i] = knee_rows(arguments[i].shape[0], seed=i, ratio=1.0, device=device)
    control = list(arguments)
    for i in CODES:
        control[i] = arguments[i].clone()
        control[i][:, 3] = 5.0 * i - 40
    for one, other in zip(
        ops.ssd_scan(*arguments, dtype=dtype), ops.ssd_scan(*control, dtype=dtype), strict=True
    ):
        assert torch.equal(one, other)
    one, other = (
        ops.ssd_state_update(v[INITIAL].clone(), *token(v, 0), dtype=dtype) for v in (arguments, control)
    )
    assert torch.equal(one, other)


def refusals(good: list[Any], device: torch.device) -> list[tuple[dict[int, Any], str]]:
    """What is changed in good arguments (4 heads of 16, 2 groups of 16 states), and the sentence that follows."""
    x, delta, decay, b = good[0], good[2], good[4], good[5]
    q, code = integers(2, 4, 64, device=device), knee_rows(device=device)
    wide = torch.zeros(2, 4, 4 * 257, device=device)
    return [
        ({0: x.int()}, r"x is int32 and has no code"),
        ({0: q}, r"x is int8 and has no code"),
        ({0: q, 1: knee_rows(63, device=device)}, r"x_code has shape \(63, 8\), .*\(1 or 64, 8 or 512\)"),
        ({0: x[..., :63]}, r"x has 63 channels, allowed is a multiple of 4, the number of heads"),
        ({0: wide}, r"x has 257 channels in each of 4 heads, allowed is 1 to 256"),
        ({5: wide, 7: wide}, r"B has 514 channels in each of 2 groups, allowed is 1 to 256"),
        ({2: delta[..., :3]}, r"delta has shape \(2, 4, 3\), allowed is shape \(2, 4, 4\)"),
        ({2: q[..., :4], 3: knee_rows(4, device=device)}, r"delta_code has shape \(4, 8\), .*\(1, 8\)"),
        ({2: delta.mT.contiguous().mT}, r"delta has last stride 4, allowed is 1"),
        ({4: decay.double()}, r"A is float64, allowed is float32"),
        ({4: decay[:0]}, r"A has no heads"),
        ({4: decay[None]}, r"A has shape \(1, 4\), allowed is 1 dimensions"),
        ({5: b[..., :31]}, r"B has 31 channels, allowed is a multiple of 2, the number of groups"),
        ({6: code}, r"B is float32 though it has a code, allowed is int8"),
        ({7: b[..., :30]}, r"C has shape \(2, 4, 30\), allowed is shape \(2, 4, 32\)"),
        ({7: b[:, :3]}, r"C has shape \(2, 3, 32\), allowed is shape \(2, 4, 32\)"),
        ({SKIP: decay[:3]}, r"D has shape \(3\), allowed is shape \(4\)"),
        ({BIAS: decay[:3]}, r"delta_bias has shape \(3\), allowed is shape \(4\)"),
        ({LOW: 2.0, HIGH: 1.0}, r"delta_max is 1, allowed is delta_min \(2\) or more"),
        ({LOW: math.nan}, r"delta_min is NaN"),
        ({HIGH: math.nan}, r"delta_max is nan"),
        ({GROUPS: 3}, r"groups is 3, allowed is a divisor of 4, the number of heads"),
        ({GROUPS: 0}, r"groups is 0, allowed is a divisor of 4"),
    ]


def test_refusals(device: torch.device) -> None:
    good = ssd_inputs(2, 4, device=device)
    state = good[INITIAL]
    for changes, message in refusals(good, device):
        arguments = changed(good, changes)
        with pytest.raises(RuntimeError, match="dualscale::ssd_scan: " + message):
            ops.ssd_scan(*arguments)
        if arguments[7].shape[1] == 4:  # a length cannot be wrong in one token
            with pytest.raises(RuntimeError, match="dualscale::ssd_state_update: " + message.split()[0]):
                ops.ssd_state_update(state, *token(arguments, 0))
    for options, message in (
        ({"chunk": 0}, r"chunk is 0, allowed is 1 or more"),
        ({"state_dtype": torch.bfloat16}, r"state_dtype is bfloat16, allowed is float32 or float16"),
        ({"dtype": torch.int8}, r"dtype is int8"),
        ({"initial": state[:1]}, r"initial has shape \(1, 4, 16, 16\), allowed is shape \(2, 4, 16, 16\)"),
        ({"initial": state.mT.contiguous().mT}, r"initial has last stride 16"),
        ({"initial": state.bfloat16()}, r"initial is bfloat16, allowed is float32 or float16"),
    ):
        with pytest.raises(RuntimeError, match="dualscale::ssd_scan: " + message):
            ops.ssd_scan(*good[:INITIAL], **options)
    for wrong, message in ((state[:1], "has shape"), (state.double(), "is float64, allowed is float32 or")):
        with pytest.raises(RuntimeError, match="dualscale::ssd_state_update: state " + message):
            ops.ssd_state_update(wrong, *token(good, 0))
