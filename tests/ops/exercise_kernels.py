"""Run every operator of a device on small, odd shapes and compare with the reference.

    python tests/ops/exercise_kernels.py [cuda|cpu] [family ...]
    compute-sanitizer --tool memcheck python tests/ops/exercise_kernels.py

One process and few, small launches, so that it can run under a memory or race checker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from exercise_inputs import FLOATS, Case, Inputs
from exercise_layer import layer
from exercise_linear import linear
from exercise_pairs import pairs
from torch import Tensor

from dualscale_mamba import ops

# Of a Hadamard transform: order of the base, and what doubles it.
ORDERS = ((1, 1), (1, 2), (12, 1), (12, 16), (20, 32), (28, 8), (40, 4), (12, 128), (1, 16384))
# Which argument an operator changes in place.
STATE = {"conv update": 2, "state update": 0, "ssd update": 0, "layer step": 25}


def elementwise(make: Inputs) -> Iterator[Case]:
    for channels in (1, 5, 16):
        for code in make.any_code(channels):
            for dtype in FLOATS:
                x = make.floats(3, 7, channels, dtype=dtype)
                x[0, 0, 0], x[0, 1, 0], x[0, 2, 0] = float("nan"), float("inf"), -float("inf")
                yield "encode", ops.encode, (x, code)
                yield "decode", ops.decode, (make.codes(5, channels), code, dtype)
    yield "encode", ops.encode, (make.floats(4, 6, 24)[:, ::2, 3:19], make.knee(16))


def convolution(make: Inputs) -> Iterator[Case]:
    for channels, length, taps in ((24, 37, 4), (13, 1, 4), (8, 70, 3), (3, 5, 2), (16, 0, 4)):
        weight, bias = make.floats(channels, taps), make.floats(channels)
        for code in (*make.any_code(channels), None):
            for x_code, x, state in (
                (
                    make.knee(scale=0.02),
                    make.codes(2, length, 2 * channels),
                    make.codes(2, taps - 1, channels),
                ),
                (None, make.floats(2, length, 2 * channels), make.floats(2, taps - 1, channels)),
                (
                    None,
                    make.floats(2, length, 2 * channels).half(),
                    make.floats(2, taps - 1, channels).half(),
                ),
            ):
                first = x[..., :channels]
                yield (
                    "conv",
                    ops.causal_conv1d_encode,
                    (first, x_code, weight, bias, None, code, torch.float32),
                )
                yield (
                    "conv",
                    ops.causal_conv1d_encode,
                    (first, x_code, weight, None, state, code, torch.float16),
                )
                token = (make.codes if x_code is not None else make.floats)(2, channels)
                arguments = (token.to(x.dtype), x_code, state, weight, bias, code, torch.float32)
                yield "conv update", ops.causal_conv1d_update, arguments


def scan_arguments(
    make: Inputs, channels: int, states: int, kind: str, shape: tuple[int, ...]
) -> tuple[object, ...]:
    """u, u_code, delta, delta_code, A, B, B_code, C, C_code, D, z, z_code, delta_bias; B and C are slices."""
    dtype = torch.float16 if kind == "half" else torch.float32
    coded = kind.startswith("codes")
    both = make.codes(*shape, 2 * states + 3) if coded else make.floats(*shape, 2 * states + 3, dtype=dtype)
    wide = make.codes(*shape, 2 * channels) if coded else make.floats(*shape, 2 * channels, dtype=dtype)
    code = make.knee(ratio=2.0) if coded else None
    u_code: Tensor | None = {"codes": make.knee, "codes table": make.table}.get(kind, make.table)()
    if kind == "codes per channel":
        u_code = make.knee(channels)
    if kind in ("float", "half"):
        u_code = None
    u = make.floats(*shape, channels, dtype=dtype) if u_code is None else make.codes(*shape, channels)
    rate = -torch.rand(channels, states, generator=make.generator).to(make.device) * 4 - 0.1
    bias = make.floats(channels) - 2
    return (
        *(u, u_code, wide[..., :channels], code, rate),
        *(both[..., 3 : 3 + states], code, both[..., 3 + states :], code),
        *(make.floats(channels), wide[..., channels:], code, bias),
    )


def scan(make: Inputs) -> Iterator[Case]:
    shapes = [(20, 16, 35), (16, 16, 1), (7, 3, 18), (9, 8, 40), (65, 16, 33), (5, 31, 17), (6, 64, 20)]
    shapes += [(4, 100, 9), (4, 256, 33), (20, 1, 5), (8, 16, 0)]
    for channels, states, length in shapes:
        for kind in ("codes", "codes per channel", "codes table", "float", "half", "float with coded u"):
            arguments = scan_arguments(make, channels, states, kind, (2, length))
            initial = make.floats(2, channels, states)
            yield f"scan {kind}", ops.selective_scan, (*arguments, initial, torch.float32)
            arguments = scan_arguments(make, channels, states, kind, (3,))
            state = make.floats(3, channels, states)
            yield f"state update {kind}", ops.selective_state_update, (state, *arguments, torch.float32)
    # Each number of states a lane, of a chip with 132 multiprocessors; and a sequence that is worth a table.
    for name, batch, channels, length in (
        ("few", 1, 40, 70), ("middle", 4, 1056, 35), ("wide", 2, 4224, 20), ("long", 1, 20, 1030),
    ):  # fmt: skip
        for kind in ("codes", "codes per channel", "half") if name != "wide" else ("codes", "half"):
            arguments = scan_arguments(make, channels, 16, kind, (batch, length))
            yield f"scan {name} {kind}", ops.selective_scan, (*arguments, None, torch.float16)
    for batch in (1, 6, 37):  # of sequences that one thread takes at once, and one after the other
        for states in (16, 40):
            arguments = scan_arguments(make, 72, states, "codes", (batch,))
            state = make.floats(batch, 72, states)
            yield "state update batch", ops.selective_state_update, (state, *arguments, torch.float16)
    short = list(scan_arguments(make, 24, 16, "codes", (2, 19)))
    short[9:13] = [None] * 4
    yield "scan plain", ops.selective_scan, (*short, None, torch.bfloat16)


def ssd_arguments(
    make: Inputs, kind: str, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[object, ...]:
    """All arguments up to `groups`; x, B and C lie side by side in one tensor with a gap in front."""
    heads, groups, head_dim, states = sizes
    widths = (3 if head_dim % 8 else 8, heads * head_dim, groups * states, groups * states)
    both = make.floats(*shape, sum(widths)).half() if kind == "half" else make.codes(*shape, sum(widths))
    code_of: dict[str, Callable[[int], Tensor | None]] = {
        "knee": lambda n: make.knee(scale=0.003),
        "knee per channel": lambda n: make.knee(n, scale=0.003),
        "table per channel": make.table,
        "half": lambda n: None,
    }
    x, b, c = ((v, code_of[kind](v.shape[-1])) for v in both.split(widths, dim=-1)[1:])
    delta = make.codes(*shape, heads) if (coded := kind.startswith("knee")) else make.floats(*shape, heads)
    rate = -torch.rand(heads, generator=make.generator).to(make.device) * 4 - 0.1
    rest = (make.floats(heads), make.floats(heads) - 3, 0.0, 4.0, groups)
    return (*x, delta, make.knee(ratio=2.0) if coded else None, rate, *b, *c, *rest)


def ssd(make: Inputs) -> Iterator[Case]:
    shapes = [
        (4, 2, 64, 128, 65),
        (3, 1, 64, 128, 130),
        (2, 2, 16, 16, 63),
        (3, 3, 5, 7, 1),
        (2, 1, 80, 40, 64),
    ]
    shapes += [(2, 1, 32, 256, 70), (1, 1, 1, 1, 9), (4, 2, 24, 64, 33), (2, 1, 8, 32, 0)]
    for *sizes, length in shapes:
        heads, _, head_dim, states = sizes
        initial = make.floats(2, heads, head_dim, states + 8)[..., :states]
        for kind in ("knee", "knee per channel", "table per channel", "half"):
            arguments = ssd_arguments(make, kind, tuple(sizes), (2, length))
            for dtype, before, kept in (
                (torch.float32, initial, torch.float32),
                (torch.float16, initial.half(), torch.float16),
                (torch.bfloat16, None, torch.float32),
            ):
                yield f"ssd {kind}", ops.ssd_scan, (*arguments, before, 256, kept, dtype)
            arguments = ssd_arguments(make, kind, tuple(sizes), (3,))
            for dtype in (torch.float32, torch.float16):
                state = make.floats(3, heads, head_dim, states).to(dtype)
                yield f"ssd update {kind}", ops.ssd_state_update, (state, *arguments, torch.float32)


def row_ends(make: Inputs, channels: int) -> Iterator[tuple[Tensor | None, bool]]:
    yield from ((code, False) for code in (*make.any_code(channels), None))
    yield None, True


def rows(make: Inputs) -> Iterator[Case]:
    for channels in (1, 6, 96, 1030):
        for code, per_token in row_ends(make, channels):
            x, residual = make.floats(3, 2, channels, dtype=torch.float16), make.floats(3, 2, channels)
            weight = make.floats(channels)
            arguments = (x, residual, weight, 1e-5, code, per_token, torch.float32, torch.float16)
            yield "norm", ops.rms_norm_quant, arguments
            arguments = (x, None, weight, 1e-5, code, per_token, torch.bfloat16, torch.float32)
            yield "norm", ops.rms_norm_quant, arguments
            for group in {1, channels // 2, channels} - {0}:
                for z, z_code in ((x, None), (make.codes(3, 2, channels), make.knee(scale=0.02))):
                    for first in (False, True):
                        norm = (weight, 1e-5, group, first, code, per_token, torch.float32)
                        arguments = (residual, z, z_code, *norm)
                        yield "gated norm", ops.gated_rms_norm_quant, arguments
    for order, segment in ORDERS:
        base = torch.where(make.floats(order, order) > 0, 1.0, -1.0)
        for code, per_token in row_ends(make, order * segment):
            x = make.floats(3, order * segment, dtype=torch.bfloat16)
            yield f"hadamard {order}", ops.hadamard_quant, (x, base, code, per_token, torch.float32)


LIMITS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def compare(name: str, got: object, want: object, limit: float = 0.0) -> tuple[float, int]:
    """Largest relative error of a floating result, and how many codes differ (by one at most)."""
    if isinstance(got, tuple):
        assert isinstance(want, tuple)
        if name.startswith("ssd"):  # products in the type of y decide about the state too
            limit = max(LIMITS[each.dtype] for each in got if isinstance(each, Tensor))
        parts = [compare(name, *pair, limit) for pair in zip(got, want, strict=True)]
        return max(error for error, _ in parts), sum(count for _, count in parts)
    assert isinstance(got, Tensor)
    assert isinstance(want, Tensor)
    assert (got.shape, got.dtype) == (want.shape, want.dtype), name
    if got.dtype == torch.int8:
        apart = (got.int() - want.int()).abs()
        assert not apart.numel() or apart.max() <= (0 if name == "encode" else 1), (
            f"{name}: {apart.max()} codes apart"
        )
        return 0.0, int(apart.sum())
    if name == "decode":
        assert torch.equal(got, want), name
    difference = (got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)
    limit = max(limit, LIMITS[got.dtype])
    assert not got.numel() or difference < limit, f"{name}: relative error {difference:.2e}"
    return float(difference) if got.numel() and got.dtype == torch.float32 else 0.0, 0


def clone(argument: object) -> object:
    return argument.clone() if isinstance(argument, Tensor) and argument.is_contiguous() else argument


def main() -> None:
    make = Inputs(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    families = (elementwise, convolution, scan, ssd, rows, linear, pairs, layer)
    for family in [each for each in families if each.__name__ in sys.argv[2:] or not sys.argv[2:]]:
        count, worst, codes_apart = 0, 0.0, 0
        for name, function, arguments in family(make):
            results = []
            # PyTorch's convolution refuses an empty sequence.
            if name == "conv" and arguments[0].shape[1] == 0:
                assert function(*arguments).numel() == 0
                continue
            for implementation in ("compiled", "reference"):
                own = [clone(argument) for argument in arguments]
                with ops.implementation(implementation):
                    result = function(*own)
                changed = next((own[at] for start, at in STATE.items() if name.startswith(start)), None)
                results.append(result if changed is None else (result, changed))
            error, apart = compare(name, *results)
            count, worst, codes_apart = count + 1, max(worst, error), codes_apart + apart
        print(
            f"{family.__name__}: {count} cases, largest fp32 error {worst:.1e}, {codes_apart} codes one apart"
        )


if __name__ == "__main__":
    main()
