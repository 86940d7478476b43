"""A layer's step against the operators that it joins: results, states, and what launches hand on to each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from layer_cases import SIZES, Layer, Size, run, sizes
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.ops import dispatch
from dualscale_mamba.ops.composed import Composed
from dualscale_mamba.profiling.operators import Recorder

SMALL = SIZES[1]
# Codes next to a tie may be neighbours where sums are made in another order, and then all that follows differs a bit.
NEAR = 5e-3


def need(size: Size, device: torch.device) -> None:
    """Skip where the device has no kernel for the size; the CPU runs the operators themselves, the smallest alone."""
    if device.type == "cpu":
        if size.width != SMALL.width:
            pytest.skip("on the CPU the operators themselves run, whose own tests have other sizes")
        return
    like, order = torch.empty(size.batch, size.width, dtype=torch.float16, device=device), order_of(size)
    if not ops.fits_layer_step(like, size.channels, 16, size.rank, order):
        pytest.skip("no kernel of a whole layer on this GPU")


def order_of(size: Size) -> int:
    return next(
        m for m in (1, 12, 20, 28) if size.channels % m == 0 and (size.channels // m).bit_count() == 1
    )


def separate(arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The operators one after the other."""
    ops.ensure_loaded(arguments["hidden"].device)
    out, total = Composed(dispatch._compiled.__getitem__).mamba_layer_step(**arguments, reads_ahead=False)
    return {"out": out, "total": total, "conv_state": arguments["conv_state"], "state": arguments["state"]}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], size: Size) -> None:
    """Bitwise where all sums are made in the same order; else what precedes the first such sum is the same."""
    is_exact = size.bits == 8 and order_of(size) != 1
    assert torch.equal(got["total"], want["total"])
    for name in ("out", "state", "conv_state"):
        assert got[name].dtype == want[name].dtype
        if is_exact or got[name].device.type == "cpu":
            assert torch.equal(got[name], want[name]), name
        elif name == "conv_state":
            assert (got[name].int() - want[name].int()).abs().max() <= 1
        else:
            error = (got[name].double() - want[name].double()).norm() / want[name].double().norm()
            assert error < NEAR, f"{name}: {error:.2e}"


@pytest.mark.parametrize("size", sizes(batches=(1, 3, 4)), ids=str)
def test_same_as_the_operators(size: Size, device: torch.device) -> None:
    need(size, device)
    layer = Layer(size, device)
    for reads_ahead in (False, True):
        assert_same(run(layer.copied(), reads_ahead), separate(layer.copied()), size)


@pytest.mark.parametrize(
    "size",
    [
        replace(SMALL, has_extras=False, has_residual=False, taps=3),
        replace(SMALL, residual_dtype=torch.float16, knee_at=-40.0, batch=2),
        replace(SMALL, bits=4, knee_at=-40.0, taps=2),
        replace(SMALL, bits=4, delta_bits=8, batch=3),
        replace(SIZES[0], bits=4, delta_bits=8),
        Size(1536, 96),
    ],
    ids=str,
)
def test_other_forms(size: Size, device: torch.device) -> None:
    """Fewer taps, nothing added, a knee below zero, other types."""
    need(size, device)
    layer = Layer(size, device)
    assert_same(run(layer.copied()), separate(layer.copied()), size)


@pytest.mark.parametrize("bits", [8, 4])
def test_its_work_is_that_of_its_parts(bits: int) -> None:
    """But for what these hand on to each other."""
    size = replace(SMALL, bits=bits, batch=2)
    given = Layer(size).copied()
    whole, parts = Recorder({given["in_weight"].data_ptr(): "in_proj"}), Recorder({})
    with whole:
        run(given)
    with parts:
        separate(given)
    own = whole.work["mamba_layer_step"]
    apart = [work for name, work in parts.work.items() if not name.startswith("aten")]
    assert own.is_int8
    assert own.products == sum(work.products for work in apart)
    assert own.exponentials == sum(work.exponentials for work in apart)
    assert 0.9 < own.bytes / sum(work.bytes for work in apart) < 1.0


