"""One signature a schema, in every implementation, and what torch asks of an operator."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import integers, knee_rows, normals, table_rows
from layer_cases import SIZES, Layer
from linear_cases import int4_weights, int8_weights

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.pair import pair_code, pair_rows
from dualscale_mamba.ops import dispatch, fake
from dualscale_mamba.ops.schema import SCHEMAS

FLOAT = torch.float32


def samples(device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A coded and a floating-point call of every operator."""
    knee, table = knee_rows(device=device), table_rows(6, device=device)
    x, q = normals(2, 5, 6, device=device), integers(2, 5, 6, device=device)
    taps, bias, history = normals(6, 4, device=device), normals(6, device=device), q[:, :3].clone()
    yield "encode", (x, table)
    yield "decode", (q, knee, torch.float16)
    yield "causal_conv1d_encode", (q, knee, taps, bias, history, knee, FLOAT)
    yield "causal_conv1d_encode", (x, None, taps, None, None, None, torch.bfloat16)
    yield "causal_conv1d_update", (q[:, 0], knee, history, taps, bias, knee, FLOAT)
    A, D = -normals(6, 16, device=device).abs(), normals(6, device=device)
    b, state = integers(2, 5, 16, device=device), normals(2, 6, 16, device=device)
    scan = (q, knee, q, knee, A, b, knee, b, knee, D, q, knee, D)
    yield "selective_scan", (*scan, state, torch.float16)
    yield (
        "selective_scan",
        (x, None, x, None, A, b.float(), None, b.float(), None, None, None, None, None, None, FLOAT),
    )
    step = tuple(v[:, 0] if torch.is_tensor(v) and v.dim() == 3 else v for v in scan)
    yield "selective_state_update", (state, *step, FLOAT)
    yield from pair_samples(device)
    yield from ssd_samples(device)
    yield "rms_norm_quant", (x, x, bias, 1e-5, knee, False, torch.float16, FLOAT)
    yield "rms_norm_quant", (x, None, bias, 1e-5, None, True, FLOAT, FLOAT)
    yield "gated_rms_norm_quant", (x, q, knee, bias, 1e-5, 3, False, table, False, FLOAT)
    yield "gated_rms_norm_quant", (x, x, None, bias, 1e-5, 6, True, None, True, FLOAT)
    base = torch.ones(1, 1, device=device)
    yield "hadamard_quant", (normals(3, 8, device=device), base, None, True, FLOAT)
    yield "hadamard_quant", (normals(3, 8, device=device), base, None, False, torch.float16)
    yield from linear_samples(device)
    width, rank = SIZES[1].width, SIZES[1].rank
    like = torch.empty(1, width, dtype=torch.float16, device=device)
    if device.type == "cpu" or ops.fits_layer_step(like, 2 * width, 16, rank, 12):
        yield "mamba_layer_step", (*Layer(SIZES[1], device).arguments.values(), False)


