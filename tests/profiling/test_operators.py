"""Work is counted as the operators' formulas say, times belong to the right layers, floors to the right ceilings."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from dualscale_mamba import ops
from dualscale_mamba.formats.base import knee_code
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.profiling import ceilings
from dualscale_mamba.profiling.ceilings import Ceilings
from dualscale_mamba.profiling.latency import Drive
from dualscale_mamba.profiling.operators import (
    MARK,
    Recorder,
    break_down,
    floor_of,
    kernel_times,
    roles_of,
)
from dualscale_mamba.profiling.work import Work

CPU = torch.device("cpu")
RATES = Ceilings(bytes=1e9, int8=4e9, values=2e9, exponentials=1e9)


def code() -> Tensor:
    columns = (torch.tensor([value], dtype=torch.float64) for value in (0.03, -90.0, 40.0, 8.0))
    return knee_code(*columns).rows


def recorded(call: Any) -> Work:
    """The work of the only operator that ``call`` calls."""
    recorder = Recorder({})
    with recorder:
        call()
    (work,) = recorder.work.values()
    return work


@given(rows=st.integers(1, 9), depth=st.integers(1, 9), columns=st.integers(1, 9))
def test_a_product_of_torch_is_counted_as_torch_counts(rows: int, depth: int, columns: int) -> None:
    a, b = torch.ones(rows, depth), torch.ones(depth, columns)
    with FlopCounterMode(display=False) as counter:
        torch.mm(a, b)
    work = recorded(lambda: torch.mm(a, b))
    assert work.products == counter.get_total_flops() == 2 * rows * depth * columns
    assert work.bytes == 4 * (rows * depth + depth * columns + rows * columns)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_linear_layer_reads_its_codes_once(bits: int) -> None:
    rows, depth, columns = 3, 64, 8
    x = torch.zeros(rows, depth, dtype=torch.int8)
    sums, scale = torch.zeros(columns, dtype=torch.int32), torch.ones(columns)
    if bits == 8:
        weight = torch.zeros(columns, depth, dtype=torch.int8)
        call = lambda: ops.linear_w8a8(x, code(), True, None, weight, scale, sums)  # noqa: E731
        beside = 2 * 4 * columns
    else:
        packed, groups = torch.zeros(columns, depth // 2, dtype=torch.uint8), torch.ones(columns, 2).half()
        call = lambda: ops.linear_w4a8(x, code(), True, None, packed, groups, scale, 32)  # noqa: E731
        beside = 4 * columns + 2 * 2 * columns
    recorder = Recorder({})
    made = code()
    with recorder:
        call()
    work = recorder.work[f"linear_w{bits}a8"]
    assert work.is_int8
    assert work.products == 2 * rows * depth * columns
    moved = rows * depth + columns * depth * bits // 8 + beside + made.nbytes
    result = rows * columns * 4
    assert work.bytes == moved + result


def test_a_state_is_read_and_written() -> None:
    batch, channels, states = 2, 4, 16
    state = torch.zeros(batch, channels, states)
    u, b = torch.zeros(batch, channels), torch.zeros(batch, states)
    decay = -torch.ones(channels, states)
    work = recorded(lambda: ops.selective_state_update(
        state, u, None, u, None, decay, b, None, b, None, None, None, None, None, torch.float32
    ))  # fmt: skip
    assert work.exponentials == batch * channels * states
    inputs = 2 * u.nbytes + decay.nbytes + 2 * b.nbytes
    assert work.bytes == 2 * state.nbytes + inputs + u.nbytes


def test_an_embedding_reads_the_rows_that_it_gives() -> None:
    table, ids = torch.zeros(1000, 8), torch.tensor([3, 5])
    work = recorded(lambda: torch.nn.functional.embedding(ids, table))
    assert work.bytes == 2 * 2 * 8 * 4 + ids.nbytes


def test_the_matrix_form_counts_products_of_chunk_and_states() -> None:
    """One head, one group, one chunk: C B^T and its product with x, the causal half; the state twice."""
    length, width, states = 32, 8, 4
    x, delta = torch.zeros(1, length, width), torch.zeros(1, length, 1)
    b, decay = torch.zeros(1, length, states), -torch.ones(1)
    rest = (None, None, 0.0, 1.0, 1, None, length, torch.float32, torch.float32)
    work = recorded(lambda: ops.ssd_scan(x, None, delta, None, decay, b, None, b, None, *rest))
    assert work.products == length * length * (states + width) + 4 * length * width * states


def test_every_layer_has_its_line() -> None:
    model = load_pretrained("random:tiny").model
    drive = Drive(model, 1, 8, CPU)
    broken = break_down(drive.prefill, roles_of(model), RATES, CPU, repeats=2, warmup=0)
    calls = Counter({one.name: one.calls for one in broken.operators})
    layers = model.config.n_layer
    for role in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        assert sum(count for name, count in calls.items() if name.endswith(f" {role}")) == layers
    assert sum(count for name, count in calls.items() if name.endswith(" lm_head")) == 1
    assert calls["selective_scan"] == layers
    assert calls["causal_conv1d_encode"] == layers
    times = [one.milliseconds for one in broken.operators]
    assert all(time > 0 for time in times)
    assert times == sorted(times, reverse=True)
    assert broken.milliseconds > 0
    assert broken.rest >= 0


def test_the_whole_may_be_another_way_to_the_same() -> None:
    """Operators of the call that shows them, the time of the one that is wanted."""
    waits, calls = [], []

    def whole() -> None:
        waits.append(time.sleep(0.05))

    def work() -> None:
        calls.append(torch.ones(2) + 1)

    broken = break_down(work, {}, RATES, CPU, repeats=2, warmup=1, whole=whole)
    assert (len(waits), len(calls)) == (3, 3)
    assert broken.milliseconds >= 50
    assert {one.name for one in broken.operators} >= {"aten add"}
    assert broken.rest > 40


def test_the_floor_is_that_of_the_scarcest() -> None:
    assert floor_of(Work(bytes=1e6, products=1e6), RATES) == (1.0, "bytes")
    assert floor_of(Work(bytes=1e6, products=1e7), RATES) == (5.0, "values")
    assert floor_of(Work(bytes=1e6, products=1e7, is_int8=True), RATES) == (2.5, "int8")
    assert floor_of(Work(bytes=1e6, exponentials=3e6), RATES) == (3.0, "exponentials")


def test_kernels_count_for_the_span_that_launched_them() -> None:
    """Spans come once as seen by the CPU, with the time of the kernels, and once as seen by the device."""

    def event(name: str, kind: DeviceType, microseconds: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=kind, device_time_total=microseconds)

    events = [
        event(f"{MARK}scan", DeviceType.CPU, 30.0),
        event(f"{MARK}scan", DeviceType.CUDA, 70.0),
        event("aten::mm", DeviceType.CPU, 11.0),
        event(f"{MARK}scan", DeviceType.CPU, 20.0),
        event(f"{MARK}conv", DeviceType.CPU, 5.0),
    ]
    assert kernel_times(events) == pytest.approx({"scan": 0.05, "conv": 0.005})


def test_ceilings_are_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 64})
    monkeypatch.setattr(ceilings, "last_level_bytes", lambda device: 2**20)
    found = ceilings.measure(CPU, torch.float32)
    assert min(found.bytes, found.int8, found.values, found.exponentials) > 1e6
