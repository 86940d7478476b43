"""One signature a schema, in every implementation, and what torch asks of an operator."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import integers, knee_rows, normals, table_rows

from dualscale_mamba import ops
from dualscale_mamba.ops import fake, reference
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
    yield "rms_norm_quant", (x, x, bias, 1e-5, knee, False, torch.float16, FLOAT)
    yield "rms_norm_quant", (x, None, bias, 1e-5, None, True, FLOAT, FLOAT)
    base = torch.ones(1, 1, device=device)
    yield "hadamard_quant", (normals(3, 8, device=device), base, None, True, FLOAT)
    yield "hadamard_quant", (normals(3, 8, device=device), base, None, False, torch.float16)
    weight, scale = integers(7, 6, device=device), torch.ones(7, device=device)
    total = weight.sum(dim=1, dtype=torch.int32)
    yield "linear_w8a8", (q, knee, True, None, weight, scale, total, scale, knee, FLOAT)
    yield (
        "linear_w8a8",
        (q, None, False, torch.ones(10, device=device), weight, scale, total, None, None, torch.float16),
    )


def arguments_of(name: str) -> list[str]:
    return [argument.name for argument in getattr(torch.ops.dualscale, name).default._schema.arguments]


@pytest.mark.parametrize("name", SCHEMAS)
def test_signatures_agree(name: str) -> None:
    for module in (reference, ops):
        function = getattr(module, name)
        assert list(inspect.signature(function).parameters) == arguments_of(name), module.__name__
        assert "return" in typing.get_type_hints(function)
    shape_function = inspect.signature(getattr(fake, name))
    shape_function.bind(*arguments_of(name))


def test_every_schema_has_a_sample() -> None:
    assert {name for name, _ in samples(torch.device("cpu"))} == set(SCHEMAS)


@pytest.mark.parametrize("index", range(len(list(samples(torch.device("cpu"))))))
def test_opcheck(index: int, device: torch.device) -> None:
    """Schema (mutation, aliasing), fake against real, and tracing."""
    name, arguments = list(samples(device))[index]
    ops.ensure_loaded(device)
    torch.library.opcheck(getattr(torch.ops.dualscale, name).default, arguments)


@pytest.mark.parametrize("index", range(len(list(samples(torch.device("cpu"))))))
def test_results_have_the_reference_form(index: int, device: torch.device) -> None:
    name, arguments = list(samples(device))[index]
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
