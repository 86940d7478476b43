"""Time the CUDA kernels against their floors, scale modes side by side in one run.

    python benchmarks/kernels.py [--only conv,scan] [--out kernels.json] [--quick]

Method: random inputs of the sizes of Mamba-1 models; a CUDA graph of several calls is replayed and timed by events,
so that launch gaps are left out; the calls rotate over input sets that together exceed twice the L2 cache, so that
inputs come from memory (outputs may stay in the cache where they fit). A sample is one replay over its number of
calls; the table shows the median, the 10th and the 90th percentile. The floor of a kernel is the larger of its
unavoidable bytes over the copy rate measured in the same run and, for the scan, its exponentials over the rate of
their unit (16 a clock and multiprocessor).
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Code, Range
from dualscale_mamba.formats.control import Control
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.single import Single

# (batch, channels, length), as in the published comparisons; 16 states.
SHAPES = ((1, 1536, 2048), (1, 5120, 2048), (8, 5120, 2048), (1, 5120, 16384))
STATES = 16
DECODE_BATCHES = (1, 16, 64, 256)
EXPONENTIALS_PER_CLOCK = 16
# A SiLU output: its minimum, an inlier threshold, an outlier.
RANGE = Range(*(torch.tensor([value], dtype=torch.float64) for value in (-0.2785, 1.5, 8.0)))
MODES = {"single": Single(), "control": Control(), "dual": Dual(), "table (dual_symmetric)": DualSymmetric()}


@dataclass
class Timing:
    """One line of the result; times in microseconds, bytes and operations per call."""

    kernel: str
    shape: str
    arm: str
    median_us: float
    p10_us: float
    p90_us: float
    bytes: int
    exponentials: int = 0
    floor_us: float = 0.0

    @property
    def gigabytes_per_second(self) -> float:
        """Unavoidable bytes over the time taken."""
        return self.bytes / self.median_us / 1e3


@dataclass
class Work:
    """What one call does: a function of an input set, and what it cannot avoid."""

    kernel: str
    shape: str
    arm: str
    make: Callable[[], tuple[object, ...]]
    call: Callable[..., object]
    bytes: int
    exponentials: int = 0


def samples(work: Work, replays: int) -> list[float]:
    """Microseconds a call, one sample a replay."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    sets = [work.make()]
    inputs = sum(each.nbytes for each in sets[0] if isinstance(each, Tensor))
    while len(sets) * inputs < 2 * cache and len(sets) < 64:
        sets.append(work.make())
    calls = max(len(sets), 8 if work.bytes < 2**28 else 2)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            work.call(*sets[0])
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            work.call(*sets[i % len(sets)])
    found = []
    for i in range(replays + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            found.append(start.elapsed_time(end) * 1e3 / calls)
    return found


def measure(work: Work, replays: int) -> Timing:
    """Time one piece of work."""
    found = samples(work, replays)
    deciles = statistics.quantiles(found, n=10)
    median = statistics.median(found)
    return Timing(
        work.kernel, work.shape, work.arm, median, deciles[0], deciles[-1], work.bytes, work.exponentials
    )


def normal(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Standard normal values on the GPU."""
    return torch.randn(*shape, device="cuda").to(dtype)


def codes(*shape: int) -> Tensor:
    """Codes of roughly normal values on the GPU."""
    return (torch.randn(*shape, device="cuda") * 40).clamp(-128, 127).to(torch.int8)


def rows_of(code: Code) -> Tensor:
    """A code's rows on the GPU."""
    return code.rows.cuda()


def plain() -> Tensor:
    """The code of an ordinary site: symmetric, one scale."""
    zero = torch.zeros(1, dtype=torch.float64)
    return rows_of(Single().fit(Range(zero - 4.0, zero + 4.0, zero + 4.0)))


def silu_codes(code: Tensor, *shape: int) -> Tensor:
    """Codes as the SSM input has them."""
    return ops.encode(F.silu(normal(*shape, dtype=torch.float32) * 1.5), code)


def conv_work() -> Iterator[Work]:
    """Convolution over sequences."""
    for batch, channels, length in SHAPES:
        shape, size = f"{batch}, {channels}, {length}", batch * channels * length
        weight, bias, x_code = normal(channels, 4).float(), normal(channels).float(), plain()
        for name, mode in MODES.items():
            code = rows_of(mode.fit(RANGE))

            def call(
                x: Tensor, code: Tensor = code, own: tuple[Tensor, ...] = (x_code, weight, bias)
            ) -> object:
                return ops.causal_conv1d_encode(x, *own, None, code)

            make = lambda b=batch, n=length, c=channels: (codes(b, n, 2 * c)[..., :c],)  # noqa: E731
            yield Work("conv", shape, name, make, call, 2 * size)

        def half(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> object:
            return ops.causal_conv1d_encode(x, None, weight, bias, None, None, torch.float16)

        make = lambda b=batch, n=length, c=channels: (normal(b, n, c),)  # noqa: E731
        yield Work("conv", shape, "ours, fp16 to fp16", make, half, 4 * size)
        yield from conv_peers(batch, channels, length)


def conv_peers(batch: int, channels: int, length: int) -> Iterator[Work]:
    """What others do in fp16, in the layout they like best (channels first)."""
    shape, size = f"{batch}, {channels}, {length}", batch * channels * length
    weight, bias = normal(channels, 4), normal(channels)

    def torch_conv(x: Tensor) -> object:
        return F.silu(F.conv1d(x, weight[:, None], bias, padding=3, groups=channels)[..., :length])

    yield Work(
        "conv", shape, "PyTorch fp16", lambda: (normal(batch, channels, length),), torch_conv, 4 * size
    )
    if (peer := optional("causal_conv1d")) is not None:
        run = lambda x: peer.causal_conv1d_fn(x, weight, bias, activation="silu")  # noqa: E731
        yield Work(
            "conv", shape, "causal_conv1d fp16", lambda: (normal(batch, channels, length),), run, 4 * size
        )


def optional(name: str) -> object | None:
    """A package if it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def scan_work() -> Iterator[Work]:
    """Selective scan over sequences."""
    for batch, channels, length in SHAPES:
        shape, size = f"{batch}, {channels}, {length}", batch * channels * length
        rate = -torch.arange(1, STATES + 1, device="cuda").float().repeat(channels, 1)
        D, bias, site = normal(channels).float(), normal(channels).float() - 4, plain()
        rank = channels // 32
        states = 2 * batch * length * STATES

        def make(
            code: Tensor, b: int = batch, n: int = length, c: int = channels, r: int = rank
        ) -> tuple[object, ...]:
            both, wide = codes(b, n, r + 2 * STATES), codes(b, n, 2 * c)
            return (
                silu_codes(code, b, n, c),
                codes(b, n, c),
                both[..., r : r + STATES],
                both[..., r + STATES :],
                wide[..., c:],
            )

        for name, mode in MODES.items():
            code = rows_of(mode.fit(RANGE))

            def call(
                u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor,
                code: Tensor = code, own: tuple[Tensor, ...] = (site, rate, D, bias),
            ) -> object:  # fmt: skip
                s, A, D, bias = own
                return ops.selective_scan(
                    u, code, delta, s, A, B, s, C, s, D, z, s, bias, None, torch.float16
                )

            sets = lambda code=code, make=make: make(code)  # noqa: E731
            yield Work("scan", shape, name, sets, call, 5 * size + states, size * STATES)

        def half(*x: Tensor, own: tuple[Tensor, ...] = (rate, D, bias)) -> object:
            u, delta, B, C, z = x
            A, D, bias = own
            none = None
            return ops.selective_scan(
                u, none, delta, none, A, B, none, C, none, D, z, none, bias, none, torch.float16
            )

        floats = lambda code=code, make=make: tuple(each.half() / 40 for each in make(code))  # noqa: E731
        yield Work("scan", shape, "ours, fp16 to fp16", floats, half, 8 * size + 2 * states, size * STATES)
        if (peer := optional("mamba_ssm.ops.selective_scan_interface")) is not None:
            first = lambda m=floats: tuple(each.transpose(1, 2).contiguous() for each in m())  # noqa: E731

            def theirs(*x: Tensor, own: tuple[Tensor, ...] = (rate, D, bias)) -> object:
                u, delta, B, C, z = x
                return peer.selective_scan_fn(u, delta, own[0], B, C, own[1], z, own[2], True)

            yield Work("scan", shape, "mamba_ssm fp16", first, theirs, 8 * size + 2 * states, size * STATES)


def update_work() -> Iterator[Work]:
    """One token: scan and convolution."""
    channels = 5120
    rate = -torch.arange(1, STATES + 1, device="cuda").float().repeat(channels, 1)
    D, bias, site, code = (
        normal(channels).float(),
        normal(channels).float(),
        plain(),
        rows_of(Dual().fit(RANGE)),
    )
    weight = normal(channels, 4).float()
    for batch in DECODE_BATCHES:

        def call(state: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor) -> object:
            inputs = (u, code, delta, site, rate, B, site, C, site, D, z, site, bias)
            return ops.selective_state_update(state, *inputs, torch.float16)

        def make(b: int = batch) -> tuple[object, ...]:
            state = normal(b, channels, STATES, dtype=torch.float32)
            return (
                state,
                *(codes(b, channels) for _ in range(2)),
                codes(b, 16),
                codes(b, 16),
                codes(b, channels),
            )

        moved = batch * channels * (8 * STATES + 5) + channels * 4 * STATES
        yield Work("state update", f"{batch}, {channels}", "dual", make, call, moved)

        def conv(x: Tensor, state: Tensor) -> object:
            return ops.causal_conv1d_update(x, site, state, weight, bias, code)

        pair = lambda b=batch: (codes(b, channels), codes(b, 3, channels))  # noqa: E731
        yield Work("conv update", f"{batch}, {channels}", "dual", pair, conv, batch * channels * 8)


def row_work() -> Iterator[Work]:
    """Element-wise operators, norm and Hadamard transform."""
    for rows, channels in ((2048, 1536), (16384, 5120)):
        shape, size = f"{rows}, {channels}", rows * channels
        values = lambda r=rows, c=channels: (normal(r, c),)  # noqa: E731
        for name, mode in MODES.items():
            code = rows_of(mode.fit(RANGE))
            yield Work("encode", shape, name, values, lambda x, k=code: ops.encode(x, k), 3 * size)
            coded = lambda r=rows, c=channels: (codes(r, c),)  # noqa: E731
            yield Work(
                "decode", shape, name, coded, lambda q, k=code: ops.decode(q, k, torch.float16), 3 * size
            )
        many = rows_of(Dual().fit(RANGE)).repeat(channels, 1)
        yield Work("encode", shape, "dual per channel", values, lambda x, k=many: ops.encode(x, k), 3 * size)
        yield from norm_work(rows, channels)


def norm_work(rows: int, channels: int) -> Iterator[Work]:
    """Norm (fp32 residual stream) and Hadamard transform."""
    shape, size, site = f"{rows}, {channels}", rows * channels, plain()
    weight = torch.ones(channels, device="cuda")
    order = 12 if channels % 3 == 0 else 20
    base = torch.where(normal(order, order) > 0, 1.0, -1.0)
    both = lambda: (normal(rows, channels), normal(rows, channels, dtype=torch.float32))  # noqa: E731
    for arm, code, per_token in (("static", site, False), ("per token", None, True)):

        def norm(x: Tensor, residual: Tensor, code: Tensor | None = code, own: bool = per_token) -> object:
            return ops.rms_norm_quant(x, residual, weight, 1e-5, code, own, torch.float32, torch.float16)

        def rotate(x: Tensor, code: Tensor | None = code, own: bool = per_token) -> object:
            return ops.hadamard_quant(x, base, code, own, torch.float16)

        yield Work("norm", shape, arm, both, norm, 11 * size)
        yield Work("hadamard", shape, arm, lambda: (normal(rows, channels),), rotate, 3 * size)


def linear_work() -> Iterator[Work]:
    """W8A8 product of the input projection of a 2.8b model, against fp16."""
    depth, columns = 2560, 10240
    site = plain()
    scale, total = torch.rand(columns, device="cuda"), torch.zeros(columns, dtype=torch.int32, device="cuda")
    for rows in (1, 16, 64, 2048, 16384):
        shape, moved = f"{rows}, {depth}, {columns}", columns * depth + rows * (depth + columns)
        make = lambda r=rows: (codes(r, depth), codes(columns, depth))  # noqa: E731
        for arm, knee in (("int8", False), ("int8 with knee", True)):

            def call(x: Tensor, weight: Tensor, knee: bool = knee) -> object:
                return ops.linear_w8a8(x, site, knee, None, weight, scale, total, None, site)

            yield Work("linear", shape, arm, make, call, moved)
        halves = lambda r=rows: (normal(r, depth), normal(columns, depth))  # noqa: E731
        yield Work("linear", shape, "PyTorch fp16", halves, F.linear, 2 * moved)


def copy_rate() -> float:
    """Bytes read plus written by a large device-to-device copy, a microsecond."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda").random_(0, 100)
    target = torch.empty_like(source)
    found = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(4):
            target.copy_(source)
        end.record()
        end.synchronize()
        found.append(4 * 2**31 / start.elapsed_time(end) / 1e3)
    return statistics.median(found)


FAMILIES: dict[str, Callable[[], Iterator[Work]]] = {
    "conv": conv_work,
    "scan": scan_work,
    "update": update_work,
    "rows": row_work,
    "linear": linear_work,
}


def markdown(timings: Sequence[Timing]) -> str:
    """The table."""
    lines = [
        "| kernel | shape | arm | median us | p10 | p90 | GB/s | floor us | share of floor |",
        "|---" * 9 + "|",
    ]
    for t in timings:
        times = f"{t.median_us:.1f} | {t.p10_us:.1f} | {t.p90_us:.1f}"
        rest = f"{t.gigabytes_per_second:.0f} | {t.floor_us:.1f} | {t.floor_us / t.median_us:.0%}"
        lines.append(f"| {t.kernel} | {t.shape} | {t.arm} | {times} | {rest} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time the CUDA kernels.")
    parser.add_argument("--only", default=",".join(FAMILIES), help="families, default: %(default)s")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    parser.add_argument(
        "--clock-ghz", type=float, default=1.98, help="multiprocessor clock for the scan's floor"
    )
    parser.add_argument("--quick", action="store_true", help="fewer replays")
    options = parser.parse_args()
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    rate = copy_rate()
    exponentials = EXPONENTIALS_PER_CLOCK * properties.multi_processor_count * options.clock_ghz * 1e3
    print(f"{properties.name}, torch {torch.__version__}, copy {rate / 1e6:.2f} TB/s\n")
    timings = []
    for name in options.only.split(","):
        for work in FAMILIES[name]():
            timing = measure(work, 10 if options.quick else 30)
            timing.floor_us = max(work.bytes / rate, work.exponentials / exponentials)
            timings.append(timing)
    print(markdown(timings))
    if options.out:
        result = {"device": properties.name, "torch": torch.__version__, "copy_bytes_per_us": rate}
        options.out.write_text(json.dumps({**result, "timings": [asdict(t) for t in timings]}, indent=1))


if __name__ == "__main__":
    main()
