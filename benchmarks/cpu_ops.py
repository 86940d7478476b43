"""Time the C++ operators against plain PyTorch on this processor.

    python benchmarks/cpu_ops.py [--threads 2] [--repeats 9] [--only ssd]

Every line is the median of ``--repeats`` calls, both sides timed in turn so that they see the same machine.
The rival of the scan is its recurrence step by step; that of the SSD scan the chunked matrix form; that of the
convolution F.conv1d, SiLU and quantize; that of a linear layer of any width F.linear in fp32 of the same size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Code, knee_code
from dualscale_mamba.ops import reference, reference_ssd

BATCH, LENGTH, CHANNELS, STATES = 2, 1024, 512, 16
# Of the Mamba-2 operators: batch 1.
SSD_LENGTH, HEADS, HEAD_DIM, SSD_STATES = 512, 16, 64, 128


@dataclass(frozen=True)
class Case:
    """Two ways to the same result; ``aim`` is how many times faster the first must be, if that is fixed."""

    name: str
    kernel: Callable[[], object]
    rival: Callable[[], object]
    aim: float | None = None


def dual(scale: float) -> Tensor:
    """A dual-scale code: fine to 40, coarse above."""
    columns = (torch.tensor([v], dtype=torch.float64) for v in (scale, -90.0, 40.0, 8.0))
    code: Code = knee_code(*columns)
    return code.rows


def scan_cases() -> Iterator[Case]:
    """Selective scan in fp32 and in int8, and one step."""
    u, delta = torch.randn(BATCH, LENGTH, CHANNELS), torch.randn(BATCH, LENGTH, CHANNELS) - 3
    b, c = torch.randn(BATCH, LENGTH, STATES), torch.randn(BATCH, LENGTH, STATES)
    z = torch.randn(BATCH, LENGTH, CHANNELS)
    decay, skip, bias = (
        -torch.exp(torch.randn(CHANNELS, STATES)),
        torch.randn(CHANNELS),
        torch.randn(CHANNELS),
    )
    floating = (u, None, delta, None, decay, b, None, c, None, skip, z, None, bias, None, torch.float32)
    code = dual(0.03)
    q = [ops.encode(v, code) for v in (u, delta, b, c, z)]
    coded = (
        q[0],
        code,
        q[1],
        code,
        decay,
        q[2],
        code,
        q[3],
        code,
        skip,
        q[4],
        code,
        bias,
        None,
        torch.float32,
    )
    for name, arguments in (("selective_scan fp32", floating), ("selective_scan int8", coded)):
        yield Case(
            name,
            lambda a=arguments: ops.selective_scan(*a),
            lambda a=arguments: reference.selective_scan(*a),
            10.0,
        )
    state = torch.zeros(BATCH, CHANNELS, STATES)
    step = tuple(v[:, 0].contiguous() if torch.is_tensor(v) and v.dim() == 3 else v for v in coded)
    step = (*step[:13], torch.float32)
    yield Case(
        "selective_state_update int8",
        lambda: ops.selective_state_update(state, *step),
        lambda: reference.selective_state_update(state, *step),
    )


def ssd_cases() -> Iterator[Case]:
    """State space duality in fp32 and in int8, one step, and the gated norm."""
    channels, code = HEADS * HEAD_DIM, dual(0.03)
    x, delta, z = (torch.randn(1, SSD_LENGTH, n) for n in (channels, HEADS, channels))
    b, c = torch.randn(1, SSD_LENGTH, SSD_STATES), torch.randn(1, SSD_LENGTH, SSD_STATES)
    decay, skip, bias = -torch.exp(torch.randn(HEADS)), torch.randn(HEADS), torch.randn(HEADS) - 3
    rest = (skip, bias, 0.0, float("inf"), 1, None, 256, torch.float32, torch.float32)
    floating = (x, None, delta, None, decay, b, None, c, None, *rest)
    q = [ops.encode(v, code) for v in (x, delta, b, c)]
    coded = (q[0], code, q[1], code, decay, q[2], code, q[3], code, *rest)
    for name, arguments in (("ssd_scan fp32", floating), ("ssd_scan int8", coded)):
        yield Case(
            name,
            lambda a=arguments: ops.ssd_scan(*a),
            lambda a=arguments: reference_ssd.ssd_scan(*a),
            10.0,
        )
    state = torch.zeros(1, HEADS, HEAD_DIM, SSD_STATES)
    step = [v[:, 0] if torch.is_tensor(v) and v.dim() == 3 else v for v in coded]
    step = [*step[:14], torch.float32]
    yield Case(
        "ssd_state_update int8",
        lambda: ops.ssd_state_update(state, *step),
        lambda: reference_ssd.ssd_state_update(state, *step),
    )
    norm = (x, ops.encode(z, code), code, torch.rand(channels), 1e-5, channels, False, code, False, x.dtype)
    yield Case(
        "gated_rms_norm_quant",
        lambda: ops.gated_rms_norm_quant(*norm),
        lambda: reference.gated_rms_norm_quant(*norm),
    )


def conv_cases() -> Iterator[Case]:
    """Convolution + SiLU + encode."""
    x, weight, bias = torch.randn(BATCH, LENGTH, CHANNELS), torch.randn(CHANNELS, 4), torch.randn(CHANNELS)
    code, x_code = dual(0.03), dual(0.03)
    q = ops.encode(x, x_code)

    def plain(value: Tensor) -> Tensor:
        y = F.conv1d(value.transpose(1, 2), weight[:, None], bias, padding=3, groups=CHANNELS)[..., :LENGTH]
        return torch.clamp(torch.round(F.silu(y) * 20.0), -128, 127).to(torch.int8)

    arguments = (weight, bias, None, code)
    yield Case(
        "causal_conv1d_encode fp32",
        lambda: ops.causal_conv1d_encode(x, None, *arguments),
        lambda: plain(x),
        3.0,
    )
    yield Case(
        "causal_conv1d_encode int8",
        lambda: ops.causal_conv1d_encode(q, x_code, *arguments),
        lambda: plain(q.float() * 0.03),
        3.0,
    )


def row_cases() -> Iterator[Case]:
    """Formats, norm and transform, by row."""
    x, weight, code = torch.randn(BATCH * LENGTH, CHANNELS), torch.rand(CHANNELS), dual(0.03)
    q, base = ops.encode(x, code), torch.ones(1, 1)
    yield Case("encode", lambda: ops.encode(x, code), lambda: reference.encode(x, code))
    yield Case("decode", lambda: ops.decode(q, code), lambda: reference.decode(q, code, torch.float32))
    norm = (x, x, weight, 1e-5, code, False, torch.float32, torch.float32)
    yield Case("rms_norm_quant", lambda: ops.rms_norm_quant(*norm), lambda: reference.rms_norm_quant(*norm))
    turn = (x, base, code, False, torch.float32)
    yield Case("hadamard_quant", lambda: ops.hadamard_quant(*turn), lambda: reference.hadamard_quant(*turn))


def linear_cases() -> Iterator[Case]:
    """Linear layers of every width, for many rows and for one, against F.linear in fp32."""
    columns, group_size, code = 2 * CHANNELS, 128, dual(0.03)
    weight = torch.randint(-127, 128, (columns, CHANNELS), dtype=torch.int8)
    packed = torch.randint(0, 256, (columns, CHANNELS // 2), dtype=torch.uint8)
    scale, groups = torch.rand(columns), torch.rand(columns, CHANNELS // group_size).half()
    wide, total, sums = weight.float(), weight.sum(dim=1, dtype=torch.int32), torch.rand(columns)
    for rows in (BATCH * LENGTH, 1):
        x, q = torch.randn(rows, CHANNELS), torch.randint(-128, 128, (rows, CHANNELS), dtype=torch.int8)
        arms: dict[str, Callable[[], object]] = {}
        for knee in (False, True):
            first = (q, code, knee, None)
            arms["w8a8" + ", knee" * knee] = partial(ops.linear_w8a8, *first, weight, scale, total)
            arms["w4a8" + ", knee" * knee] = partial(
                ops.linear_w4a8, *first, packed, groups, sums, group_size
            )
        arms["w8a16"] = partial(ops.linear_w8a16, x, weight, scale)
        arms["w4a16"] = partial(ops.linear_w4a16, x, packed, groups, group_size)
        for name, kernel in arms.items():
            title = f"linear_{name}, {rows} row{'s' * (rows > 1)}"
            yield Case(title, kernel, partial(F.linear, x, wide))


def wide_linear_cases() -> Iterator[Case]:
    """One row and the input projection of a 2.8b model: what decoding a token waits for."""
    depth, columns, group_size, code = 2560, 10240, 128, dual(0.03)
    weight = torch.randint(-127, 128, (columns, depth), dtype=torch.int8)
    packed = torch.randint(0, 256, (columns, depth // 2), dtype=torch.uint8)
    scale, groups = torch.rand(columns), torch.rand(columns, depth // group_size).half()
    total, sums, wide = weight.sum(dim=1, dtype=torch.int32), torch.rand(columns), weight.float()
    x, q = torch.randn(1, depth), torch.randint(-128, 128, (1, depth), dtype=torch.int8)
    arms: dict[str, Callable[[], object]] = {
        "w8a8": partial(ops.linear_w8a8, q, code, False, None, weight, scale, total),
        "w4a8": partial(ops.linear_w4a8, q, code, False, None, packed, groups, sums, group_size),
        "w8a16": partial(ops.linear_w8a16, x, weight, scale),
        "w4a16": partial(ops.linear_w4a16, x, packed, groups, group_size),
    }
    for name, kernel in arms.items():
        yield Case(f"linear_{name}, 1 row, {depth} to {columns}", kernel, partial(F.linear, x, wide))


GROUPS = {
    "scan": scan_cases,
    "ssd": ssd_cases,
    "conv": conv_cases,
    "rows": row_cases,
    "linear": linear_cases,
    "wide_linear": wide_linear_cases,
}


def once(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    """Command line; the status is 1 if an aim is missed."""
    parser = argparse.ArgumentParser(description="Time the C++ operators against plain PyTorch.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=GROUPS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    table = Table("operator", "C++ ms", "PyTorch ms", "times faster", "aim")
    missed = 0
    with torch.inference_mode():
        for case in (case for name in GROUPS if options.only in (None, name) for case in GROUPS[name]()):
            case.kernel(), case.rival()
            pairs = [(once(case.kernel), once(case.rival)) for _ in range(options.repeats)]
            kernel, rival = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
            missed += case.aim is not None and rival < case.aim * kernel
            aim = "" if case.aim is None else f">= {case.aim:g}"
            table.add_row(case.name, f"{kernel:.3f}", f"{rival:.3f}", f"{rival / kernel:.1f}", aim)
    title = f"{BATCH} x {LENGTH} tokens, {CHANNELS} channels, {STATES} states, {options.threads} threads"
    title += f" (SSD: 1 x {SSD_LENGTH} tokens, {HEADS} heads of {HEAD_DIM}, {SSD_STATES} states)"
    Console().print(title, table, sep="\n")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