def pair_samples(device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Selectors in a mask, and in lists."""
    sizes = torch.ones(1, dtype=torch.float64)
    rows = pair_rows(Range(-sizes, sizes, 4 * sizes), 1.25)
    knee, x = knee_rows(device=device), normals(2, 5, 6, device=device)
    taps, A = normals(6, 4, device=device), -normals(6, 16, device=device).abs()
    delta, b = integers(2, 5, 6, device=device), integers(2, 5, 16, device=device)
    for capacity in (None, 64):
        code = pair_code(rows, capacity).to(device)
        side, one = code.side_data(2, 5, 6), code.side_data(2, 1, 6)
        assert side.mask is not None
        assert one.mask is not None
        q = ops.encode_pair(x, code.rows, *side)
        token = ops.encode_pair(x[:, :1], code.rows, *one)
        yield "encode_pair", (x, code.rows, *side)
        yield "decode_pair", (q, code.rows, *side, torch.float16)
        yield "causal_conv1d_encode", (x, None, taps, None, None, code.rows, FLOAT, *side)
        state = normals(2, 3, 6, device=device)
        yield "causal_conv1d_update", (x[:, 0], None, state, taps, None, code.rows, FLOAT, *one)
        scan = (delta, knee, A, b, knee, b, knee, None, None, None, None)
        yield "selective_scan", (q, code.rows, *scan, None, FLOAT, *side)
        step = tuple(v[:, 0] if torch.is_tensor(v) and v.dim() == 3 else v for v in scan)
        state = normals(2, 6, 16, device=device)
        yield "selective_state_update", (state, token[:, 0], code.rows, *step, FLOAT, *one)


def linear_samples(device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Two calls of each width: 40 inputs in groups of 32, 7 outputs."""
    knee, rows = knee_rows(device=device), knee_rows(7, device=device)
    x, q, bias = (
        normals(2, 5, 40, device=device),
        integers(2, 5, 40, device=device),
        normals(7, device=device),
    )
    weights = int8_weights(40, 7, device)
    eight = (weights.codes, weights.scale)
    weights = int4_weights(40, 7, 32, device)
    four, total = (weights.codes, weights.scale), weights.total
    integer_total = eight[0].sum(dim=1, dtype=torch.int32)
    row_scale = torch.ones(10, device=device)
    yield "linear_w8a8", (q, knee, True, None, *eight, integer_total, bias, knee, FLOAT, True)
    yield "linear_w8a8", (q, None, False, row_scale, *eight, integer_total, None, None, torch.float16, False)
    yield "linear_w4a8", (q, knee, True, None, *four, total, 32, bias, rows, FLOAT, True)
    yield (
        "linear_w4a8",
        (q[:0], None, False, row_scale[:0], *four, total, 32, None, None, torch.bfloat16, False),
    )
    yield "linear_w8a16", (x, *eight, bias, rows, FLOAT, True)
    yield "linear_w8a16", (x.half(), *eight, None, None, torch.float16, False)
    yield "linear_w4a16", (x, *four, 32, None, knee, FLOAT, True)
    yield "linear_w4a16", (x.bfloat16(), *four, 32, bias, None, FLOAT, False)


def ssd_samples(device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Four heads of 8 channels, two groups of 16 states."""
    knee, rows = knee_rows(device=device), table_rows(32, device=device)
    x, q = normals(2, 5, 32, device=device), integers(2, 5, 32, device=device)
    delta, codes = normals(2, 5, 4, device=device), integers(2, 5, 4, device=device)
    A, D, state = (
        -torch.ones(4, device=device),
        normals(4, device=device),
        normals(2, 4, 8, 16, device=device),
    )
    coded = (q, rows, codes, knee, A, q, knee, q, rows, D, D, 0.1, 2.0, 2)
    mixed = (x, None, delta, None, A, q, rows, x.half(), None, None, None, 0.0, math.inf, 2)
    half = state.half()
    yield "ssd_scan", (*coded, half, 2, FLOAT, torch.float16)
    yield "ssd_scan", (*mixed, None, 256, torch.float16, FLOAT)
    for before, arguments, dtype in ((state, coded, torch.bfloat16), (half, mixed, FLOAT)):
        step = tuple(v[:, 0] if torch.is_tensor(v) and v.dim() == 3 else v for v in arguments)
        yield "ssd_state_update", (before, *step, dtype)


def sample(index: int, device: torch.device) -> tuple[str, tuple[Any, ...]]:
    """One of them; the last one needs a GPU that has it."""
    found = list(samples(device))
    if index >= len(found):
        pytest.skip("no kernel of a whole layer on this GPU")
    return found[index]


def arguments_of(name: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.dualscale, name).default._schema.arguments]


@pytest.mark.parametrize("name", SCHEMAS)
def test_signatures_agree(name: str) -> None:
    with ops.implementation("reference"):
        reference = dispatch.kernel(name, torch.empty(0))
    for function in (reference, getattr(ops, name)):
        assert list(inspect.signature(function).parameters) == arguments_of(name), function.__module__
        assert "return" in typing.get_type_hints(function)
    shape_function = inspect.signature(getattr(fake, name))
    shape_function.bind(*arguments_of(name))


def test_every_schema_has_a_sample() -> None:
    assert {name for name, _ in samples(torch.device("cpu"))} == set(SCHEMAS)


@pytest.mark.parametrize("index", range(len(list(samples(torch.device("cpu"))))))
def test_opcheck(index: int, device: torch.device) -> None:
    """Schema (mutation, aliasing), fake against real, and tracing."""
    name, arguments = sample(index, device)
    ops.ensure_loaded(device)
    torch.library.opcheck(getattr(torch.ops.dualscale, name).default, arguments)


@pytest.mark.parametrize("index", range(len(list(samples(torch.device("cpu"))))))
def test_results_have_the_reference_form(index: int, device: torch.device) -> None:
    name, arguments = sample(index, device)
    got = getattr(ops, name)(*arguments)
    with ops.implementation("reference"):
        expected = getattr(ops, name)(*arguments)
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    for one, other in pairs:
        assert (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


def test_implementation_is_a_choice() -> None:
    assert ops.current_implementation() == "compiled"
    with ops.implementation("reference"):
        assert ops.current_implementation() == "reference"
    assert ops.current_implementation() == "compiled"
    with pytest.raises(ValueError, match="implementation='fast': allowed is compiled or reference"):
        ops.set_implementation("fast")


def test_work_is_shared_by_threads_alike() -> None:
    """Results do not depend on the number of threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                [getattr(ops, name)(*arguments) for name, arguments in samples(torch.device("cpu"))]
            )
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