def chain(layers: list[Layer], rounds: int, step: Any) -> list[dict[str, Tensor]]:
    """Layers one behind the other, each fed by the one before, several times; the last results of each."""
    held = [layer.copied() for layer in layers]
    made: list[dict[str, Tensor]] = []
    for number in range(rounds * len(layers)):
        own = held[number % len(layers)]
        if number:
            own |= {"hidden": made[-1]["out"], "residual": made[-1]["total"]}
        made.append(step(own))
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    return made[-len(layers) :]


@pytest.mark.parametrize("size", [SMALL, SIZES[0], replace(SIZES[0], bits=4, batch=4)], ids=str)
def test_launches_follow_each_other(size: Size, device: torch.device) -> None:
    """Overlapping launches share a workspace; states are those of many tokens."""
    need(size, device)
    first = Layer(size, device)
    layers = [first, *(Layer(size, device, seed, first.arguments["workspace"]) for seed in (1, 2))]
    rounds = 2 if device.type == "cpu" else 12
    got = chain(layers, rounds, lambda own: run(own, reads_ahead=True))
    want = chain(layers, rounds, separate)
    for one, other in zip(got, want, strict=True):
        if size.bits == 8 or device.type == "cpu":
            assert_same(one, other, size)
        else:  # codes that are neighbours once make others later
            assert (one["total"] - other["total"]).norm() < 0.05 * other["total"].norm()


def test_batches_take_turns(device: torch.device) -> None:
    """What a launch leaves in the workspace serves one of another size of batch."""
    need(SMALL, device)
    first = Layer(SMALL, device)
    for seed, batch in enumerate((4, 1, 3, 2, 4, 1)):
        size = replace(SMALL, batch=batch)
        layer = Layer(size, device, seed, first.arguments["workspace"])
        assert_same(run(layer.copied()), separate(layer.copied()), size)


@pytest.mark.gpu
def test_graph_replays() -> None:
    """A graph goes on where the launches before it, or its own last replay, have stopped."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    device = torch.device("cuda")
    size = SIZES[0]
    need(size, device)
    first = Layer(size, device)
    layers = [first, *(Layer(size, device, seed, first.arguments["workspace"]) for seed in (1, 2, 3))]
    held = [layer.copied() for layer in layers]
    start = [{name: own[name].clone() for name in ("conv_state", "state")} for own in held]

    def step() -> list[dict[str, Tensor]]:
        made: list[dict[str, Tensor]] = []
        for own in held:
            now = own | ({"hidden": made[-1]["out"], "residual": made[-1]["total"]} if made else {})
            made.append(run(now, reads_ahead=True))
        return made

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for own, kept in zip(held, start, strict=True):
        for name, tensor in kept.items():
            own[name].copy_(tensor)
    for _ in range(7):
        graph.replay()
    torch.cuda.synchronize()
    others = [layer.copied() for layer in layers]
    for _ in range(7):
        made: list[dict[str, Tensor]] = []
        for own in others:
            now = own | ({"hidden": made[-1]["out"], "residual": made[-1]["total"]} if made else {})
            made.append(separate(now))
    for one, other in zip(results, made, strict=True):
        assert_same(one, other, size)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden": torch.zeros(5, 768, dtype=torch.float16), "residual": torch.zeros(5, 768)},
            "hidden has shape \\(5, 768\\)",
        ),
        ({"hidden": torch.zeros(1, 768)}, "hidden is float32, allowed is float16"),
        ({"workspace": torch.zeros(7, dtype=torch.int64)}, "workspace has shape \\(7\\)"),
        ({"group_size": 64}, "group_size is 64, allowed is 0 for int8 weights, or 128"),
        ({"in_code": torch.zeros(768, 8)}, "in_code has shape"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    device = torch.device("cuda")
    need(SMALL, device)
    moved = {name: each.to(device) if isinstance(each, Tensor) else each for name, each in changes.items()}
    with pytest.raises(RuntimeError, match=message):
        run(Layer(SMALL, device).copied() | moved)
