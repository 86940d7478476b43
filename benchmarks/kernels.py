"""Time the CUDA kernels against their floors, scale modes side by side in one run.

    python benchmarks/kernels.py [--only conv,scan] [--out kernels.json] [--quick]

Method: random inputs of the sizes of Mamba models; a CUDA graph of several calls is replayed and timed by
events, so that launch gaps are left out; the calls rotate over input sets that together exceed twice the L2
cache, so that inputs come from memory (outputs may stay in the cache where they fit). A sample is one
replay over its number of calls; the arms of one kernel and shape are replayed in turn. The table shows the
median, the 10th and the 90th percentile, and the median over that of the first arm. The floor of
a kernel is the largest of its unavoidable bytes over the copy rate measured in the same run, for the scan its
exponentials over the rate of their unit (16 a clock and multiprocessor), and for linear layers their operations
over the dense rate of Hopper's tensor cores for the type of the product.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from workloads import FAMILIES as FIRST_GENERATION
from workloads import Work
from workloads_layer import FAMILIES as LAYER
from workloads_linear import FAMILIES as LINEAR
from workloads_pairs import FAMILIES as WITH_SELECTORS
from workloads_ssd import FAMILIES as SECOND_GENERATION

EXPONENTIALS_PER_CLOCK = 16
# Of Hopper's tensor cores, dense: additions and multiplications a clock and multiprocessor.
OPERATIONS_PER_CLOCK = {"fp16": 4096, "int8": 8192}
FAMILIES = FIRST_GENERATION | SECOND_GENERATION | LINEAR | LAYER


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
    operations: int = 0
    product: str = "fp16"
    floor_us: float = 0.0
    times_first: float = 1.0  # the median over that of the first arm of the same kernel and shape

    @property
    def gigabytes_per_second(self) -> float:
        """Unavoidable bytes over the time taken."""
        return self.bytes / self.median_us / 1e3


@dataclass
class Replay:
    """A graph of several calls."""

    graph: torch.cuda.CUDAGraph
    calls: int
    sets: list[tuple[object, ...]]

    def microseconds(self) -> float:
        """Time of one call, from one replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / self.calls


def prepare(work: Work) -> Replay:
    """Capture the calls of one piece of work."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    sets = [work.make()]
    inputs = sum(each.nbytes for each in sets[0] if isinstance(each, Tensor))
    while len(sets) * inputs < 2 * cache and len(sets) < 64:
        sets.append(work.make())
    calls = max(len(sets), 8 if work.bytes < 2**28 else 2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which makes the inputs
    with torch.cuda.stream(stream):
        for _ in range(2):
            work.call(*sets[0])
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            work.call(*sets[i % len(sets)])
    return Replay(graph, calls, sets)


def measure(arms: Sequence[Work], replays: int) -> list[Timing]:
    """Time pieces of work that are compared with each other: in turn, so that none has the warmer chip."""
    prepared = [prepare(work) for work in arms]
    found: list[list[float]] = [[] for _ in arms]
    for i in range(replays + 2):
        order = range(len(arms)) if i % 2 else reversed(range(len(arms)))
        for arm in order:
            time = prepared[arm].microseconds()
            if i >= 2:
                found[arm].append(time)
    timings = []
    for work, times in zip(arms, found, strict=True):
        deciles, median = statistics.quantiles(times, n=10), statistics.median(times)
        spread = (deciles[0], deciles[-1])
        work_done = (work.bytes, work.exponentials, work.operations, work.product)
        timings.append(Timing(work.kernel, work.shape, work.arm, median, *spread, *work_done))
    for timing in timings:
        timing.times_first = timing.median_us / timings[0].median_us
    return timings


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


def markdown(timings: Sequence[Timing]) -> str:
    """The table."""
    lines = [
        "| kernel | shape | arm | median us | p10 | p90 | times first | GB/s | floor us | share of floor |",
        "|---" * 10 + "|",
    ]
    for t in timings:
        times = f"{t.median_us:.1f} | {t.p10_us:.1f} | {t.p90_us:.1f}"
        rest = f"{t.times_first:.3f} | {t.gigabytes_per_second:.0f} | {t.floor_us:.1f} | {t.floor_us / t.median_us:.0%}"
        lines.append(f"| {t.kernel} | {t.shape} | {t.arm} | {times} | {rest} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time the CUDA kernels.")
    parser.add_argument("--only", default=",".join(FAMILIES), help="families, default: %(default)s")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    parser.add_argument(
        "--clock-ghz", type=float, default=1.98, help="multiprocessor clock for floors by operations"
    )
    parser.add_argument("--quick", action="store_true", help="fewer replays")
    options = parser.parse_args()
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    rate = copy_rate()
    clocks = properties.multi_processor_count * options.clock_ghz * 1e3
    print(f"{properties.name}, torch {torch.__version__}, copy {rate / 1e6:.2f} TB/s\n")
    timings = []
    for name in options.only.split(","):
        further = WITH_SELECTORS[name]() if name in WITH_SELECTORS else ()
        works = sorted([*FAMILIES[name](), *further], key=lambda work: (work.kernel, work.shape))
        for _, arms in groupby(works, key=lambda work: (work.kernel, work.shape)):
            for timing in measure(list(arms), 10 if options.quick else 30):
                special = timing.exponentials / (EXPONENTIALS_PER_CLOCK * clocks)
                products = timing.operations / (OPERATIONS_PER_CLOCK[timing.product] * clocks)
                timing.floor_us = max(timing.bytes / rate, special, products)
                timings.append(timing)
    print(markdown(timings))
    if options.out:
        result = {"device": properties.name, "torch": torch.__version__, "copy_bytes_per_us": rate}
        options.out.write_text(json.dumps({**result, "timings": [asdict(t) for t in timings]}, indent=1))


if __name__ == "__main__":
    main()
